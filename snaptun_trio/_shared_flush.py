# One flush for many tasks: who sends, and who waits for it.
#
# Any number of tasks put something into one queue. One of them sends, and waits for the socket
# where it is full: the first that finds nobody doing so. It sends everything, the others' too, and
# goes when its own is over; then one of those who still wait takes its place. So nothing stays in
# the queue while somebody waits for it, and nobody sends for others for ever.
#
# Where the queue is full, those who want to put something in stand in a line, and whoever makes
# room lets them in, in their order. This file must not know what is sent, nor what a refusal means.

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar

import trio

from ._batch import messages_of
from ._flush import FlushStatus
from ._wake import wake

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._batch import PacketBatch
    from ._errors import SendFailure
    from ._flush import Flush
    from ._gathering import Item
    from ._send_queue import PendingSend, SendQueue, Submission
    from ._waiter import ReadinessWaiter

    ResultT = TypeVar("ResultT")
    _Admission: TypeAlias = Callable[[], object]  # puts something into the queue


# So many datagrams of one task are sent before the others have their turn, and not after: those
# could add little to them, and they are still in the processor's cache.
MANY = 16

# A batch of less, and of at most so many bytes, is queued packet by packet, to be gathered with
# what other tasks send. Of a larger one the packets stay where they are.
_FEW_BYTES = 4096


def is_small(batch: PacketBatch) -> bool:
    """Whether a batch is better gathered with what other tasks send."""
    messages, _ = messages_of(batch)
    few = messages.plain and 0 < messages.datagrams < MANY
    return few and messages.nbytes <= _FEW_BYTES


def are_few(packets: list[bytes]) -> bool:
    """Whether packets, one at least, are better gathered with what other tasks send."""
    return len(packets) < MANY and sum(map(len, packets)) <= _FEW_BYTES


class _Waiting:
    """What a task waits for, and how that ended."""

    __slots__ = ("error", "to_send", "what")

    def __init__(self, what: int | _Admission) -> None:
        self.what = what
        self.error: Exception | None = None
        self.to_send = False  # whether it was woken to send, and keeps its place until it does


