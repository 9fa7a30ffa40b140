# What is queued and nobody waits for: it still has to leave.
#
# Where there is an attendant, a task that sleeps until there is something, packets leave in the
# next turn of the scheduler, with what other tasks queue in this one. A batch leaves at once, and
# so does all where there is none. To what the socket does not take yet the attendant sees, or a
# task that lasts for as long as that.
# This file must not know whose packets they are, nor how they are sent.

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from ._send_queue import Submission
from ._wake import wake

if TYPE_CHECKING:
    from ._gathering import Item
    from ._send_queue import PendingSend, SendQueue
    from ._shared_flush import SharedFlush


class Unattended:
    """A sender's queue, for those who do not wait.

    Args:
      queue, shared: the sender's.
    """

    def __init__(self, queue: SendQueue, shared: SharedFlush) -> None:
        self._queue = queue
        self._shared = shared
        self._attended = False  # whether a task sees to it that what is queued leaves
        self._sleeping: trio.lowlevel.Task | None = None  # that task, while nothing is queued

    # -- for whoever sends. All or nothing is accepted, and each raises `trio.WouldBlock` where the
    #    queue is full or others stand before it, and `trio.ClosedResourceError` where the sender or
    #    the socket is closed.

    def put(self, items: list[Item]) -> None:
        """Have some packets sent."""
        self._make_room()
        self._queue.put_all(items, owned=False)
        self._see_to_it()

    def add(self, pending: PendingSend) -> None:
        """Have a batch sent, and at once if it can be: others could add little to it."""
        self._make_room()
        self._queue.add(pending, Submission(owned=False))
        self._shared.now()
        self._see_to_it()  # to the rest, and to what was refused

    def _make_room(self) -> None:
        if not self._shared.has_room():
            # What is in the way may be nobody's any more, of a send that was cancelled: it would
            # stay.
            self._see_to_it()
            if not self._shared.has_room():
                raise trio.WouldBlock

    def _see_to_it(self) -> None:
        if self._sleeping is not None:
            wake(self._sleeping)
            self._sleeping = None  # not before: without memory for that, the next call wakes it
        elif not self._attended:
            self._shared.now()
            self._leave_the_rest()

    def _leave_the_rest(self) -> None:
        """Have a task send what is queued, if anything is."""
        if self._queue.datagrams:
            self._attended = True  # before it runs, or the next call would start another
            try:
                trio.lowlevel.spawn_system_task(self._send_the_rest)
            except BaseException:
                self._attended = False
                raise

    # -- the tasks

    async def attend(self) -> None:
        """Wait until something is queued, and send all that is, unless somebody else does. A
        checkpoint. To be called again and again: what is queued meanwhile waits for the next call.

        Raises:
          trio.ClosedResourceError: the sender or the socket is closed.
        """
        self._attended = True
        try:
            if self._queue.datagrams:
                # Of those who waited for room, say. As many may wait still, and are let in next.
                await trio.lowlevel.checkpoint()
            else:
                self._sleeping = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort)
            await self._shared.until_over(self._queue.last_number)
        except BaseException:
            self._attended, self._sleeping = False, None
            self._leave_the_rest()  # whoever had it queued may outlive this task
            raise
        self._attended = False

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._sleeping = None
        return trio.lowlevel.Abort.SUCCEEDED

    @trio.lowlevel.enable_ki_protection
    async def _send_the_rest(self) -> None:  # noqa: ASYNC910
        try:
            # In a system task an exception would end the program. What is left then stays queued,
            # and goes with the next that is sent.
            with contextlib.suppress(Exception):
                while self._queue.datagrams:  # noqa: ASYNC913
                    await self._shared.until_over(self._queue.last_number)
        finally:
            self._attended = False
