# Cancels a task at the n-th place where it can be cancelled, whatever those places are.
#
# Nobody lists checkpoints by hand here: an instrument counts how often a task gave the run loop its
# turn, and cancels it the n-th time, while it is parked there. Running an operation again and
# again with n = 1, 2, 3, ... until it ends before its n-th checkpoint has been to all of them.
#
# This file knows nothing of the package.

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self


class Canceller(trio.abc.Instrument):
    """Cancels operations at a checkpoint that is given by its number. A context manager."""

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._scope = trio.CancelScope()
        self._checkpoint = 0
        self._reached = 0

    def __enter__(self) -> Self:
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        trio.lowlevel.remove_instrument(self)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._reached += 1
            if self._reached == self._checkpoint:
                self._scope.cancel()

    async def cancel_at(
        self, checkpoint: int, operation: Callable[[], Awaitable[object]]
    ) -> tuple[bool, int]:
        """Run ``operation``, and cancel it at that checkpoint, counted from 1.

        Returns whether it was cancelled, and how many checkpoints it came to.
        """
        with trio.CancelScope() as scope:
            self._scope, self._checkpoint, self._reached = scope, checkpoint, 0
            self._task = trio.lowlevel.current_task()
            try:
                await operation()
            finally:
                self._task = None
        return scope.cancelled_caught, self._reached


async def at_every_checkpoint(
    scenario: Callable[
        [Callable[[Callable[[], Awaitable[object]]], Awaitable[bool]]], Awaitable[None]
    ],
    *,
    at_least: int,
    most: int = 10_000,
) -> int:
    """Run a scenario once for every checkpoint of the operation in it.

    The scenario is called with ``cancelled``: ``await cancelled(operation)`` runs the operation,
    cancels it at this round's checkpoint, and tells whether the cancellation took effect. Then the
    scenario checks that nothing was lost. The rounds end when an operation ends before its turn.

    Returns the number of checkpoints that were found; fewer than ``at_least`` is a failure, because
    then the scenario does not show what it is meant to.
    """
    found = 0
    for checkpoint in range(1, most):
        reached = 0

        async def cancelled(
            operation: Callable[[], Awaitable[object]], checkpoint: int = checkpoint
        ) -> bool:
            nonlocal reached
            with Canceller() as canceller:
                took_effect, reached = await canceller.cancel_at(checkpoint, operation)
            return took_effect

        await scenario(cancelled)
        found = max(found, reached)
        if reached < checkpoint:
            assert found >= at_least, f"only {found} checkpoints were found"
            return found
    raise AssertionError(f"the operation has more than {most} checkpoints")
