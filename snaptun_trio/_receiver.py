# UdpBatchReceiver: when to wait, and what a batch is.
#
# The system call itself is the backend's, the memory the pool's. This file decides how much a call
# is offered, which errors end a receive, and that no datagram that the kernel handed over is lost
# to a cancellation, a close or a handler that raises. It must not know the sender.

from __future__ import annotations

import os
from operator import length_hint
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

import trio

from ._batch import PacketBatch, batch_of, part_of
from ._brief import brief
from ._closing import Closing
from ._each_datagram import call_for_each
from ._kernel import _errnos, socket_io
from ._kernel._abi import MAX_BATCH_SIZE
from ._kernel._sockets import switched_off
from ._plain import check_plain
from ._pool import GRO_BUFFER_SIZE, PacketBufPool
from ._statistics import ReceiverStatistics
from ._train import Address, check_int
from ._waiter import ReadinessWaiter

if TYPE_CHECKING:
    import socket as stdlib_socket
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from ._losses import ReceiveLosses
    from ._messages import Messages

# How many bytes a call is offered, more or less. Two things pull at it: the price of a batch, and
# that what it brings should still be in the processor's cache when it is looked at or sent on.
# Forwarding trains of 50 x 1200 bytes costs 214 ns a datagram with 512 KiB a call, 203 with 768,
# 194 with a megabyte and 184 with one and a half; looking at them 196 with 768 KiB or a megabyte,
# and 264 with a quarter more, since Python fetches new memory for their objects then.
_BYTES_A_CALL = 1 << 20
# And how many datagrams. The objects for those of 64 bytes take up more than their bytes: to look
# at one costs 76 ns with 2048 a call, and 100 with 3072.
_DATAGRAMS_A_CALL = 2048
_FEWEST_SLOTS = 1
# Before anything is known. Many slots would touch many pages for ever.
_FIRST_SLOTS = 16

# How many errors about earlier datagrams one receive call takes in before it lets others run.
_MOST_ERRORS = 64


