# How the figures come about: servers that run, and clients that take turns with them.
#
# A server's CPU time is taken before its clients start and after they have ended, a client says its
# own, without what starting Python took.

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..relays._running import clock_ns
from ._certificate import HOST
from ._peer_asyncio import content

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OURS = "snaptun_trio"
HERE = Path(__file__).parent
EXAMPLES = HERE.parents[2] / "docs" / "examples"
PATIENCE = 600.0  # seconds for a client


class FailedError(Exception):
    """A program ended as it should not, or bytes were not those that were sent."""


@dataclass(frozen=True)
class Row:
    """What is moved: each connection has one stream."""

    verb: str
    connections: int
    nbytes: int
    """Of all connections together."""

    @property
    def name(self) -> str:
        """For the first column."""
        return {"get": "to the client", "put": "to the server"}[self.verb]


@dataclass(frozen=True)
class Sitting:
    """One turn of one contender."""

    server_ns: int
    client_ns: int
    seconds: float


def contenders() -> list[str]:
    """Those that can take part here."""
    return [OURS, "asyncio", *(["uvloop"] if find_spec("uvloop") else [])]


def command(name: str, *arguments: str) -> list[str]:
    """The line that starts a contender's server or client."""
    if name != OURS:
        return [sys.executable, "-P", str(HERE / "_peer_asyncio.py"), name, *arguments]
    verb, *rest = arguments
    if verb == "serve":
        return [sys.executable, "-P", str(EXAMPLES / "quic_server.py"), *rest]
    return [sys.executable, "-P", str(HERE / "_clients.py"), *arguments]


@contextlib.contextmanager
def serving(name: str, certificate: str, key: str) -> Iterator[tuple[int, int]]:
    """A server that runs: its process and its port."""
    line = command(name, "serve", HOST, "0", certificate, key)
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        try:
            told = process.stdout.readline().removeprefix("serving on port ")
            if not told:
                raise FailedError(f"the server of {name} does not start")
            yield process.pid, int(told)
            process.terminate()
            process.stdout.read()
            if process.wait(PATIENCE):
                raise FailedError(f"the server of {name} ended with {process.returncode}")
        finally:
            process.kill()


def sit(name: str, server: tuple[int, int], row: Row, authority: str) -> Sitting:
    """Have a contender's client move the bytes, and check their hashes."""
    pid, port = server
    size = row.nbytes // row.connections
    arguments = (HOST, str(port), authority, str(size), str(row.connections))
    before = clock_ns(pid)
    done = subprocess.run(
        command(name, row.verb, *arguments),
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=environment(),
    )
    server_ns = clock_ns(pid) - before
    if done.returncode:
        raise FailedError(f"the client of {name} ended with {done.returncode}")
    told = json.loads(done.stdout)
    check(name, told["hashes"], size, row.connections)
    return Sitting(server_ns, told["cpu_ns"], told["seconds"])


def check(name: str, hashes: Sequence[str], size: int, connections: int) -> None:
    """Raises `FailedError` unless all bytes of all connections arrived."""
    digest = hashlib.sha256()
    for piece in content(size):
        digest.update(piece)
    if hashes != [digest.hexdigest()] * connections:
        raise FailedError(f"{name}: other bytes than were sent")


def environment() -> dict[str, str]:
    """The documentation's programs import one another."""
    return {**os.environ, "PYTHONPATH": str(EXAMPLES)}
