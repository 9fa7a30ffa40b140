# How a command and its processes talk: a line of JSON on a process's standard input is an order, a
# line on its standard output the answer. This file knows nothing of what is said.
#
# A process ends when its standard input does, so none is left behind however the command ends. It
# is in a session of its own, so that Ctrl-C reaches the command alone, which then ends the others.

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from ._arguments import CommandError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

Facts: TypeAlias = dict[str, Any]
# Generous: a machine may be busy, and the only harm of waiting is waiting.
ANSWER_WITHIN_SECONDS = 60.0
END_WITHIN_SECONDS = 15.0
PACKAGE_PARENT = Path(__file__).resolve().parents[2]


def say(facts: Facts) -> None:
    """In a process: answer. An ``error`` is one that ends it, and is said to whatever is asked."""
    with suppress(BrokenPipeError):  # nobody wants to know any more
        print(json.dumps(facts), flush=True)


def obey_orders(soon: Callable[..., object], obey: Callable[[Facts], Facts]) -> None:
    """In a process: have each order obeyed in the event loop, through ``soon``, and answered."""

    def read() -> None:
        # Not `sys.stdin`, whose lock must be free if the interpreter ends by itself.
        with open(0, closefd=False, encoding="utf-8") as orders:
            for line in orders:
                soon(lambda order: say(obey(order)), json.loads(line))
        os._exit(0)  # whatever the loop is doing

    threading.Thread(target=read, daemon=True).start()


class Child:
    """One of the processes, from the command's side."""

    def __init__(self, name: str, process: trio.Process) -> None:
        self.name = name
        self.process = process
        self._heard = b""

    async def ask(self, **order: object) -> Facts:
        """Give an order and return the answer, or raise `CommandError`: it ended, or is silent."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(trio.BrokenResourceError):  # then there is no answer either
            await self.process.stdin.send_all(json.dumps(order).encode() + b"\n")
        with trio.move_on_after(ANSWER_WITHIN_SECONDS):
            while True:
                piece = await self.process.stdout.receive_some()
                line, end, rest = (self._heard + piece).partition(b"\n")
                if end:
                    self._heard = rest
                    facts: Facts = json.loads(line)
                    if "error" in facts:
                        raise CommandError(f"the {self.name} process: {facts['error']}")
                    return facts
                self._heard = line
                if not piece:
                    raise CommandError(f"the {self.name} process ended early")
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
