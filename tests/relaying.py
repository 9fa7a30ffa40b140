# `snaptun-trio relay` as a process, and what the tests have in front of it and behind.
#
# Nothing is timed: whoever waits reads from a pipe or a socket. If what is waited for does not come
# the process is killed after `PATIENCE`, and the pipe ends.

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

import snaptun_trio

from . import ends

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator

    from snaptun_trio import Address, UdpRelay

PACKAGE_PARENT = Path(snaptun_trio.__file__).resolve().parents[1]
COMMAND = (sys.executable, "-P", "-m", "snaptun_trio", "relay")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PACKAGE_PARENT), "PYTHONIOENCODING": "utf-8"}
DIRECTIONS = ("to_targets", "to_clients")

Facts = dict[str, Any]


@attrs.define
class Relay:
    """A relay that runs.

    Attributes:
      port: where clients send to.
      head: what it says of itself.
    """

    process: subprocess.Popen[str]
    port: int = 0
    head: str = ""

    def read_json(self) -> Iterator[Facts]:
        """What it says with --json, up to its end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield flat(json.loads(line))

    def read_until(self, wanted: Callable[[Facts], bool]) -> Facts:
        """The first object that is as it should be."""
        for facts in self.read_json():
            if wanted(facts):
                return facts
        raise AssertionError("it ended, and never said so")

    def news(self) -> str:
        """The next line on standard error."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def workers(self) -> list[int]:
        """The processes of the workers."""
        return children_of(self.process.pid)

    def client(self) -> socket.socket:
        """A socket that is connected to it."""
        sock = ends.bound_socket()
        sock.connect(("127.0.0.1", self.port))
        return sock

    def end(self, by: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """End it by a signal: its exit code, and the rest of what it says."""
        self.process.send_signal(by)
        out, err = self.process.communicate()
        return self.process.returncode, out, err

    @property
    def metrics(self) -> tuple[str, int]:
        """Where the metrics are."""
        return where_of(self.head)


@contextlib.contextmanager
def open_relay(*arguments: str, listen: str = "127.0.0.1:0") -> Iterator[Relay]:
    """Start a relay, and wait until it relays."""
    with (
        ends.children_take_ctrl_c(),
        subprocess.Popen(
            [*COMMAND, listen, *arguments],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        ) as process,
    ):
        limit = threading.Timer(ends.PATIENCE, process.kill)
        limit.daemon = True
        limit.start()
        try:
            relay = Relay(process)
            if "--json" in arguments:
                relay.head = next(relay.read_json())["head"]
            else:
                assert process.stdout is not None
                relay.head = process.stdout.readline()
            found = re.match(r"relaying on \S+:(\d+) to ", relay.head)
            assert found is not None, relay.head
            relay.port = int(found[1])
            yield relay
        finally:
            limit.cancel()
            process.kill()


def run_relay(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A relay that should end by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=ends.PATIENCE,
        check=False,
    )


def flat(facts: Facts, before: str = "") -> Facts:
    """All in one dictionary: "to_targets.dropped.socket full"."""
    found: Facts = {}
    for key, value in facts.items():
        found |= (
            flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
        )
    return found


def at(address: Address) -> str:
    """An address, for the command line."""
    return f"{address[0]}:{address[1]}"


def children_of(parent: int) -> list[int]:
    """The processes that one has started."""
    threads = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for thread in threads for pid in thread.read_text("ascii").split()]


@contextlib.asynccontextmanager
async def running(relay: UdpRelay) -> AsyncIterator[Callable[[], list[int]]]:
    """A relay that runs until the block ends; gives what tells of its workers' processes."""
    before = set(children_of(os.getpid()))
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        yield lambda: [pid for pid in children_of(os.getpid()) if pid not in before]
        nursery.cancel_scope.cancel()


def freeze(pid: int) -> None:
    """Stop a process, and wait until it does nothing more. SIGCONT lets it go on."""
    os.kill(pid, signal.SIGSTOP)
    states = Path(f"/proc/{pid}/task")
    while not all(
        state.read_text("ascii").rpartition(") ")[2].startswith("T")
        for state in states.glob("*/stat")
    ):
        pass


def receive(sock: socket.socket) -> tuple[bytes, Address]:
    """The next datagram, and where it came from."""
    ends.wait_until_readable(sock)
    packet, address = sock.recvfrom(65_535)
    return packet, address


def ask(client: socket.socket, target: socket.socket, question: bytes = b"hello") -> Address:
    """A question goes all the way, and an answer back; returns whom the target saw."""
    client.send(question)
    packet, source = receive(target)
    assert packet == question
    target.sendto(b"to " + question, source)
    assert receive(client)[0] == b"to " + question
    return source


def where_of(told: str) -> tuple[str, int]:
    """The address of the metrics, on this machine."""
    found = re.search(r"metrics on http://.*:(\d+)/metrics", told)
    assert found is not None
    return "127.0.0.1", int(found[1])


def get(where: tuple[str, int], path: str) -> tuple[int, str]:
    """What is served there."""
    connection = http.client.HTTPConnection(*where, timeout=ends.PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def status_of(where: tuple[str, int], path: str) -> int:
    """Whether it is."""
    return get(where, path)[0]


def check_sums(facts: Facts) -> None:
    """What the classes `RelayFlow` and `RelayStatistics` promise holds for sums as well."""
    for way in DIRECTIONS:
        dropped = sum(count for name, count in facts.items() if name.startswith(f"{way}.dropped."))
        waiting = facts.get(f"{way}.datagrams_waiting", 0)
        came = facts[f"{way}.datagrams_in"] + facts[f"{way}.datagrams_added"]
        assert came == facts[f"{way}.datagrams_out"] + dropped + waiting, facts
    reasons = ("expired", "evicted", "moved", "failed", "closed")
    gone = sum(facts[f"sessions_{reason}"] for reason in reasons)
    assert facts["sessions_created"] == facts.get("sessions", 0) + gone, facts
