# UdpReceiverGroup: many receivers, one task.
#
# What is ready is the poller's to say, and what a batch is the receiver's. This file decides whose
# turn it is, that an error names its receiver and is told once, and that a socket which is ready
# for ever keeps neither the group busy nor the others waiting. It must not know the sender, nor
# what the system waits with.

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import weakref
from collections import deque
from typing import TYPE_CHECKING, TypeAlias, final

import trio

from . import _group_errors
from ._batch import PacketBatch
from ._brief import brief
from ._closing import Closing
from ._kernel import _errnos
from ._kernel._poller import open_poller
from ._receiver import UdpBatchReceiver
from ._train import Address
from ._waiter import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._kernel._poller import Poller

Received: TypeAlias = tuple[UdpBatchReceiver, PacketBatch[Address]]

# A socket that its owner closed without telling anybody gives no sign of it. How often all are
# looked at, in seconds, and how many in one go: a look takes a tenth of a microsecond.
_SWEEP_INTERVAL = 1.0
_SWEPT_AT_ONCE = 1000
# How many sockets that were called ready and gave nothing one turn takes before it lets others run.
_MOST_FRUITLESS = 32


@final
class UdpReceiverGroup(Closing, trio.abc.ReceiveChannel[Received]):
    """Receives with many receivers in one task.

    A thousand quiet sockets with a task each wake a task for each datagram. A group waits for all
    of them together: each item is ``(receiver, batch)``, and all sockets that are ready get their
    turn, one batch each, before any of them gets another.

    ::

        with UdpReceiverGroup(receivers) as group:
            while True:
                try:
                    async for receiver, batch in group:
                        ...
                except ReceiverGroupError as error:
                    print(error.receiver, error)

    The group borrows its receivers and never closes them. As long as a receiver is in a group its
    own `~UdpBatchReceiver.receive` raises `trio.BusyResourceError`, and so does another group that
    wants it; its `~UdpBatchReceiver.receive_nowait` is free to take what is there.

    A receiver that is closed, or whose socket is, or that failed, is reported once by `receive`,
    and leaves the group with that; one that is discarded first is not reported. What a program
    closes with `UdpBatchReceiver.close` is reported at once. That somebody closed a socket is
    noticed within some two seconds: once a second, for as long as tasks wait in the group, a system
    task of trio's looks through it.

    A group with nobody in it waits until there is. It has no end of its own: ``async for`` goes on
    until the group is closed, or a receiver is to be reported.

    ``len(group)``, ``receiver in group`` and iterating it tell who is in it.

    Args:
      receivers: who is in it from the beginning.

    Raises:
      TypeError, ValueError, OSError, trio.ClosedResourceError, trio.BusyResourceError: see `add`.
    """

    def __init__(self, receivers: Iterable[UdpBatchReceiver] = ()) -> None:
        # Each with the descriptor under which it is watched.
        self._members: dict[UdpBatchReceiver, int] = {}
        self._poller: Poller[UdpBatchReceiver] = open_poller()
        self._ready: deque[UdpBatchReceiver] = deque()
        # Those that are left alone for a while, by when that ends.
        self._resting: list[tuple[float, int, UdpBatchReceiver]] = []
        self._numbers = itertools.count()
        self._in_vain = 0  # how many in a row were called ready and gave nothing
        self._busy = self._closed = False
        self._sweeping = self._waited = False
        try:
            for receiver in receivers:
                self.add(receiver)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """How many are in the group."""
        return len(self._members)

    def __contains__(self, receiver: object) -> bool:
        """Whether it is in the group; one that was closed is, until that is reported."""
        return receiver in self._members

    def __iter__(self) -> Iterator[UdpBatchReceiver]:
        """Who is in the group, as it is now, in the order in which they came."""
        return iter(list(self._members))

    @trio.lowlevel.enable_ki_protection
    def add(self, receiver: UdpBatchReceiver) -> None:
        """Take a receiver into the group; also while a task waits in `receive`.

        Does nothing where it is in the group already.

        Raises:
          TypeError: it is not a receiver.
          ValueError: another receiver of the same socket is in the group.
          trio.ClosedResourceError: the receiver, its socket or the group is closed.
          trio.BusyResourceError: a task is receiving from it, or another group has it.
          OSError: the system has no room for one more.
        """
        if not isinstance(receiver, UdpBatchReceiver):
            raise TypeError(f"a UdpBatchReceiver is needed, not {brief(receiver)}")
        self._check_open()
        if receiver in self._members:
            return
        waiter = receiver._waiter
        waiter.join(functools.partial(self._tell_of, receiver))
        try:
            lost = self._poller.add(receiver._io, receiver)
        except BaseException:
            waiter.leave()
            raise
        self._members[receiver] = receiver._io.sock.fileno()
        if lost is not None:
            self._tell_of(lost)  # its socket was closed: the new one has its number
        if receiver._has_something():
            self._tell_of(receiver)

    @trio.lowlevel.enable_ki_protection
    def discard(self, receiver: UdpBatchReceiver) -> None:
        """Let a receiver go, if it is in the group. Nothing is lost: what waits is still its own.

        The batches of it that `receive` has given stay what they are.
        """
        fd = self._members.pop(receiver, None)
        if fd is not None:
            self._poller.remove(fd, receiver._io)
            receiver._waiter.leave()

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> Received:
        """Receive everything that is queued for one receiver, waiting for any of them if need be.

        A cancelled receive has received nothing: no datagram is ever lost to it.

        Returns:
          The receiver and its batch, which has at least one datagram.

        Raises:
          ReceiverClosedError: a receiver or its socket is closed; it has left the group.
          ReceiverFailedError: the kernel reported an error for one receiver.
          trio.ClosedResourceError: any of the former, or the group itself is closed, before or
            during it.
          trio.BusyResourceError: another task is receiving from this group.
        """
        if self._busy:
            raise trio.BusyResourceError("another task is already receiving from this group")
        self._check_open()
        self._busy = True
        try:
            if self._ready:
                await trio.lowlevel.checkpoint_if_cancelled()
                found = self._take()
                if found is not None:
                    # The datagrams are out of the kernel: from here on there is no way back.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    return found
            while True:
                if self._ready:  # many of them gave nothing
                    await trio.lowlevel.checkpoint()
                else:
                    self._waited = True
                    if not self._sweeping:
                        self._start_sweeping()
                    if self._resting:
                        await self._wait_and_rest()
                    else:
                        await self._poller.wait()
                    self._check_open()
                    # All that are ready have a turn before any of them has another.
                    self._ready.extend(self._poller.poll())
                found = self._take()
                if found is not None:
                    return found
        finally:
            self._busy = False

    # The one that is inherited could be interrupted with the batch in its hands.
    __anext__ = receive

    @trio.lowlevel.enable_ki_protection
    def receive_nowait(self) -> Received:
        """Receive everything that is queued for one receiver, without waiting.

        Raises:
          trio.WouldBlock: nothing is queued for any of them.
          ReceiverClosedError, ReceiverFailedError, trio.ClosedResourceError: see `receive`.
        """
        self._check_open()
        found = self._take_any()
        if found is None:
            self._end_rests()
            self._ready.extend(self._poller.poll())
            found = self._take_any()
        if found is None:
            raise trio.WouldBlock
        return found

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """Let all receivers go, and receive no more. Receivers and sockets stay open.

        A task that waits in `receive` gets `trio.ClosedResourceError`. Closing again does nothing.
        """
        if not self._closed:
            self._closed = True
            for receiver in self:
                self.discard(receiver)
            self._ready.clear()
            self._resting.clear()
            self._poller.close()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the group is closed") from None

    def _tell_of(self, receiver: UdpBatchReceiver) -> None:
        """There is something about this one that the poller does not know."""
        self._ready.append(receiver)
        self._poller.wake()

    def _take_any(self) -> Received | None:
        """The batch of the first that has one. To find nothing is no sign of a spin here."""
        found = None
        while self._ready and found is None:
            found = self._take(judging=False)
        return found

    def _take(self, *, judging: bool = True) -> Received | None:
        """The batch of who is next; `None` where those whose turn it is have nothing."""
        ready = self._ready
        for _ in range(min(len(ready), _MOST_FRUITLESS)):
            receiver = ready.popleft()
            if receiver not in self._members:
                continue
            try:
                batch = receiver._take()
            except trio.ClosedResourceError as error:
                self.discard(receiver)
                raise _group_errors.closed(error, receiver) from None
            except OSError as error:
                if error.errno not in _errnos.ASYNCHRONOUS:
                    self.discard(receiver)
                raise _group_errors.failed(error, receiver) from None
            except BaseException:
                ready.appendleft(receiver)  # no memory: it may hold what is out of the kernel
                raise
            if batch is not None:
                self._in_vain = 0
                return receiver, batch
            if judging:
                self._found_nothing(receiver)
        return None

    def _start_sweeping(self) -> None:
        self._sweeping = True
        trio.lowlevel.spawn_system_task(_sweep_again_and_again, weakref.ref(self))

    async def _wait_and_rest(self) -> None:
        """Wait while some are left alone, at most until the first of them has rested."""
        with trio.CancelScope(deadline=self._resting[0][0]):
            await self._poller.wait()
        self._end_rests(trio.current_time())

    def _found_nothing(self, receiver: UdpBatchReceiver) -> None:
        """A socket was called ready and gave nothing. Should it be so for ever, let it rest."""
        waiter, fd = receiver._waiter, self._members[receiver]
        self._in_vain += 1
        if waiter.something_happened():
            waiter.fruitless = 0
            if self._in_vain >= PATIENCE:
                self._in_vain = 0
                self._poller.check(fd, receiver._io)
            return
        waiter.fruitless += 1
        if waiter.fruitless >= PATIENCE:
            self._poller.mute(fd, receiver._io)
            ends = trio.current_time() + waiter.pause
            heapq.heappush(self._resting, (ends, next(self._numbers), receiver))

    def _end_rests(self, now: float = float("inf")) -> None:
        while self._resting and self._resting[0][0] <= now:
            _, _, receiver = heapq.heappop(self._resting)
            fd = self._members.get(receiver)
            if fd is not None:
                self._poller.unmute(fd, receiver._io)

    def _sweep(self, receivers: Iterable[UdpBatchReceiver]) -> None:
        """Find those whose sockets were closed without a word."""
        for receiver in receivers:
            if receiver._io.closed and receiver in self._members:
                self._tell_of(receiver)


async def _sweep_again_and_again(  # noqa: ASYNC910  # it begins with a sleep
    of: weakref.ref[UdpReceiverGroup],
) -> None:
    """Sweep a group now and then, as long as somebody receives from it."""
    waited = True
    try:
        while waited:
            await trio.sleep(_SWEEP_INTERVAL)
            with contextlib.suppress(MemoryError):  # the next time will do
                waited, receivers = _due(of)
                while receivers:
                    part, receivers = receivers[:_SWEPT_AT_ONCE], receivers[_SWEPT_AT_ONCE:]
                    if (group := of()) is not None:
                        group._sweep(part)
                    del group
                    await trio.lowlevel.checkpoint()
    finally:
        if (group := of()) is not None:
            group._sweeping = False


def _due(of: weakref.ref[UdpReceiverGroup]) -> tuple[bool, list[UdpBatchReceiver]]:
    """Whether somebody received from the group since the last time, and then who is in it."""
    group = of()
    if group is None or not (group._waited or group._busy):
        return False, []
    group._waited = False
    return True, list(group)
