# A test that hangs fails, and says where its tasks stood.
#
# A bound for every asynchronous test, on the real clock whatever clock the test runs on: SIGALRM
# has trio cancel the test. Only a hang takes that long. What a test in a process of its own does
# with that signal is its own affair; `faults/own_process.py` has a bound for those.

from __future__ import annotations

import functools
import inspect
import signal
import threading
from typing import TYPE_CHECKING, TypeVar

import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HANG_GUARD = 100.0
"""Seconds after which an asynchronous test is given up."""

Test = TypeVar("Test", bound="Callable[..., object]")


def guarded(test: Test, seconds: float = HANG_GUARD) -> Test:
    """An asynchronous test with the bound, any other as it is."""
    if not inspect.iscoroutinefunction(test) or not hasattr(signal, "setitimer"):
        return test
    asynchronous: Callable[..., Awaitable[object]] = test

    @functools.wraps(test)
    async def bounded(*args: object, **kwargs: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            await asynchronous(*args, **kwargs)
            return
        token = trio.lowlevel.current_trio_token()
        stood: list[str] = []

        def give_up() -> None:
            stood.extend(_where(task) for task in _tasks_below(scope_of))
            scope.cancel()

        scope_of = trio.lowlevel.current_task()
        before = signal.signal(signal.SIGALRM, lambda *_: token.run_sync_soon(give_up))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            with trio.CancelScope() as scope:
                await asynchronous(*args, **kwargs)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        if stood:
            lines = "\n".join(stood)
            pytest.fail(f"the test hung for {seconds} seconds:\n{lines}", pytrace=False)

    return bounded  # type: ignore[return-value]


def _tasks_below(task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
    found = [task]
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            found += _tasks_below(child)
    return found


def _where(task: trio.lowlevel.Task) -> str:
    frames = [
        f"{frame.f_code.co_qualname}, line {line}" for frame, line in task.iter_await_frames()
    ]
    return f"  {task.name}: " + " > ".join(frames)
