# BatchPump: two tasks and bounded channels between a receiver and a sender.
#
# Anything that gives or takes batches can stand at its ends; what a pump can do more with ends of
# ours is in `_outlet`, and in the receiver's `_receive_more`. What became of every datagram is in
# `_pump_account`. Backpressure is the channel's bound: a full one stops the receiving task, then
# the kernel's buffer fills, then the kernel drops, visibly. What owns a socket is in `_open`.

from __future__ import annotations

import contextlib
import time
import typing
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, final, overload

import trio

from ._batch import PacketBatch
from ._brief import brief
from ._closing import Closing
from ._groups import raise_single
from ._handling import Handling
from ._incoming import IncomingChannel
from ._outlet import outlet_of
from ._pump_account import PumpAccount
from ._receiver import UdpBatchReceiver
from ._sender import UdpBatchSender
from ._statistics import PumpStatistics
from ._train import check_int

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # for the defaults: PEP 696, in typing from 3.13 on

    from ._handling import Handler, OnError
    from ._statistics import ReceiverStatistics, SenderStatistics
    from ._train import Address

    Receiving = trio.abc.ReceiveChannel[PacketBatch]
    Sending = trio.abc.SendChannel[PacketBatch]
    ReceiverT = TypeVar("ReceiverT", bound=Receiving, default=UdpBatchReceiver, covariant=True)
    SenderT = TypeVar("SenderT", bound=Sending, default=UdpBatchSender, covariant=True)
else:
    ReceiverT, SenderT = typing.TypeVar("ReceiverT"), typing.TypeVar("SenderT")

# Few: what is in flight between two tasks should fit the processor's cache; a batch is up to 1 MB.
DEFAULT_CAPACITY = 2

# How long one task may receive and send before it lets the others run, in seconds.
_TURN = 0.0003

# How many datagrams of small batches the sending task sends in one go.
_TOGETHER = 512

_NOTHING = PacketBatch(())


