# What the programs are given to do, and how much of it they did.
#
# One-way traffic is paced, so that what is measured is the price of a datagram and not where a
# program drops: what was lost all the same is told. DNS questions are dnsperf's. This file must not
# know who is measured.

from __future__ import annotations

import random
import re
import socket
import struct
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .._sittings import CannotError
from .._traffic import open_socket
from ..relays._contenders import HOST, find
from ..relays._running import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ._rows import Row

BURSTS_A_SECOND = {1: 2000.0, 32: 500.0}
SENDERS = 8  # sockets, and so peers
PATIENCE = 0.5  # seconds without another datagram, after which what is missing is lost
START_SECONDS = 10.0
A_POLL = 0.005
BACKENDS = 2  # that live; there is one more
QUESTIONS_A_SECOND = 20_000  # more or less, for the length of a sitting
DNSPERF_TIMEOUT = "5"


@dataclass(frozen=True)
class Done:
    """What came of a sitting."""

    wanted: int
    done: int
    rate: float | None = None
    """Answers a second, where that was up to the program."""


class Load(Protocol):
    """Gives one program of a row something to do."""

    def arguments(self, directory: Path) -> Sequence[str]:
        """The program's, after its own host and port."""

    def run(self, port: int, directory: Path, seconds: float) -> Done:
        """Let it do something for more or less so long."""


def wait_for(count: Callable[[], int], wanted: int) -> int:
    """Until so many are there, or no more come."""
    last, when = count(), time.monotonic()
    while last < wanted and time.monotonic() < when + PATIENCE:
        time.sleep(A_POLL)
        now = count()
        if now != last:
            last, when = now, time.monotonic()
    return last


def paced(
    port: int, messages: Sequence[bytes], together: int, between: Callable[[], object]
) -> None:
    """Send, so many at a time, from several peers in turn."""
    with ExitStack() as stack:
        senders = [stack.enter_context(open_socket(socket.AF_INET)) for _ in range(SENDERS)]
        for sender in senders:
            sender.connect((HOST, port))
        due = time.perf_counter()
        for start in range(0, len(messages), together):
            for number, message in enumerate(messages[start : start + together], start):
                senders[number % SENDERS].send(message)
            between()
            due += 1 / BURSTS_A_SECOND[together]
            time.sleep(max(0.0, due - time.perf_counter()))


class Written:
    """One-way traffic of which each datagram is written to a file.

    Args:
      row: how many come together.
      name: the file's. What the program prints is in ``output``.
      make: makes the datagram of a number.
      count: how many there are in a piece that was added to the file.
    """

    def __init__(
        self, row: Row, name: str, make: Callable[[int], bytes], count: Callable[[bytes], int]
    ) -> None:
        self._together, self._name = row.together, name
        self._make, self._count = make, count
        self._passes_name = name != "output"

    def arguments(self, directory: Path) -> Sequence[str]:
        """The file's name, unless it is what the program prints."""
        return [str(directory / self._name)] if self._passes_name else []

    def run(self, port: int, directory: Path, seconds: float) -> Done:
        """Send, and look into the file."""
        wanted = round(seconds * BURSTS_A_SECOND[self._together]) * self._together
        path = directory / self._name
        start = path.stat().st_size

        def count() -> int:
            with path.open("rb") as file:
                file.seek(start)
                return self._count(file.read())

        messages = [self._make(number) for number in range(wanted)]
        paced(port, messages, self._together, lambda: None)
        return Done(wanted, wait_for(count, wanted))


def syslog(number: int) -> bytes:
    """A message as `logger` makes them."""
    return (
        b"<30>1 2026-11-26T07:00:00.%06d+00:00 host-7 worker 4711 - "
        b'[timeQuality tzKnown="1" isSynced="1"] request %d done in 12 ms' % (number, number)
    )


def rtp(number: int) -> bytes:
    """A packet of G.711, 20 ms."""
    return struct.pack("!BBHII", 0x80, 0, number % 65_536, 160 * number, 0x5EED) + bytes(160)


RTP_RECORD = 16 + 28 + len(rtp(0))  # what is written of each


@contextmanager
def collector(row: Row) -> Iterator[Load]:
    """What it printed is counted in lines."""
    yield Written(row, "output", syslog, lambda fresh: fresh.count(b" done in 12 ms\n"))


