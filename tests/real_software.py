# Programs that nobody here wrote, for tests that are skipped where they are not installed.
#
# Each is started on loopback, on a port that was free, and ended. Their own reports say what was
# lost.

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from . import ends

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVER = "127.0.0.1"


def needs(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def free_port(host: str, *kinds: socket.SocketKind) -> int:
    """A port that is free for all these kinds."""
    while True:
        with contextlib.ExitStack() as stack:
            first, *others = [
                stack.enter_context(socket.socket(socket.AF_INET, kind)) for kind in kinds
            ]
            first.bind((host, 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError):
                for other in others:
                    other.bind((host, port))
                return port


@contextlib.contextmanager
def started(command: list[str], host: str, port: int) -> Iterator[None]:
    """A server of TCP as well, once it can be connected to."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while True:
                assert server.poll() is None, "the server ended"
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection((host, port)).close()
                    break
            yield
        finally:
            server.kill()


@contextlib.contextmanager
def dnsmasq() -> Iterator[int]:
    """A DNS server that knows every name in example.test: its port."""
    port = free_port(SERVER, socket.SOCK_DGRAM, socket.SOCK_STREAM)
    server = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="]
    server += [f"--listen-address={SERVER}", "--bind-interfaces", f"--port={port}", "--no-hosts"]
    server += ["--no-resolv", "--address=/example.test/192.0.2.1", "--user="]
    with started(server, SERVER, port):
        yield port


def dnsperf(host: str, port: int, directory: Path, *, queries: int, clients: int) -> None:
    """Ask so many times: each question is answered, and with an address."""
    questions = directory / "questions"
    questions.write_text("a.example.test A\nb.example.test A\n", encoding="ascii")
    command = ["dnsperf", "-s", host, "-p", str(port), "-d", str(questions)]
    command += ["-n", str(queries // 2), "-c", str(clients), "-T", "1", "-q", "50"]
    command += ["-t", str(ends.PATIENCE)]  # a busy machine is no reason to give a query up
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = dict(re.findall(r"^ *Queries (sent|completed|lost): +(\d+)", report, re.MULTILINE))
    assert figures == {"sent": f"{queries}", "completed": f"{queries}", "lost": "0"}
    assert f"NOERROR {queries} (100.00%)" in report
