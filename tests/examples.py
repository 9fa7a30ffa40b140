# The programs of docs/examples, for the tests that run them.

from __future__ import annotations

import contextlib
import importlib.util
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING

from . import ends

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"


def example(name: str) -> ModuleType:
    """One file of docs/examples, imported afresh, and with it those that it imports."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
        for imported in set(sys.modules) - before:
            if str(EXAMPLES) in str(getattr(sys.modules[imported], "__file__", None)):
                del sys.modules[imported]
    return module


@contextlib.contextmanager
def program(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A file of docs/examples that runs as a program, and is killed in the end."""
    with _running([sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]) as process:
        yield process


@contextlib.contextmanager
def program_on(sock: socket.socket, name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The same with a socket that is handed down as by systemd: number 3, and whose it is."""
    start = 'exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"'
    command = ["sh", "-c", start, sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    with _running(command, stdin=sock.fileno()) as process:
        yield process


@contextlib.contextmanager
def _running(command: list[str], stdin: int | None = None) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with ends.children_take_ctrl_c():
        process = subprocess.Popen(command, stdin=stdin, stdout=pipe, stderr=pipe, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()  # or leaving the block would wait for it for ever


def first_line(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """The first line that a program prints, which is to match."""
    assert process.stdout is not None
    found = re.fullmatch(pattern, process.stdout.readline())
    assert found is not None
    return found


class Lines:
    """What a program prints, line by line, without waiting for ever."""

    def __init__(self, stream: IO[str] | None) -> None:
        assert stream is not None
        self._stream = stream
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._stream:
            self._lines.put(line.rstrip("\n"))
        self._lines.put("")

    def next(self, patience: float = ends.PATIENCE) -> str:
        """The next line. Raises `queue.Empty` if none comes."""
        return self._lines.get(timeout=patience)

    def rest(self) -> list[str]:
        """All lines to the end."""
        return list(iter(self.next, ""))


def port_in(line: str) -> int:
    """The port that a program says it has."""
    found = re.search(r" port (\d+)$", line)
    assert found is not None, line
    return int(found[1])
