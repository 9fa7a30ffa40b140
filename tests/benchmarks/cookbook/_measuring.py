# How the figures come about: the programs of a row take turns, round by round, under one load.
#
# All of them run at once, each on the last processor, and wait for their turns; who waits costs
# nothing. The load is on the first. The CPU time of a program is taken while nothing is under way.

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...examples import EXAMPLES
from .. import _sittings
from .._client import on_processor
from .._sittings import CannotError, Effort
from ..relays._contenders import HOST, Contender
from ..relays._running import running
from . import _loads
from ._rows import ANSWER, OURS, PUMP, TASKS, TRIO_SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..relays._running import Relay
    from ._loads import Load
    from ._rows import Row

START_SECONDS = 20.0
TRIES = 5
A_POLL = 0.005
WARM_UP = 0.2  # seconds, at most


SERVERS = {
    ANSWER: "_answering_server.py",
    PUMP: "_pump_server.py",
    TRIO_SOCKET: "_peer_trio_socket.py",
}


@dataclass(frozen=True)
class Sitting:
    """One turn of one program."""

    cpu_ns: int
    wanted: int
    done: int
    rate: float | None

    @property
    def us_each(self) -> float:
        """CPU microseconds a datagram, or a question."""
        return self.cpu_ns / 1000 / max(1, self.done)

    @property
    def loss(self) -> float:
        """The part of what was sent that nothing came of."""
        return 1 - self.done / self.wanted


class Measured(_sittings.Measured["Row", Sitting]):
    """A row's sittings, by contender."""


def command(row: Row, name: str) -> list[str]:
    """A contender's program, without its arguments."""
    here = Path(__file__).parent
    if name == OURS:
        return [str(EXAMPLES / f"{row.program}.py")]
    if name in SERVERS:
        return [str(here / SERVERS[name])]
    if name in TASKS:
        return [str(here / "_peer_protocols.py"), name.partition(",")[0], "dns_server with tasks"]
    return [str(here / "_peer_protocols.py"), name, row.program]


class Program:
    """A contender that runs."""

    def __init__(self, running: Relay, load: Load, directory: Path) -> None:
        self.name = running.name
        self._running, self._load, self._directory = running, load, directory

    def wait_until_ready(self) -> None:
        """Until it says so. Raises `CannotError` if it does not."""
        deadline = time.monotonic() + START_SECONDS
        output = self._directory / "output"
        while not re.search(rb" port \d+\s", output.read_bytes()):
            self._running.check_alive()
            if time.monotonic() > deadline:
                raise self._running.failed("it does not say that it runs")
            time.sleep(A_POLL)
        self._idle_cpu_ns()

    def _idle_cpu_ns(self) -> int:
        """Its CPU time once it does nothing any more."""
        before = -1
        while (now := self._running.cpu_ns()) != before:
            before = now
            time.sleep(2 * A_POLL)
        return now

    def sit(self, seconds: float) -> Sitting:
        """Let it do something."""
        before = self._idle_cpu_ns()
        with on_processor(min(os.sched_getaffinity(0))):
            done = self._load.run(self._running.port, self._directory, seconds)
        self._running.check_alive()
        if not done.done:
            raise self._running.failed("nothing came out of it")
        return Sitting(self._idle_cpu_ns() - before, done.wanted, done.done, done.rate)


@contextmanager
def started(row: Row, name: str, load: Load) -> Iterator[Program]:
    """Start a contender on a port that was free, and again where another one was quicker."""
    used: list[Path] = []

    def start(listen: str, target: str, directory: Path) -> Sequence[str]:
        used.append(directory)
        arguments = [HOST, listen.rpartition(":")[2], *load.arguments(directory)]
        return [sys.executable, *command(row, name), *arguments]

    for left in reversed(range(TRIES)):
        with running(Contender(name, start, lambda: None), 0) as process:
            program = Program(process, load, used[-1])
            try:
                program.wait_until_ready()
            except CannotError as error:
                if left and os.strerror(errno.EADDRINUSE) in str(error):
                    continue
                raise
            yield program
            return


def measure_row(row: Row, effort: Effort, only: Sequence[str] | None) -> Measured:
    """Measure a row, in each round all contenders."""
    measured = Measured(row)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contenders = [name for name in row.contenders() if not only or name in only]
        try:
            with on_processor(min(os.sched_getaffinity(0))):  # of what the load starts as well
                load = stack.enter_context(_loads.opened(row, directory))
        except CannotError as error:
            measured.cannot = dict.fromkeys(contenders, str(error))
            return measured
        programs = []
        for name in contenders:
            with measured.noting(name):
                program = stack.enter_context(started(row, name, load))
                program.sit(min(WARM_UP, effort.seconds))
                programs.append(program)
        for _ in range(effort.rounds):
            for program in programs:
                if program.name in measured.cannot:
                    continue
                with measured.noting(program.name):
                    measured.add(program.name, program.sit(effort.seconds))
    return measured


def measure(
    rows: Sequence[Row],
    effort: Effort,
    only: Sequence[str] | None,
    progress: Callable[[str], None],
) -> Iterator[Measured]:
    """Measure all the rows, one after the other."""
    for row in rows:
        progress(row.id)
        yield measure_row(row, effort, only)
