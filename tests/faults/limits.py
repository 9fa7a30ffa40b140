# What a process runs against: signals at a high rate, no descriptors left, and how much processor
# time and memory it takes meanwhile.
#
# This file knows nothing of the package.

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator


def open_descriptors() -> dict[int, str]:
    """The descriptors of this process, and what each is."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # The directory's own descriptor is gone by now.
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
    return found


@contextlib.contextmanager
def no_more_descriptors(spare: int = 0) -> Iterator[None]:
    """Let the process open only ``spare`` more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = set(open_descriptors())
    free = [n for n in range(max(used) + spare + 2) if n not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[spare], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def signals(a_second: int) -> Iterator[list[int]]:
    """Interrupt this process that often; the list grows with each signal that was handled."""
    handled: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: handled.append(number))
    signal.siginterrupt(signal.SIGALRM, True)  # System calls return EINTR, none is restarted.
    signal.setitimer(signal.ITIMER_REAL, 1 / a_second, 1 / a_second)
    try:
        yield handled
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def resident_bytes() -> int:
    """The resident size of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def skip_under_a_sanitizer() -> None:
    """Skip what measures memory or processor time: a sanitizer takes much of its own of both."""
    if "ASAN_OPTIONS" in os.environ:
        pytest.skip("a sanitizer takes memory and time of its own")


@attrs.define
class Load:
    """What a stretch of time took of the processor."""

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0

    @property
    def share(self) -> float:
        """The part of one processor that was used, from 0 to 1."""
        return self.cpu_seconds / self.wall_seconds


@contextlib.contextmanager
def measured() -> Iterator[Load]:
    """Measure the processor time of a block."""
    load = Load()
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        yield load
    finally:
        load.cpu_seconds = time.process_time() - cpu
        load.wall_seconds = time.perf_counter() - wall


def leave_out_of_garbage_collection() -> None:
    """Take everything that exists so far out of the collector's sight, for good.

    A whole test run has so many objects that one full collection takes ten milliseconds: a gap in
    every task's turns that a program of the usual size does not have.
    """
    gc.collect()
    gc.freeze()


@attrs.define
class Gap:
    """How long other tasks kept one that always wants to run from running."""

    longest: float = 0.0
    turns: int = 0

    async def watch(self) -> None:
        """Run whenever possible, until cancelled.

        The gap is processor time of this thread, not time on the clock: what another program on
        the machine takes away is not the fault of a task of this one.
        """
        before = time.thread_time()
        while True:
            await trio.lowlevel.checkpoint()
            now = time.thread_time()
            self.longest = max(self.longest, now - before)
            self.turns += 1
            before = now

    async def next_turn(self) -> None:
        """Wait until the watch has had a turn more."""
        turns = self.turns
        while self.turns == turns:
            await trio.lowlevel.checkpoint()