@final
class UdpBatchReceiver(Closing, trio.abc.ReceiveChannel[PacketBatch[Address]]):
    """Receives UDP datagrams in batches: everything that is queued, with one system call.

    The receiver is created once for a socket and reused. It borrows the socket and never closes
    it. Any number of receivers can share one pool.

    Give a socket one receiver. With two, each datagram goes to the one that asks first, and only
    one of them can wait: trio admits one waiting reader for a socket, and the other's `receive`
    raises `trio.BusyResourceError`.

    ``async for batch in receiver`` goes on until the receiver or the socket is closed, which raises
    `trio.ClosedResourceError`; a UDP socket has no end of its own.

    Args:
      socket: a UDP socket of IPv4 or IPv6, a `trio.socket.SocketType` or a non-blocking
        `socket.socket`. Whoever closes the latter calls `trio.lowlevel.notify_closing` first. One
        that is not bound yet receives nothing until it is.
      pool: the memory to receive into; by default one of the receiver's own.
      batch_size: the most messages that one system call takes, 1 to `MAX_BATCH_SIZE`. With GRO a
        message can be a train of datagrams. How many are offered within this limit follows the
        traffic: about a megabyte a call, or 2048 datagrams.
      gro: let the kernel hand out trains of datagrams (UDP_GRO). It needs a pool with the default
        ``buffer_size``. ``SNAPTUN_TRIO_GRO=0`` in the environment switches it off as well. On a
        socket where somebody has switched it on, it stays on.
      ecn: report the ECN bits of each train, in ``train.ecn``.
      packet_info: report where each train arrived, in ``train.local_address`` and
        ``train.interface_index``.
      timestamps: report when the kernel received each train, in ``train.timestamp_ns``.
      report_errors: on a connected socket, raise what ICMP messages say of datagrams that were sent
        earlier, such as `ConnectionRefusedError`. They are counted all the same, and without it
        they are only counted. The kernel tells each to whichever call comes first: what a send call
        heard is in the sender's ``asynchronous_errors``.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: the socket is not fit, ``batch_size`` is out of range, the pool's buffers are too
        small for GRO, or this system cannot report what is asked for.
    """

    def __init__(
        self,
        socket: trio.socket.SocketType | stdlib_socket.socket,
        pool: PacketBufPool | None = None,
        *,
        batch_size: int = 256,
        gro: bool = True,
        ecn: bool = False,
        packet_info: bool = False,
        timestamps: bool = False,
        report_errors: bool = False,
    ) -> None:
        self._io = socket_io(socket)
        check_int("batch_size", batch_size, 1, MAX_BATCH_SIZE)
        self._batch_size = batch_size
        if pool is None:
            pool = PacketBufPool()
        elif not isinstance(pool, PacketBufPool):
            raise TypeError(f"pool is a PacketBufPool, not {brief(pool)}")
        if gro and pool.buffer_size < GRO_BUFFER_SIZE:
            raise ValueError(
                f"GRO needs buffers of {GRO_BUFFER_SIZE} bytes, not {pool.buffer_size}: "
                "the kernel would throw the rest of each train away"
            )
        self._pool = pool
        for flag, asked in (
            ("ecn", ecn),
            ("packet_info", packet_info),
            ("timestamps", timestamps),
        ):
            if asked:
                self._io.report(flag)
        if gro and not switched_off("GRO"):
            self._io.enable_gro()
        self._memory = pool._memory(self._io)
        self._waiter = ReadinessWaiter(self._io, reading=True)
        self._slots = min(_FIRST_SLOTS, batch_size)  # what the next call is offered
        self._filled = False  # whether the last call brought as much as it could
        self._report_errors = bool(report_errors)
        self._held: PacketBatch[Address] | None = None
        self._late_error: OSError | None = None  # that came behind what was delivered
        self._uncounted: Messages | None = None  # there was no memory to count them with
        self._drops_before = self._io.drops()
        self._drops: int | None = None
        self._calls = self._trains = self._datagrams = self._bytes = 0
        self._truncated = self._datagrams_lost = self._bytes_lost = 0
        self._trains_unknown = self._bytes_unknown = 0

    def __repr__(self) -> str:
        return f"<UdpBatchReceiver on {self._io}>"

    @property
    def socket(self) -> trio.socket.SocketType | stdlib_socket.socket:
        """The socket that was lent."""
        return self._io.sock

    @property
    def local_address(self) -> Address:
        """The address that the socket is bound to.

        Raises:
          trio.ClosedResourceError: the socket is closed.
        """
        return self._io.local_address()

    @property
    def batch_size(self) -> int:
        """The most messages that one system call takes."""
        return self._batch_size

    @property
    def gro(self) -> bool:
        """Whether the kernel hands out trains; `False` once the socket is closed."""
        return self._io.gro

    @property
    def report_errors(self) -> bool:
        """Whether errors about earlier datagrams are raised, where the socket is connected."""
        return self._report_errors

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> PacketBatch[Address]:
        """Receive everything that is queued, at least one datagram, waiting for it if need be.

        A cancelled receive has received nothing: no datagram is ever lost to it.

        Raises:
          trio.ClosedResourceError: the receiver or the socket is closed, before or during it.
          trio.BusyResourceError: another task is receiving, or a `UdpReceiverGroup`.
          OSError: the kernel reported an error that is not about an earlier datagram; or one that
            is, with ``report_errors``. After the latter the receiver is as good as before, and
            what had come with the error was delivered by the call before.
        """
        with self._waiter:
            await trio.lowlevel.checkpoint_if_cancelled()
            batch = self._take()
            if batch is not None:
                # The datagrams are out of the kernel: from here on there is no way back.
                await trio.lowlevel.cancel_shielded_checkpoint()
                return batch
            while batch is None:
                await self._waiter.wait()
                batch = self._take()
            return batch

    # The one that is inherited could be interrupted with the batch in its hands.
    __anext__ = receive

    @trio.lowlevel.enable_ki_protection
    def receive_nowait(self) -> PacketBatch[Address]:
        """Receive everything that is queued, without waiting.

        Raises:
          trio.WouldBlock: nothing is queued.
          trio.ClosedResourceError: the receiver or the socket is closed.
          OSError: see `receive`.
        """
        batch = self._take()
        if batch is None:
            raise trio.WouldBlock
        return batch

    @trio.lowlevel.enable_ki_protection
    def _receive_more(self, batches: list[PacketBatch[Any]]) -> bool:
        """For the pump: add what is left after a call that filled all that it was offered.

        Returns whether there was anything. Where the last call left nothing, no system call is made
        only to hear that.
        """
        if not self._filled:
            return False
        try:
            batch = self._take()
        except trio.ClosedResourceError:
            return False  # the next `receive` says so
        except OSError as error:
            self._late_error = error  # what is in ``batches`` goes first
            return False
        if batch is None:
            return False
        batches.append(batch)
        return True

    def _waits_in(self, scope: trio.CancelScope) -> AbstractContextManager[None]:
        """For a loop of ours: meanwhile its scope is what `close` cancels to wake it."""
        return self._waiter.lasting(scope)

    @trio.lowlevel.enable_ki_protection
    async def recv_batch(self, handler: Callable[[bytes, Address], object]) -> None:
        """Receive once, and call ``handler(packet, address)`` for each datagram, in order.

        If the handler raises, the exception goes up unchanged. The datagram it was called with
        counts as delivered; those it did not get to are delivered by the next receive, of whatever
        kind. A cancelled call has received nothing. Control-C can interrupt the handler like any
        other exception, and nothing else from the receive on.

        Args:
          handler: a plain function; what it returns is ignored.

        Raises:
          TypeError: the handler is none, or async.
          trio.ClosedResourceError, trio.BusyResourceError, OSError: see `receive`.
        """
        check_plain("handler", handler)
        batch = await self.receive()
        left = len(batch)
        try:
            datagrams = iter(list(batch))
            try:
                call_for_each(handler, datagrams)
            finally:
                left = length_hint(datagrams)
        except BaseException:
            if left:
                self._held = part_of(batch, len(batch) - left, len(batch))
            raise

    def statistics(self) -> ReceiverStatistics:
        """A snapshot of what the receiver has counted; afterwards too, when it is closed."""
        held = 0 if self._held is None else len(self._held)
        self._count_drops()
        return ReceiverStatistics(
            receive_calls=self._calls,
            trains_received=self._trains,
            datagrams_received=self._datagrams,
            bytes_received=self._bytes,
            datagrams_delivered=self._datagrams - held,
            datagrams_held=held,
            datagrams_truncated=self._truncated,
            datagrams_lost_to_truncation=self._datagrams_lost,
            bytes_lost_to_truncation=self._bytes_lost,
            trains_with_unknown_boundaries=self._trains_unknown,
            bytes_with_unknown_boundaries=self._bytes_unknown,
            asynchronous_errors=MappingProxyType(dict(self._waiter.asynchronous_errors)),
            buffers_dropped_by_kernel=self._drops,
            receive_buffer_size=self._io.receive_buffer_size,
            gro=self._io.gro,
        )

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """Stop receiving, now and for good. The socket stays open.

        A task that waits in `receive` gets `trio.ClosedResourceError`. Closing again does nothing.
        """
        if not self._waiter.closed:
            self._count_drops()  # the socket may be closed next
            self._waiter.close()

    def _count_drops(self) -> None:
        """Ask the kernel what it dropped, as long as there is a socket to ask about."""
        if not self._io.closed and self._drops_before is not None:
            drops = self._io.drops()
            if drops is not None:
                self._drops = (drops - self._drops_before) & 0xFFFFFFFF  # it counts in 32 bits

    def _take(self) -> PacketBatch[Address] | None:
        """What a handler left over, or what one system call brings; `None` where nothing is."""
        if self._waiter.closed:
            self._waiter.check_open()
        if self._held is not None:
            batch, self._held = self._held, None
            return batch
        for errors in range(_MOST_ERRORS):
            if self._late_error is not None:
                late, self._late_error = self._late_error, None
                raise late
            try:
                messages = self._uncounted
                if messages is None:
                    messages = self._io.receive(self._memory, self._slots, self._batch_size)
            except OSError as error:
                if error.errno in _errnos.CLOSED_ERRNOS:
                    raise trio.ClosedResourceError("the socket was closed") from None
                if error.errno not in _errnos.ASYNCHRONOUS:
                    raise
                self._waiter.asynchronous_errors[error.errno or 0] += 1
                if self._is_reported(error):
                    self._waiter.fruitless = 0
                    raise
                continue
            if messages is None:
                if errors:
                    self._waiter.fruitless = 0  # they are what there was, and they are taken in
                return None
            self._uncounted = messages
            batch = batch_of(messages)
            self._account(messages)
            self._uncounted = None
            if messages.count:
                return batch
        return None

    def _account(self, messages: Messages) -> None:
        count, nbytes = messages.count, messages.nbytes
        # All that needs memory comes before anything is entered, so that the account holds.
        calls, trains = self._calls + 1, self._trains + count
        datagrams, received = self._datagrams + messages.datagrams, self._bytes + nbytes
        slots = self._slots
        filled = count == min(slots, self._io.most_messages)
        if nbytes:
            # As many slots as brought about so much.
            fitting = min(
                _BYTES_A_CALL * count // nbytes,
                _DATAGRAMS_A_CALL * count // messages.datagrams,
            )
            slots = max(_FEWEST_SLOTS, min(fitting, self._batch_size))
        losses = messages.losses
        if losses is not None:
            self._account_for(losses)
        self._filled, self._slots = filled, slots
        self._waiter.fruitless = 0
        self._calls, self._trains = calls, trains
        self._datagrams, self._bytes = datagrams, received

    def _account_for(self, losses: ReceiveLosses) -> None:
        self._truncated += losses.truncated
        self._datagrams_lost += losses.datagrams
        self._bytes_lost += losses.nbytes
        self._trains_unknown += losses.trains_unknown
        self._bytes_unknown += losses.bytes_unknown
        if losses.error is not None:
            self._waiter.asynchronous_errors[losses.error.errno or 0] += 1
            if self._is_reported(losses.error):
                self._late_error = losses.error
                self._waiter.tell_group()

    def _hear(self, number: int) -> None:
        """For a channel: its sender was told of an error that the next receive is to raise."""
        if self._is_reported(error := OSError(number, os.strerror(number))):
            self._late_error = error
            self._waiter.wake()

    def _is_reported(self, error: OSError) -> bool:
        """Whether an error about an earlier datagram is to be raised."""
        about_earlier = error.errno in _errnos.ASYNCHRONOUS
        return self._report_errors and about_earlier and self._io.peer() is not None

    def _has_something(self) -> bool:
        """For the group: whether there is something that the kernel does not know of any more."""
        return not (self._held is None and self._late_error is None and self._uncounted is None)
