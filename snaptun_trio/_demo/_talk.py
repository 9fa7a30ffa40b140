# How the parent and its three processes talk: a line of JSON on the child's standard input is an
# order, a line on its standard output the answer. This file knows nothing of what is said.
#
# A child ends when its standard input does. So none is left behind, however the parent ends. It is
# in a session of its own, so that Ctrl-C reaches the parent alone, which then ends the children.

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

Facts: TypeAlias = dict[str, Any]

# Generous: a machine may be busy, and the only harm of waiting is waiting.
ANSWER_WITHIN_SECONDS = 60.0
END_WITHIN_SECONDS = 15.0

PACKAGE_PARENT = Path(__file__).resolve().parents[2]


class ChildError(Exception):
    """One of the processes ended early or does not answer."""


# --- the child's side ---------------------------------------------------------------------------


class Orders:
    """The orders on standard input, one by one."""

    def __init__(self) -> None:
        self._buffered = b""

    async def next(self) -> Facts | None:
        """The next order, or `None` when the parent has no more, or is no more."""
        while b"\n" not in self._buffered:
            # A thread, because that works for a pipe on every system. It reads the descriptor and
            # not `sys.stdin`, whose lock must be free when the interpreter ends.
            piece = await trio.to_thread.run_sync(os.read, 0, 65_536, abandon_on_cancel=True)
            if not piece:
                return None
            self._buffered += piece
        line, _, self._buffered = self._buffered.partition(b"\n")
        order: Facts = json.loads(line)
        await trio.lowlevel.checkpoint()
        return order


def answer(facts: Facts) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def serve(
    orders: Orders,
    work: Callable[..., Awaitable[object]],
    obey: Callable[[Facts], Facts],
) -> None:
    """Start the work in the background and answer orders until there are no more."""
    async with trio.open_nursery() as nursery:
        await nursery.start(work)
        while (order := await orders.next()) is not None:
            answer(obey(order))
        nursery.cancel_scope.cancel("the parent has no more orders")


# --- the parent's side --------------------------------------------------------------------------


class Child:
    """One of the processes, from the parent's side."""

    def __init__(self, name: str, process: trio.Process) -> None:
        self.name = name
        self._process = process
        self._buffered = b""

    async def order(self, **facts: object) -> None:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(json.dumps(facts).encode() + b"\n")
        except trio.BrokenResourceError:
            raise ChildError(f"the {self.name} process ended early") from None

    async def answer(self) -> Facts:
        assert self._process.stdout is not None
        with trio.move_on_after(ANSWER_WITHIN_SECONDS):
            while b"\n" not in self._buffered:
                piece = await self._process.stdout.receive_some()
                if not piece:
                    raise ChildError(f"the {self.name} process ended early")
                self._buffered += piece
            line, _, self._buffered = self._buffered.partition(b"\n")
            facts: Facts = json.loads(line)
            await trio.lowlevel.checkpoint()
            return facts
        raise ChildError(
            f"the {self.name} process did not answer within {ANSWER_WITHIN_SECONDS:g} s"
        )

    async def ask(self, **facts: object) -> Facts:
        await self.order(**facts)
        return await self.answer()


@asynccontextmanager
async def open_child(name: str, command: Sequence[str]) -> AsyncGenerator[Child, None]:
    """Start ``python`` with the given arguments; at the end of the block, end it for certain."""
    # The child imports the very package that runs here, wherever both were started.
    path = os.pathsep.join(filter(None, [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH")]))
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Child(name, process)
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            with trio.move_on_after(END_WITHIN_SECONDS):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()
