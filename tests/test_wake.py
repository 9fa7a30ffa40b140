# Waking a task: one outcome for all of them, in each of the ways in which an outcome is taken.

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing

from snaptun_trio._wake import _NOTHING, wake

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator


async def test_any_number_of_tasks_is_woken_again_and_again() -> None:
    waiting: list[trio.lowlevel.Task] = []
    woken: list[object] = []

    async def wait() -> None:
        for _ in range(3):
            waiting.append(trio.lowlevel.current_task())
            woken.append(
                await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
            )

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(wait)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            tasks, waiting[:] = waiting[:], []
            for task in tasks:
                wake(task)
    assert woken == [None] * 12


async def test_it_goes_into_generators_as_outcomes_do() -> None:
    def plain() -> Generator[str, None, None]:
        yield "began"
        yield f"got {(yield 'waits')}"

    async def asynchronous() -> AsyncGenerator[str, None]:
        yield "began"
        yield f"got {(yield 'waits')}"

    generator = plain()
    assert [_NOTHING.send(generator) for _ in range(3)] == ["began", "waits", "got None"]
    other = asynchronous()
    assert [await _NOTHING.asend(other) for _ in range(3)] == ["began", "waits", "got None"]
    await other.aclose()
