# Waking a task that waits in `wait_task_rescheduled`, for nothing but that it goes on.

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, final

import outcome  # trio's own: what `trio.lowlevel.reschedule` takes
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    ResultT = TypeVar("ResultT")


@final
class _Nothing(outcome.Outcome[None]):
    """The value `None`, for any number of tasks.

    `outcome.Value` is made for one: to make it, and to mark it as used, was a twentieth of what a
    server's answer costs.
    """

    __slots__ = ()

    def unwrap(self) -> None:
        """What the task is given: nothing."""

    def send(self, gen: Generator[ResultT, None, object]) -> ResultT:
        return gen.send(None)

    async def asend(self, agen: AsyncGenerator[ResultT, None]) -> ResultT:
        return await agen.asend(None)  # noqa: ASYNC910


_NOTHING = _Nothing()


def wake(task: trio.lowlevel.Task) -> None:
    """Let a task go on. There is exactly one call for each wait, as with `reschedule`."""
    trio.lowlevel.reschedule(task, _NOTHING)
