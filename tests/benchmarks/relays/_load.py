# The clients and the far end of a relay: builds load.c and calls it by ctypes.
#
# It knows nothing of relays but their port. Where there is no C compiler `build` says so.

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .._client import on_processor
from .._sittings import CannotError
from .._traffic import DROPS, IP_PKTINFO, UDP_GRO, memory_info, open_socket

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).with_name("load.c")
ROOM = 32 << 20  # bytes; what comes while the thread is busy at the other end has to wait
SIZE = 1200  # bytes of a datagram


@dataclass(frozen=True)
class Plan:
    """What a run is to do: paced if there is no window."""

    clients: int
    """So many take turns, each with a train."""
    first: int = 0
    """The first one's number."""
    window: int = 0
    """So many datagrams are under way at once; one train at least."""
    trains_per_ms: float = 0
    most_trains: int = 1 << 40
    seconds: float = 600
    """The sending ends after this time, or with so many trains."""
    patience: float = 0.25
    """Seconds without an answer at the end, after which what is missing is lost."""
    checks: bool = False
    """Look at every byte and not only at each train's first. It has `most_trains`."""


@dataclass(frozen=True)
class Counts:
    """What a run did, in datagrams."""

    sent: int
    echoed: int
    """What came to the far end."""
    returned: int
    wrong: int
    """What came to another client than its own, or twice, or with other bytes than it left."""
    seconds: float
    """From the first question to the last answer."""
    window: int
    """What is left of the plan's when nothing takes the place of what is lost."""

    @property
    def relayed(self) -> int:
        """How often a datagram went through the relay, in whichever direction."""
        return self.echoed + self.returned

    @property
    def loss(self) -> float:
        """The part of what was sent that did not come back."""
        return max(0.0, 1 - self.returned / self.sent) if self.sent else 0.0


class CPlan(ctypes.Structure):
    """`struct plan`."""

    _fields_ = (
        ("first", ctypes.c_uint32),
        ("clients", ctypes.c_uint32),
        ("window", ctypes.c_uint32),
        ("run", ctypes.c_uint16),
        ("checks", ctypes.c_uint16),
        ("trains_per_ms", ctypes.c_double),
        ("most_trains", ctypes.c_uint64),
        ("most_ns", ctypes.c_uint64),
        ("patience_ns", ctypes.c_uint64),
    )


class CCounts(ctypes.Structure):
    """`struct counts`."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("sent", "echoed", "returned", "wrong", "ns", "window")
    )


def build() -> ctypes.CDLL:
    """Compile the C program and load it. `ImportError` says why that is not possible."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise ImportError("there is no C compiler (cc)")
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "load.so"
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(target), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ImportError(f"{compiler} failed: {done.stderr.strip()}")
        library = ctypes.CDLL(str(target))
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32
    plan, counts = ctypes.POINTER(CPlan), ctypes.POINTER(CCounts)
    library.load_open.argtypes = [number, number, ctypes.c_uint16, size, size]
    library.load_open.restype = pointer
    library.load_close.argtypes, library.load_close.restype = [pointer], None
    library.load_run.argtypes, library.load_run.restype = [pointer, plan, counts], number
    return library


class Ends:
    """The sockets of the clients and of the far end."""

    def __init__(self, library: ctypes.CDLL, near: socket.socket, far: socket.socket) -> None:
        self._library, self._near, self._far = library, near, far
        self._runs = 0
        near.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)

    @property
    def far_port(self) -> int:
        """Where the relay is to send to."""
        port: int = self._far.getsockname()[1]
        return port

    def run(self, relay_port: int, segments: int, plan: Plan) -> Counts:
        """Let the clients send trains of so many datagrams, on the first processor.

        Raises `CannotError` if something was lost in the ends' own buffers, which would be the
        relay's loss in the counts.
        """
        self._runs += 1
        c_plan = CPlan(
            plan.first,
            plan.clients,
            plan.window,
            self._runs % (1 << 16),
            plan.checks,
            plan.trains_per_ms,
            plan.most_trains,
            int(plan.seconds * 1e9),
            int(plan.patience * 1e9),
        )
        counts = CCounts()
        dropped = self._dropped()
        first = min(os.sched_getaffinity(0))
        with self._opened(relay_port, segments) as load, on_processor(first):
            error = self._library.load_run(load, ctypes.byref(c_plan), ctypes.byref(counts))
        if error:
            raise OSError(-error, os.strerror(-error))
        if self._dropped() != dropped:
            raise CannotError("the load's own sockets dropped datagrams")
        return Counts(
            counts.sent,
            counts.echoed,
            counts.returned,
            counts.wrong,
            counts.ns / 1e9,
            counts.window,
        )

    @contextmanager
    def _opened(self, relay_port: int, segments: int) -> Iterator[int]:
        fds = self._near.fileno(), self._far.fileno()
        load: int | None = self._library.load_open(*fds, relay_port, SIZE, segments)
        if load is None:
            raise MemoryError
        try:
            yield load
        finally:
            self._library.load_close(load)

    def _dropped(self) -> int:
        return sum(memory_info(sock)[DROPS] for sock in (self._near, self._far))


@contextmanager
def open_ends(library: ctypes.CDLL) -> Iterator[Ends]:
    """Sockets of their own."""
    with ExitStack() as stack:
        near, far = (
            stack.enter_context(open_socket(socket.AF_INET, host=host, receive_buffer=ROOM))
            for host in ("0.0.0.0", "127.0.0.1")
        )
        yield Ends(library, near, far)
