# UdpBatchSender: what a program sends with. The queue's door, and the waiting.
#
# What waits is in `_send_queue`, what a refusal of the kernel means in `_flush`, how a batch turns
# into system calls in `_kernel`. This file checks what comes in before any of it is queued, waits
# for the socket, and reports. It must not know the receiver.

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, final

import trio

from ._batch import PER_TRAIN_ADDRESS, PacketBatch, TrainMessages, messages_of
from ._brief import brief
from ._closing import Closing
from ._coalesce import MAX_PAYLOAD_IPV4, MAX_PAYLOAD_IPV6, MAX_SEGMENTS
from ._errors import PacketTooLargeError, QueueFullError, SendBatchError
from ._flush import Flush, FlushStatus
from ._kernel import socket_io
from ._kernel._abi import MAX_BATCH_SIZE
from ._kernel._sockets import switched_off
from ._send_queue import SendQueue, Submission
from ._statistics import SenderStatistics
from ._train import PacketTrain, check_int, flat_view
from ._waiter import ReadinessWaiter

if TYPE_CHECKING:
    import socket as stdlib_socket

    from ._errors import SendFailure
    from ._send_queue import PendingSend
    from ._train import Address, Packet


@final
class UdpBatchSender(Closing, trio.abc.SendChannel[PacketBatch]):
    """Sends UDP datagrams in batches: as few system calls as the kernel allows.

    The sender is created once for a socket and reused. It borrows the socket and never closes it.
    It sets the path MTU discovery of the socket to PROBE, so that everything is sent with DF: a
    datagram that is larger than the interface's MTU is refused with EMSGSIZE, and none is ever
    fragmented.

    The order of the datagrams to one address is kept. Between addresses it may change: packets for
    one are gathered into trains even when packets for others stood between them.

    Args:
      socket: a bound or connected UDP socket of IPv4 or IPv6, a `trio.socket.SocketType` or a
        non-blocking `socket.socket`.
      batch_size: the datagrams that the queue holds, 1 to `MAX_BATCH_SIZE`.
      max_packet_size: the largest datagram that is accepted, in bytes, 1 to 65 527. No IPv4
        datagram holds more than the default.
      gso: let the kernel cut trains into datagrams (UDP_SEGMENT). It is switched off by itself
        where the kernel shows that it cannot. ``SNAPTUN_TRIO_GSO=0`` in the environment switches it
        off as well, for a kernel that corrupts trains.
      max_segments: the most datagrams that leave as one train, 1 to 64. A train leaves the machine
        as one burst; where the path drops the end of such, fewer help, at more CPU for each.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: the socket is not fit, or a number is out of its range.
    """

    def __init__(
        self,
        socket: trio.socket.SocketType | stdlib_socket.socket,
        *,
        batch_size: int = 64,
        max_packet_size: int = MAX_PAYLOAD_IPV4,
        gso: bool = True,
        max_segments: int = MAX_SEGMENTS,
    ) -> None:
        self._io = socket_io(socket)
        check_int("batch_size", batch_size, 1, MAX_BATCH_SIZE)
        self._batch_size = batch_size
        check_int("max_packet_size", max_packet_size, 1, MAX_PAYLOAD_IPV6)
        self._max_packet_size = max_packet_size
        check_int("max_segments", max_segments, 1, MAX_SEGMENTS)
        self._io.max_segments = max_segments
        self._io.prepare_for_sending(gso=gso and not switched_off("GSO"))
        self._waiter = ReadinessWaiter(self._io, reading=False)
        self._queue = SendQueue(self._io)
        self._flush = Flush(self._io, self._queue, self._waiter)
        self._discarded = 0

    @property
    def socket(self) -> trio.socket.SocketType | stdlib_socket.socket:
        """The socket that was lent."""
        return self._io.sock

    @property
    def batch_size(self) -> int:
        """The datagrams that the queue holds."""
        return self._batch_size

    @property
    def max_packet_size(self) -> int:
        """The largest datagram that is accepted, in bytes."""
        return self._max_packet_size

    @property
    def gso(self) -> bool:
        """Whether the kernel cuts the trains."""
        return self._io.gso

    @property
    def max_segments(self) -> int:
        """The most datagrams that leave as one train."""
        return self._io.max_segments

    @property
    def is_empty(self) -> bool:
        """Whether everything that was queued has been sent, or was refused for good."""
        return self._queue.datagrams == 0

    @property
    def is_full(self) -> bool:
        """Whether the queue holds ``batch_size`` datagrams, or more that a `send` left over."""
        return self._queue.datagrams >= self._batch_size

    # -- the queue

    def try_queue_packet(self, packet: Packet, address: Address | None) -> None:
        """Queue one packet; nothing is sent before a flush. Neither waits nor copies.

        Args:
          packet: any bytes-like object. If it can change, it must not before it is sent.
          address: a numeric address, or `None` for the connected peer.

        Raises:
          QueueFullError: the queue is full. Nothing was queued.
          PacketTooLargeError: the packet is over ``max_packet_size``. Nothing was queued.
          trio.ClosedResourceError: the sender is closed.
          TypeError, ValueError: not a packet, or not an address that this socket can send to.
        """
        self._check_open()
        payload = packet if isinstance(packet, bytes) else flat_view(packet).toreadonly()
        length = len(payload)
        if length > self._max_packet_size:
            raise PacketTooLargeError(packet, address, length, self._max_packet_size)
        if self._queue.datagrams >= self._batch_size:
            raise QueueFullError(packet, address, self._batch_size)
        self._queue.put(payload, address, 1)

    def try_queue_train(self, train: PacketTrain) -> None:
        """Queue a whole train, to be sent as one where the kernel allows. Neither waits nor copies.

        It fits if the queue is empty, however long it is, or if there is room for all of it.

        Raises:
          QueueFullError: it does not fit. Nothing was queued.
          PacketTooLargeError: its datagrams are over ``max_packet_size``. Nothing was queued.
          trio.ClosedResourceError: the sender is closed.
          TypeError, ValueError: not a train, or its address is none that this socket can send to.
        """
        self._check_open()
        if not isinstance(train, PacketTrain):
            raise TypeError(f"a PacketTrain is needed, not {brief(train)}")
        longest = min(train.segment_size, train.nbytes)
        if longest > self._max_packet_size:
            raise PacketTooLargeError(train.data, train.address, longest, self._max_packet_size)
        datagrams = len(train)
        if self._queue.datagrams and self._queue.datagrams + datagrams > self._batch_size:
            raise QueueFullError(train.data, train.address, self._batch_size)
        if train.local_address is not None:
            # What cannot be said to the kernel must not get into the queue: it would stay there.
            self._queue.prepare(TrainMessages.of_trains((train,)), PER_TRAIN_ADDRESS)
        self._queue.put(train, train.address, datagrams)

    # -- sending

    @trio.lowlevel.enable_ki_protection
    def try_flush_best_effort(self) -> None:
        """Send what can be sent now; never waits.

        Raises:
          SendBatchError: some datagrams can never be sent; they are out of the queue. Whether
            something else had to stay in it is told by `is_empty`.
          trio.WouldBlock: something had to stay queued.
          trio.ClosedResourceError: the sender or the socket is closed.
          OSError: the kernel reported an error of the socket as a whole.
        """
        self._waiter.check_open()
        status = self._flush.all_now()
        self._raise_failures()
        if status is not FlushStatus.DONE:
            raise trio.WouldBlock

    @trio.lowlevel.enable_ki_protection
    async def flush(self) -> None:
        """Send everything that is queued, waiting for the socket as often as need be.

        If cancelled, exactly what was not sent yet stays in the queue. Refusals that were met until
        then are reported by the next flush or send that gets to its end.

        Raises:
          SendBatchError: some datagrams can never be sent. Everything else is sent.
          trio.BusyResourceError: another task is flushing or sending.
          trio.ClosedResourceError: the sender or the socket is closed, before or during it.
          OSError: see `try_flush_best_effort`.
        """
        with self._waiter:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._waiter.check_open()
            await self._send_all()
        self._raise_failures()

    @trio.lowlevel.enable_ki_protection
    async def send(self, value: PacketBatch) -> None:
        """Send a batch of any length, after everything that is queued.

        If cancelled while earlier datagrams are in the way, nothing of the batch was accepted. If
        cancelled later, exactly what was not sent yet stays in the queue, for the next flush.

        Args:
          value: the batch. Its trains are split where they are over the kernel's limits.

        Raises:
          SendBatchError: some datagrams, of the queue or of the batch, can never be sent.
            Everything else is sent.
          trio.BusyResourceError: another task is flushing or sending.
          trio.ClosedResourceError: the sender or the socket is closed, before or during it.
          TypeError, ValueError: not a batch, or an address is none that this socket can send to.
          OSError: see `try_flush_best_effort`.
        """
        await self._send(value, Submission())
        self._raise_failures()

    async def _send(self, value: PacketBatch, submission: Submission) -> None:
        """`send`, for the pump: what became of the batch is in ``submission``, nothing is raised of
        it."""
        pending = self._accept(value)
        with self._waiter:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._queue.datagrams:
                await self._go_on(self._flush.turn())
            self._queue.add(pending, submission)
            await self._send_all()

    @trio.lowlevel.enable_ki_protection
    def send_nowait(self, value: PacketBatch) -> None:
        """Send a batch without waiting, after everything that is queued.

        If the socket takes only a part of it, the rest stays queued and the batch is accepted.

        Raises:
          trio.WouldBlock: the socket takes nothing now. Nothing of the batch was accepted.
          SendBatchError: some datagrams can never be sent. The batch was accepted.
          trio.BusyResourceError: another task is flushing or sending.
          trio.ClosedResourceError, TypeError, ValueError, OSError: see `send`.
        """
        self._send_nowait(value, Submission())
        self._raise_failures()

    def _send_nowait(self, value: PacketBatch, submission: Submission) -> None:
        """`send_nowait`, for the pump; see `_send`."""
        pending = self._accept(value)
        self._waiter.check_free()
        if self._queue.datagrams and self._flush.all_now() is not FlushStatus.DONE:
            raise trio.WouldBlock
        self._queue.add(pending, submission)
        status = self._flush.all_now()
        if status is FlushStatus.BLOCKED and pending.place == (0, 0):
            self._queue.take_back(pending)
            # It is not told twice, and nobody else will ever know of it.
            self._waiter.asynchronous_errors.update(pending.errors)
            raise trio.WouldBlock

    def statistics(self) -> SenderStatistics:
        """A snapshot of what the sender has counted; afterwards too, when it is closed."""
        return SenderStatistics(
            send_calls=self._flush.calls,
            trains_sent=self._flush.trains,
            datagrams_submitted=self._queue.submitted,
            datagrams_sent=self._flush.datagrams,
            bytes_sent=self._flush.nbytes,
            datagrams_failed=sum(self._flush.failed.values()),
            datagrams_discarded=self._discarded,
            failures=MappingProxyType(dict(self._flush.failed)),
            datagrams_queued=self._queue.datagrams,
            asynchronous_errors=MappingProxyType(dict(self._waiter.asynchronous_errors)),
            gso_fallbacks=self._flush.gso_fallbacks,
            send_buffer_size=self._io.send_buffer_size,
            gso=self._io.gso,
        )

    def close(self) -> None:
        """Stop sending, now and for good. The socket stays open.

        What is queued is discarded, and counted. A task that waits in `flush` or `send` gets
        `trio.ClosedResourceError`. Closing again does nothing.
        """
        self._waiter.close()
        self._discarded += self._queue.clear()

    # -- how

    def _check_open(self) -> None:
        if self._waiter.closed:
            raise trio.ClosedResourceError("the sender is closed")

    def _accept(self, batch: PacketBatch) -> PendingSend:
        if not isinstance(batch, PacketBatch):
            raise TypeError(f"a PacketBatch is needed, not {brief(batch)}")
        self._waiter.check_open()
        return self._queue.prepare(*messages_of(batch))

    async def _send_all(self) -> None:
        """Send until nothing is left. A checkpoint, always."""
        status = self._flush.turn()
        if status is FlushStatus.DONE:
            await trio.lowlevel.cancel_shielded_checkpoint()
            if not self._queue.datagrams:
                return
            # Who queued something meanwhile and wanted to send it was turned away, because this
            # task is sending. Nobody else would send it.
            status = self._flush.turn()
        await self._go_on(status)

    async def _go_on(self, status: FlushStatus) -> None:  # noqa: ASYNC910
        """Send until nothing is left, and return before anybody can add to it."""
        while status is not FlushStatus.DONE:
            if status is FlushStatus.BLOCKED:
                await self._waiter.wait()
            else:
                await trio.lowlevel.checkpoint()
                self._waiter.check_open()
            status = self._flush.turn()

    async def _wait_until_free(self) -> None:
        """For the pump: let others send to the end who began before."""
        await self._waiter.wait_until_free()

    def _withdraw(self, submission: Submission) -> None:
        """For the pump: discard what is left of a batch."""
        self._discarded += self._queue.withdraw(submission)

    def _take_failures(self) -> list[SendFailure]:
        """What was refused for good and not reported yet."""
        failures, self._flush.failures = self._flush.failures, []
        return failures

    def _raise_failures(self) -> None:
        if self._flush.failures:
            # Made whole before they are taken: without memory for it, the next call tells of them.
            error = SendBatchError(self._flush.failures)
            self._take_failures()
            raise error
