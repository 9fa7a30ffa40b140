# A relay that runs: started on a processor of its own, asked for its CPU time, ended.
#
# Its CPU time is that of everything it started, too. A live process has a clock that counts its
# nanoseconds, of threads that have ended as well; children that have ended and were waited for are
# in their parent's account, which the kernel keeps in ticks.

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .._client import on_processor
from .._sittings import CannotError
from ._contenders import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._contenders import Contender

END_SECONDS = 5.0
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that nobody has, for a program that wants to be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def family(ancestor: int) -> dict[int, int]:
    """A process and all its descendants, with the ticks of those that each has waited for."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has just ended
        fields = stat.rpartition(")")[2].split()  # from the third, the state, on
        ticks[int(entry.name)] = int(fields[13]) + int(fields[14])
        children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [ancestor]
    for pid in found:
        found += children.get(pid, ())
    return {pid: ticks.get(pid, 0) for pid in found}


def clock_ns(pid: int) -> int:
    """A process's CPU time; none once it has ended."""
    try:
        return time.clock_gettime_ns(~pid << 3 | 2)  # CPUCLOCK_SCHED, see clock_getcpuclockid(3)
    except OSError:
        return 0


class Relay:
    """A contender that runs."""

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], port: int, output: Path
    ) -> None:
        self.name, self.port = name, port
        self._process, self._output = process, output

    def cpu_ns(self) -> int:
        """What it and its descendants have used so far."""
        members = family(self._process.pid)
        return sum(clock_ns(pid) + ticks * TICK_NS for pid, ticks in members.items())

    def failed(self, reason: str) -> CannotError:
        """An error that has the last line of what it printed, frames of tracebacks aside."""
        printed = self._output.read_text(encoding="utf-8", errors="replace")
        said = [line.strip(" |") for line in printed.splitlines() if re.search(r"\w", line)]
        return CannotError(": ".join([reason, *said[-1:]]))

    def check_alive(self) -> None:
        """Raises `CannotError` if it has ended."""
        if self._process.poll() is not None:
            raise self.failed(f"it ended with {self._process.returncode}")

    def end(self) -> None:
        """SIGTERM, as a user would; then to children that it left; what stays on is killed."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + END_SECONDS
            if not self._signal(number):
                break
            while self._signal(0) and time.monotonic() < deadline:
                self._process.poll()
                time.sleep(0.01)
        self._process.wait(END_SECONDS)

    def _signal(self, number: int) -> bool:
        """To the group that was started for it. Whether there is anyone left."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True


@contextmanager
def running(contender: Contender, target_port: int) -> Iterator[Relay]:
    """Start it on the last processor, and end it. Raises `CannotError` if it does not start."""
    listen = free_port()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        command = contender.command(f"{HOST}:{listen}", f"{HOST}:{target_port}", directory)
        output = directory / "output"
        with output.open("wb") as file, on_processor(max(os.sched_getaffinity(0))):
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise CannotError(f"it does not start: {error}") from error
        relay = Relay(contender.name, process, listen, output)
        try:
            yield relay
        finally:
            relay.end()
