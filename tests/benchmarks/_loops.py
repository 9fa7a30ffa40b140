# The loops that programs run on: trio's, asyncio's own, uvloop's, and aiofastnet's.
#
# None lets a program wait for ever for what does not come.

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import trio

from ._traffic import HANG_GUARD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

NAMES = ("asyncio", "uvloop", "aiofastnet")


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The maker of a contender's loop. Raises `ImportError` where it is not installed."""
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    if name == "aiofastnet":
        import aiofastnet

        return aiofastnet.loop_factory()
    return None


def run_on_loop(name: str, program: Callable[[], Awaitable[None]]) -> None:
    """Run a program on such a loop. Raises `TimeoutError` if it takes far too long."""

    async def main() -> None:
        async with asyncio.timeout(HANG_GUARD):
            await program()

    with asyncio.Runner(loop_factory=loop_factory(name)) as runner:
        runner.run(main())


def run_in_trio(program: Callable[[], Awaitable[None]]) -> None:
    """Run a program in trio. Raises `TimeoutError` if it takes far too long."""

    async def main() -> None:
        with trio.fail_after(HANG_GUARD):
            await program()

    try:
        trio.run(main)
    except trio.TooSlowError as error:
        raise TimeoutError from error
