# The processes that a command starts. A line on the standard input of one is an order, and what it
# says, a line of JSON each, comes on its standard output; an ``error`` ends it. What else is said,
# this file must not know.
#
# A process ends when its standard input does, so none is left behind however the command ends. It
# is in a session of its own, so that Ctrl-C reaches the command alone, which then ends the others.

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from ._arguments import CommandError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

Facts: TypeAlias = dict[str, Any]
# Generous: a machine may be busy, and the only harm of waiting is waiting.
ANSWER_WITHIN_SECONDS = 60.0
END_WITHIN_SECONDS = 15.0
PACKAGE_PARENT = Path(__file__).resolve().parents[2]


def say(**facts: object) -> None:
    """In a process: say something, unless nobody listens just now."""
    # What is not over 4096 bytes (PIPE_BUF) goes into a pipe as a whole or not at all.
    with suppress(BlockingIOError, BrokenPipeError):
        os.write(1, json.dumps(facts).encode() + b"\n")


class Child:
    """One of the processes, from the command's side."""

    def __init__(self, name: str, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.name, self.process = name, process
        self._orders, self._reports = process.stdin, process.stdout
        self._heard = b""

    async def order(self) -> None:  # noqa: ASYNC910  # nor need it wait if nobody listens
        """Give the one order that there is."""
        with suppress(trio.BrokenResourceError):  # it has ended, and says nothing any more
            await self._orders.send_all(b"\n")

    async def read(self) -> Facts | None:
        """What it says next; `None` when it has ended."""
        while b"\n" not in self._heard:
            if not (piece := await self._reports.receive_some()):
                return None
            self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        facts: Facts = json.loads(line)
        await trio.lowlevel.checkpoint()
        return facts

    async def ask(self) -> Facts:
        """Give the order and return the answer, or raise `CommandError`: it ended, or is silent."""
        with trio.move_on_after(ANSWER_WITHIN_SECONDS):
            await self.order()
            if (facts := await self.read()) is None:
                raise CommandError(f"the {self.name} process ended early")
            if "error" in facts:
                raise CommandError(f"the {self.name} process: {facts['error']}")
            return facts
        within = f"within {ANSWER_WITHIN_SECONDS:g} s"
        raise CommandError(f"the {self.name} process did not answer {within}")


@asynccontextmanager
async def open_child(
    name: str, command: Sequence[str], pass_fds: Sequence[int] = ()
) -> AsyncGenerator[Child, None]:
    """Start ``python`` with the given arguments; at the end of the block, end it for certain."""
    # It imports the very package that runs here, wherever both were started.
    path = os.pathsep.join(filter(None, [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH")]))
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
        pass_fds=pass_fds,
    )
    child = Child(name, process)
    try:
        yield child
    finally:
        with trio.CancelScope(shield=True):
            await child._orders.aclose()
            with trio.move_on_after(END_WITHIN_SECONDS):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await child._reports.aclose()
