# The floor as a contender: builds floor.c and calls it by ctypes, once a turn.
#
# It knows the C functions and the scene. Where there is no C compiler the import fails and says so.

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from ._traffic import UDP_GRO, Address, Load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._scene import Scene

SOURCE = Path(__file__).with_name("floor.c")
NAME = "floor"


def build() -> ctypes.CDLL:
    """Compile the C program and load it. `ImportError` says why that is not possible."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise ImportError("there is no C compiler (cc)")
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "floor.so"
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(target), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ImportError(f"{compiler} failed: {done.stderr.strip()}")
        library = ctypes.CDLL(str(target))
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.floor_open.argtypes, library.floor_open.restype = [number], pointer
    library.floor_close.argtypes, library.floor_close.restype = [pointer], None
    for name, arguments in {
        "floor_receive": [pointer, number, ctypes.c_long],
        "floor_receive_all": [pointer, number],
        "floor_pump": [pointer, number, number, ctypes.c_long, ctypes.c_char_p, ctypes.c_uint],
        "floor_plan": [pointer, number, *[ctypes.c_char_p] * 3, ctypes.c_uint],
        "floor_send": [pointer, number, number],
        "floor_echo_one": [pointer, number, ctypes.c_long],
    }.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_long
    return library


def sockaddr(family: socket.AddressFamily, address: Address) -> bytes:
    """The address as the kernel wants it."""
    host = socket.inet_pton(family, address[0])
    if family == socket.AF_INET:
        return struct.pack("=H", family) + struct.pack("!H4s8x", address[1], host)
    return struct.pack("=H", family) + struct.pack("!HI16sI", address[1], 0, host, 0)


LIBRARY = build()


@contextmanager
def open_floor(slots: int) -> Iterator[int]:
    """The C program's memory for so many messages a call."""
    floor: int | None = LIBRARY.floor_open(slots)
    if floor is None:
        raise MemoryError
    try:
        yield floor
    finally:
        LIBRARY.floor_close(floor)


def receive(scene: Scene) -> None:
    """Receive calls, and nothing done with what came."""
    scene.sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    fd = scene.sock.fileno()
    with open_floor(scene.shape.floor_slots) as floor:
        for turn in scene.receiving_turns():
            check(LIBRARY.floor_receive(floor, fd, turn.nbytes))


def pump(scene: Scene, slots: int | None = None) -> None:
    """Everything that came in goes on to the sink, so many messages a call; as many as suit the
    shape best, unless told."""
    target = sockaddr(scene.sock.family, scene.sink_address)
    _pump(scene, scene.forwarding_turns(), target, slots or scene.shape.floor_slots)


def echo(scene: Scene) -> None:
    """Everything that came in goes back to where it came from."""
    _pump(scene, scene.answering_turns(), None, scene.shape.floor_slots)


def _pump(scene: Scene, turns: Iterator[Load], target: bytes | None, slots: int) -> None:
    scene.sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    fd, pump = scene.sock.fileno(), LIBRARY.floor_pump
    with open_floor(slots) as floor:
        for turn in turns:
            check(pump(floor, fd, fd, turn.nbytes, target, len(target or b"")))


def send(scene: Scene) -> None:
    """The batch was laid out beforehand; only the send calls are made."""
    pattern = scene.shape.pattern(scene.shape.send_trains)
    names = [sockaddr(scene.sock.family, address) for address in scene.targets]
    lengths = struct.pack(f"{len(pattern)}I", *(size * n for size, n in pattern))
    sizes = struct.pack(f"{len(pattern)}H", *(size for size, _ in pattern))
    targets = b"".join(islice(cycle(names), len(pattern)))
    with open_floor(len(pattern)) as floor:
        messages = LIBRARY.floor_plan(floor, len(pattern), lengths, sizes, targets, len(names[0]))
        if messages < 0:
            raise ValueError("the shape's batch is too large for the floor")
        for _ in scene.sending_turns():
            check(LIBRARY.floor_send(floor, scene.sock.fileno(), messages))


def check(result: int) -> None:
    """Raise what a C function returned as -errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))


WORKS: dict[str, Callable[[Scene], None]] = {
    work.__name__: work for work in (receive, send, pump, echo)
}