class SharedFlush:
    """Sends what is queued, for all who wait for it.

    Args:
      queue, flush, waiter: the sender's.
      most: with so many datagrams the queue is full.
    """

    def __init__(self, queue: SendQueue, flush: Flush, waiter: ReadinessWaiter, most: int) -> None:
        self._queue = queue
        self._flush = flush
        self._waiter = waiter
        self._most = most
        self._sending = False  # whether a task sends, or waits for the socket
        # In the order in which they came: those who wait for a number to be over, and those who
        # wait to be let in, with what they want to put in.
        self._waiting: dict[trio.lowlevel.Task, _Waiting] = {}
        self._to_let_in = 0

    # -- for whoever sends. Each is a checkpoint. Cancelled while the queue is full, nothing was put
    #    in; cancelled later, what is left stays in the queue, and is nobody's any more. Each raises
    #    `trio.ClosedResourceError` where the sender or the socket is closed, before or during it.

    async def send_items(self, items: list[Item]) -> list[SendFailure]:
        """Send some packets with what others queue meanwhile. Returns what was refused of them."""
        queue = self._queue
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.has_room():
            gathering, places = queue.put_all(items)
        else:
            gathering, places = await self._enter(lambda: queue.put_all(items))
        try:
            # Shielded: who is cancelled here has waited for nothing yet, and its packets go.
            await trio.lowlevel.cancel_shielded_checkpoint()
            if not queue.over(gathering.number) or self._waiter.closed:
                await self.until_over(gathering.number)
        except BaseException:
            self._flush.disown_packets(gathering, places)
            raise
        return gathering.refusals_of(places) if gathering.refused else []

    async def send_batch(self, pending: PendingSend, submission: Submission) -> None:
        """Send a batch; what becomes of it is in ``submission``."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.has_room():
            self._queue.add(pending, submission)
        else:
            await self._enter(lambda: self._queue.add(pending, submission))
        # After a batch of nothing, all that was queued before is waited for still.
        number = pending.number or self._queue.last_number
        try:
            await self._have_a_turn(pending.outgoing.content.datagrams)
            await self.until_over(number)
        except BaseException:
            self._flush.disown(submission)
            raise

    async def send_all(self) -> None:
        """Send all that is queued now."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._waiter.check_open()
        number = self._queue.last_number
        await self._have_a_turn(self._queue.datagrams)
        await self.until_over(number)

    def send_batch_now(
        self, pending: PendingSend, submission: Submission, refused: int = 0
    ) -> None:
        """Send a batch as far as the socket takes it. No checkpoint.

        Args:
          pending: the batch, or what is left of one.
          submission: what becomes of it is entered there.
          refused: the errno with which its beginning was refused already, 0 for none.

        Raises:
          trio.WouldBlock: it takes nothing. Nothing of the batch was accepted.
        """
        queue = self._queue
        if queue.datagrams and self.now() is not FlushStatus.DONE:
            raise trio.WouldBlock
        queue.add(pending, submission)
        if refused:
            self._flush.note_refusal(pending, refused)
        if self.now() is FlushStatus.BLOCKED and pending.place == (0, 0):
            queue.take_back(pending)
            # It is not told twice, and nobody else will ever know of it.
            self._waiter.note(pending.errors)
            raise trio.WouldBlock

    def has_room(self) -> bool:
        """Whether something may be put into the queue, and nobody waits to do so. No checkpoint."""
        self._waiter.check_open()
        return not self._to_let_in and self._queue.datagrams < self._most

    async def _have_a_turn(self, datagrams: int) -> None:
        """Let the others run, after sending what is queued, or before if it is little."""
        if datagrams >= MANY and not self._sending:
            try:
                self._flush.turn()
            finally:
                self._wake()
        # Shielded: who is cancelled here has waited for nothing yet, and its datagrams go.
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def until_over(self, number: int) -> None:  # noqa: ASYNC910
        """Wait until everything up to a number is sent or refused. No checkpoint where it is."""
        while not self._queue.over(number):  # noqa: ASYNC913
            if self._sending:
                await self._wait_for(number)
            else:
                await self._send(lambda: self._queue.over(number))
        if self._waiter.closed and number >= self._queue.cleared_from:
            raise trio.ClosedResourceError("the sender is closed")

    def now(self) -> FlushStatus:
        """Send what can be sent now, and see who need not wait any more."""
        try:
            return self._flush.all_now()
        finally:
            self._wake()

    def withdrawn(self) -> None:
        """Something left the queue without being sent: see who need not wait any more."""
        self._wake()

    def closed(self) -> None:
        """The sender was closed, and its queue is empty: nobody need wait any more."""
        for task, waiting in list(self._waiting.items()):
            waiting.error = trio.ClosedResourceError("the sender is closed")
            self._let_go(task, waiting)

    # -- the line before a full queue, and who sends

    async def _enter(self, admission: Callable[[], ResultT]) -> ResultT:  # noqa: ASYNC910
        """Put something into the queue, by a call of ``admission`` when there is room.

        Returns what that call returned. If cancelled, it was not called.
        """
        results: list[ResultT] = []

        def enter() -> None:
            results.append(admission())

        while not results:  # noqa: ASYNC913
            if self._sending:
                await self._wait_for(enter)
            else:
                await self._send(lambda: self._let_in(enter))
        return results[0]  # noqa: ASYNC910

    def _let_in(self, admission: _Admission) -> bool:
        """Let something be put in if there is room. Returns whether there was."""
        if self._queue.datagrams >= self._most:
            return False
        admission()
        return True

    async def _send(self, reached: Callable[[], bool]) -> None:  # noqa: ASYNC910
        """Send everything until something is reached."""
        self._sending = True
        try:
            while not reached():  # noqa: ASYNC913
                status = self._flush.turn()
                if reached():
                    break
                self._wake()
                if status is FlushStatus.BLOCKED:
                    await self._waiter.wait()
                else:
                    await trio.lowlevel.checkpoint()
                    self._waiter.check_open()
        finally:
            self._sending = False
            self._wake()

    async def _wait_for(self, what: int | _Admission) -> bool:
        """Wait until somebody else brought it about. `False` for whoever is to send next."""
        task, waiting = trio.lowlevel.current_task(), _Waiting(what)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._forget(task)
            return trio.lowlevel.Abort.SUCCEEDED

        self._waiting[task] = waiting
        if not isinstance(what, int):
            self._to_let_in += 1
        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
            while task in self._waiting:  # woken to send
                if not self._sending:
                    self._forget(task)
                    return False
                waiting.to_send = False  # another one was first
                await trio.lowlevel.wait_task_rescheduled(abort)
        except BaseException:
            if task in self._waiting:  # there was no memory to wait with
                self._forget(task)
            raise
        if waiting.error is not None:
            raise waiting.error
        return True

    def _forget(self, task: trio.lowlevel.Task) -> None:
        if not isinstance(self._waiting.pop(task).what, int):
            self._to_let_in -= 1

    def _let_go(self, task: trio.lowlevel.Task, waiting: _Waiting) -> None:
        if not waiting.to_send:
            wake(task)
        self._forget(task)

    def _wake(self) -> None:
        """Let in whoever fits, and wake those whose matter is over; and one to send, if need be."""
        if not self._waiting:
            return
        let_in = False  # who was let in sends next, or finds it sent
        for task, waiting in list(self._waiting.items()):
            what = waiting.what
            if isinstance(what, int):
                if self._queue.over(what):
                    self._let_go(task, waiting)
            elif self._queue.datagrams < self._most:
                try:
                    what()
                    let_in = True
                except Exception as error:
                    waiting.error = error
                self._let_go(task, waiting)
        if self._waiting and not self._sending and not let_in:
            task, first = next(iter(self._waiting.items()))
            if not first.to_send:
                first.to_send = True
                wake(task)