@final
class BatchPump(Closing, Generic[ReceiverT, SenderT]):
    """Moves batches from a receiving channel to a sending one, with bounded memory between them.

    Without a handler the application stands in the middle: it takes batches from `incoming` and
    puts batches into `outgoing`. With one the pump forwards by itself.

    **Backpressure**: each channel holds at most ``capacity`` batches. When one is full, the
    receiving task stops. Then the kernel's socket buffer fills, then the kernel drops, and that
    drop shows in `statistics`. Memory never grows.

    **The account**: datagrams received + added = sent + failed + discarded + waiting + taken, in
    `statistics`, at any time. Datagrams that the sending channel refuses for good
    (`SendBatchError`) do not end a pump: they are counted as failed, and logged to the logger
    ``snaptun_trio``, at most once a minute for each errno. So are those for an address that is none
    for the sender's socket, with EINVAL.

    **Many tasks** may put batches into `outgoing`: all that waits there leaves in one go.

    A pump runs once, in a nursery of the caller's: ``await nursery.start(pump.run)``.

    Args:
      receiver: where batches come from. The pump borrows it and does not close it.
      sender: where batches go to, borrowed as well.
      handler: a plain function that is called with each batch. It returns the batch to send, often
        ``batch.to(address)``, or `None` for nothing. Anything else is a `TypeError`. An exception
        ends the pump, unless there is ``on_error``.
      on_error: a plain function that is called with the exception and the batch when a handler
        raises; the batch counts as discarded then, and the pump goes on. What it raises itself ends
        the pump.
      capacity: how many batches a channel holds, 1 or more.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: ``capacity`` is less than 1, or there is ``on_error`` and no handler.
    """

    def __init__(
        self,
        receiver: ReceiverT,
        sender: SenderT,
        *,
        handler: Handler | None = None,
        on_error: OnError | None = None,
        capacity: int = DEFAULT_CAPACITY,
    ) -> None:
        if not isinstance(receiver, trio.abc.ReceiveChannel):
            raise TypeError(f"receiver is a ReceiveChannel of batches, not {brief(receiver, 80)}")
        if not isinstance(sender, trio.abc.SendChannel):
            raise TypeError(f"sender is a SendChannel of batches, not {brief(sender, 80)}")
        check_int("capacity", capacity, 1, 2**31)
        self._receiver = receiver
        self._sender = sender
        if handler is None and on_error is not None:
            raise ValueError("on_error is asked when a handler raises, and there is no handler")
        self._account = account = PumpAccount()
        self._handler = None if handler is None else Handling(handler, on_error, account)
        # The receiving task puts into ``_first``, the sending task takes from ``_last``.
        self._first, last = trio.open_memory_channel[PacketBatch[Any]](capacity)
        self._outgoing = self._first
        self._incoming = IncomingChannel(last, account.taken, account.discarded)
        if handler is None:
            self._outgoing, last = trio.open_memory_channel[PacketBatch](capacity)
        self._last = last
        self._running = trio.CancelScope()
        self._receiving = trio.CancelScope()
        self._idle = trio.CancelScope()  # the sending task's wait for something to do
        self._sender_idle = False  # whether it waits, and nothing is on its way to it
        self._started = self._draining = False
        self._slips: list[object] = []  # what was put into `outgoing` and is no batch
        self._ended = trio.Event()
        self._outlet = outlet_of(sender)

    @property
    def receiver(self) -> ReceiverT:
        """Where batches come from."""
        return self._receiver

    @property
    def sender(self) -> SenderT:
        """Where batches go to."""
        return self._sender

    @property
    def local_address(self) -> Address:
        """The address that the socket of this pump is bound to.

        Raises:
          RuntimeError: it has no socket at either end.
          trio.ClosedResourceError: the socket is closed.
        """
        for end in (self._receiver, self._sender):
            if isinstance(end, UdpBatchReceiver | UdpBatchSender):
                return end.local_address
        raise RuntimeError("this pump has a UDP socket at neither end")

    @property
    def incoming(self) -> IncomingChannel:
        """The received batches, for the application. It ends when the receiving side has ended.

        Closing it tells the pump to stop receiving; what waits in it is discarded, and counted.

        Raises:
          RuntimeError: the pump has a handler.
        """
        self._check_no_handler()
        return self._incoming

    @property
    def outgoing(self) -> trio.MemorySendChannel[PacketBatch]:
        """For the batches that the application wants sent. Closing it lets the pump end.

        Raises:
          RuntimeError: the pump has a handler.
        """
        self._check_no_handler()
        return self._outgoing

    def _check_no_handler(self) -> None:
        if self._handler is not None:
            raise RuntimeError("this pump has a handler, and so neither incoming nor outgoing")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ASYNC910
        """Move batches until the receiving side has ended and everything is sent, or `close`.

        The receiving side ends with `trio.EndOfChannel`, or when the receiver is closed; a UDP
        socket does not end by itself. Without a handler the application sees the end of `incoming`
        then, and lets the pump end by closing `outgoing`.

        If cancelled, the batches that wait to be sent or are under way are discarded, and counted.

        Raises:
          RuntimeError: the pump ran before.
          trio.ClosedResourceError: the pump was closed before, or its sender was closed.
          Exception: whatever the handler, the receiver or the sender raises, such as `ValueError`
            for an IPv6 target on an IPv4 socket. A single one is never wrapped in a group.
        """
        if self._started:
            raise RuntimeError("a pump runs once")
        if self._ended.is_set():
            raise trio.ClosedResourceError("the pump is closed")
        self._started = True
        try:
            with self._running:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._receive_all)
                    nursery.start_soon(self._send_all)
                    task_status.started()
        except BaseExceptionGroup as group:
            raise_single(group)
        finally:
            self._end()

    # The private coroutines below are no checkpoints on every path by themselves (ASYNC910 to 913):
    # each turn of their loops awaits the receiver or the sender, which are.

    @trio.lowlevel.enable_ki_protection
    async def _receive_all(self) -> None:
        # Nothing here refers to a batch any longer than it takes to pass it on. One that is kept
        # while the next is received keeps its slab, and two in turn do not fit the cache.
        batches: list[PacketBatch[Any]] = []
        receiver, scope = self._receiver, self._receiving
        waiting: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(receiver, UdpBatchReceiver):
            waiting = receiver._waits_in(scope)
        with self._first, scope, waiting:
            while True:  # noqa: ASYNC913
                try:
                    batches.append(await receiver.receive())
                except (trio.EndOfChannel, trio.ClosedResourceError):
                    return  # noqa: ASYNC910
                if self._handler is None:
                    self._account.received(batches[0])
                else:
                    self._forward_at_once(self._handler, batches)
                if batches and not await self._pass_on(batches.pop()):
                    return  # the application closed `incoming`  # noqa: ASYNC910

    async def _pass_on(self, batch: PacketBatch) -> bool:
        """Put a batch into the channel. Returns whether anybody still takes from it."""
        self._sender_idle = False  # or a later batch would overtake this one
        self._account.waiting += len(batch)
        try:
            # `receive` was a checkpoint; another one for each batch would cost as much as the
            # system call.
            self._first.send_nowait(batch)
        except trio.WouldBlock:
            try:
                await self._first.send(batch)
            except BaseException as error:
                self._account.discarded(batch)
                if isinstance(error, trio.BrokenResourceError):
                    return False  # noqa: ASYNC910
                raise
        except trio.BrokenResourceError:
            self._account.discarded(batch)
            return False  # noqa: ASYNC910
        return True  # noqa: ASYNC910

    def _forward_at_once(self, handle: Handling, batches: list[PacketBatch[Any]]) -> None:
        """Send without the other task, and receive and send more while it is our turn.

        While the sending task is idle, a batch need not go through the channel. That direct path
        saves a switch of tasks for each batch (10 us, a third of the cost of pumping 400
        datagrams), and the batch is sent while the processor's cache still holds it. Takes the one
        batch out of the list, and leaves there what has to go through the channel.
        """
        turn_ends = time.perf_counter() + _TURN
        while True:
            answer = handle(batches.pop())
            if answer is not None:
                if not self._sender_idle or not self._outlet.send_at_once(answer):
                    batches.append(answer)
                    return
                if self._outlet.under_way:
                    # The socket is full. The sending task waits for it, and sends the rest.
                    batches.append(_NOTHING)
                    return
            answer = None
            if time.perf_counter() >= turn_ends or not isinstance(self._receiver, UdpBatchReceiver):
                return
            if not self._receiver._receive_more(batches):
                return

    @trio.lowlevel.enable_ki_protection
    async def _send_all(self) -> None:
        # The channel stays open until `_end` has counted what is left in it.
        while True:  # noqa: ASYNC913
            try:
                batch = self._last.receive_nowait()
            except trio.EndOfChannel:
                return  # noqa: ASYNC910
            except trio.WouldBlock:
                # Where the pump forwards, the receiving task may hold one more batch: its end of
                # the channel closes after that.
                if self._draining and self._handler is None:
                    return  # noqa: ASYNC910
                with trio.CancelScope() as self._idle:  # noqa: ASYNC912
                    self._sender_idle = True
                    try:
                        batch = await self._last.receive()
                    except trio.EndOfChannel:
                        return  # noqa: ASYNC910
                self._sender_idle = False
                if self._idle.cancelled_caught:
                    continue
            batches = self._together(batch)
            if batches:
                await self._outlet.send(batches)
            if self._slips:
                raise TypeError(f"outgoing takes PacketBatches, not {brief(self._slips[0], 80)}")

    def _together(self, batch: PacketBatch) -> list[PacketBatch]:
        """This batch, and what else waits to be sent, as far as they are small."""
        batches: list[PacketBatch] = []
        datagrams = 0
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while isinstance(batch, PacketBatch):
                if self._handler is None:
                    self._account.datagrams_added += len(batch)
                else:
                    self._account.waiting -= len(batch)
                batches.append(batch)
                datagrams += len(batch)
                if datagrams >= _TOGETHER:
                    return batches
                batch = self._last.receive_nowait()
            self._slips.append(batch)
        return batches

    async def drain(self) -> None:
        """Stop receiving, send what was put into `outgoing` already, and wait until `run` is over.

        Later batches are discarded, or refused with `trio.ClosedResourceError`; to have those too,
        close the receiver, and `incoming` ends. If cancelled, the pump goes on draining.
        """
        self._draining = True
        self._receiving.cancel(reason="the pump is draining")
        self._idle.cancel(reason="the pump is draining")
        if not self._started:
            self._end()
        await self._ended.wait()

    def close(self) -> None:
        """End the pump now. What waits to be sent or is under way is discarded, and counted.

        Receiver and sender stay open. `incoming` can be read to its end. Closing again is no error.
        """
        self._running.cancel(reason="the pump was closed")
        if not self._started:
            self._end()

    @trio.lowlevel.enable_ki_protection
    def _end(self) -> None:
        # What nobody will take must not vanish from the account. `incoming` may still be read.
        self._outlet.give_up()
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                batch = self._last.receive_nowait()
                if self._handler is not None:
                    self._account.discarded(batch)
                elif isinstance(batch, PacketBatch):  # or nobody was told yet that it is none
                    self._account.added_and_discarded(batch)
        for end in (self._first, self._outgoing, self._last):
            end.close()
        self._ended.set()

    @overload
    def statistics(self: BatchPump) -> PumpStatistics[ReceiverStatistics, SenderStatistics]: ...
    @overload
    def statistics(  # type: ignore[overload-overlap]  # what is both is the first one
        self: BatchPump[UdpBatchReceiver, Sending],
    ) -> PumpStatistics[ReceiverStatistics]: ...
    @overload
    def statistics(
        self: BatchPump[Receiving, UdpBatchSender],
    ) -> PumpStatistics[ReceiverStatistics | None, SenderStatistics]: ...
    @overload
    def statistics(self) -> PumpStatistics: ...
    def statistics(self) -> PumpStatistics[Any, Any]:
        """A snapshot of what the pump has moved, and of its two ends where they keep count."""
        receiver, sender, outlet = self._receiver, self._sender, self._outlet
        account = self._account
        return PumpStatistics(
            batches_received=account.batches_received,
            datagrams_received=account.datagrams_received,
            datagrams_taken=account.datagrams_taken,
            datagrams_added=account.datagrams_added,
            batches_sent=outlet.batches_sent,
            datagrams_sent=outlet.sent,
            batches_discarded=account.batches_discarded + outlet.batches_discarded,
            datagrams_discarded=account.datagrams_discarded + outlet.discarded,
            datagrams_failed=outlet.failed.total(),
            failures=MappingProxyType(dict(outlet.failed)),
            datagrams_waiting=account.waiting + outlet.waiting,
            batches_incoming=self._first.statistics().current_buffer_used,
            batches_outgoing=self._outgoing.statistics().current_buffer_used,
            receiver=receiver.statistics() if isinstance(receiver, UdpBatchReceiver) else None,
            sender=sender.statistics() if isinstance(sender, UdpBatchSender) else None,
        )