@contextmanager
def recorder(row: Row) -> Iterator[Load]:
    """What it wrote is counted in bytes."""
    yield Written(row, "recorded.pcap", rtp, lambda fresh: len(fresh) // RTP_RECORD)


class FanOut:
    """Backends that count, and one that is dead."""

    def __init__(self, row: Row, sinks: Sequence[socket.socket], dead: socket.socket) -> None:
        self._together, self._sinks = row.together, sinks
        self._targets = [f"{HOST}:{sock.getsockname()[1]}" for sock in (*sinks, dead)]

    def arguments(self, directory: Path) -> Sequence[str]:
        """The backends."""
        return self._targets

    def run(self, port: int, directory: Path, seconds: float) -> Done:
        """Send, and count what every living backend has got."""
        wanted = round(seconds * BURSTS_A_SECOND[self._together]) * self._together
        chance = random.Random(wanted)
        messages = [
            b"app.%d.requests:%d|c" % (chance.randrange(1000), chance.randrange(10**6))
            for _ in range(wanted)
        ]
        counts = [0] * len(self._sinks)

        def count() -> int:
            for place, sink in enumerate(self._sinks):
                try:
                    while True:
                        sink.recv(512)
                        counts[place] += 1
                except BlockingIOError:
                    continue
            return min(counts)

        paced(port, messages, self._together, count)
        return Done(wanted, wait_for(count, wanted))


@contextmanager
def fan_out(row: Row) -> Iterator[Load]:
    """Sockets for the backends. The dead one's hears a peer only that never speaks."""
    with ExitStack() as stack:
        *sinks, dead = [
            stack.enter_context(open_socket(socket.AF_INET)) for _ in range(BACKENDS + 1)
        ]
        dead.connect((HOST, 9))
        yield FanOut(row, sinks, dead)


class Dnsperf:
    """dnsperf asks, with so many questions outstanding."""

    def __init__(self, row: Row, names: Sequence[str], directory: Path, *more: str) -> None:
        self._together, self._clients = row.together, row.clients
        self._names, self._more = len(names), more
        self._questions = directory / "questions"
        self._questions.write_text("".join(f"{name} A\n" for name in names), encoding="ascii")

    def arguments(self, directory: Path) -> Sequence[str]:
        """Where the server is, of a forwarder."""
        return self._more

    def run(self, port: int, directory: Path, seconds: float) -> Done:
        """Its own report says what became of the questions."""
        runs = max(1, round(seconds * QUESTIONS_A_SECOND / self._names))
        command = [str(find("dnsperf")), "-s", HOST, "-p", str(port), "-d", str(self._questions)]
        command += ["-n", str(runs), "-c", str(self._clients), "-T", "1", "-q", str(self._together)]
        done = subprocess.run(
            [*command, "-t", DNSPERF_TIMEOUT], capture_output=True, text=True, check=False
        )
        found = dict(
            re.findall(r"^ *(Queries \w+|Queries per second): +([\d.]+)", done.stdout, re.MULTILINE)
        )
        answered = re.search(r"NOERROR (\d+)", done.stdout)
        if "Queries per second" not in found:
            raise CannotError(f"dnsperf: {done.stderr.strip() or done.stdout.strip()}"[-200:])
        return Done(
            int(found["Queries sent"]),
            int(answered[1]) if answered else 0,
            float(found["Queries per second"]),
        )


def needs(*programs: str) -> None:
    """Raises `CannotError` unless they are installed."""
    missing = [name for name in programs if not find(name)]
    if missing:
        raise CannotError(f"not installed: {', '.join(missing)}")


@contextmanager
def server(row: Row, directory: Path) -> Iterator[Load]:
    """Questions for the names that it knows."""
    needs("dnsperf")
    yield Dnsperf(row, ["www.example.org", "mail.example.org"], directory)


@contextmanager
def forwarder(row: Row, directory: Path) -> Iterator[Load]:
    """Questions for dnsmasq, which knows all names of a domain."""
    needs("dnsperf", "dnsmasq")
    port = free_port()
    command = [str(find("dnsmasq")), "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="]
    command += [f"--listen-address={HOST}", "--bind-interfaces", f"--port={port}", "--no-hosts"]
    command += ["--no-resolv", "--address=/example.test/192.0.2.1", "--user="]
    nothing = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=nothing, stderr=nothing) as process:
        try:
            _wait_until_served(process, port)
            names = ["a.example.test", "b.example.test"]
            yield Dnsperf(row, names, directory, HOST, str(port))
        finally:
            process.kill()


def _wait_until_served(process: subprocess.Popen[bytes], port: int) -> None:
    """Until it can be connected to: it serves TCP as well. Raises `CannotError` if it cannot be."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((HOST, port)).close()
        except OSError:
            time.sleep(A_POLL)
        else:
            return
    raise CannotError("dnsmasq does not start")


@contextmanager
def opened(row: Row, directory: Path) -> Iterator[Load]:
    """The load of a row."""
    with ExitStack() as stack:
        if row.program == "syslog_collector":
            yield stack.enter_context(collector(row))
        elif row.program == "rtp_recorder":
            yield stack.enter_context(recorder(row))
        elif row.program == "statsd_fan_out":
            yield stack.enter_context(fan_out(row))
        elif row.program == "dns_forwarder":
            yield stack.enter_context(forwarder(row, directory))
        else:
            yield stack.enter_context(server(row, directory))
