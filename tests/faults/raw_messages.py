# Messages as no sound kernel would report them, handed to the compiled part in numbers.
#
# Names and control messages are random, or right ones with something wrong about them, and so are
# the lengths that are told of them. Up to 1024 go into one call, whose headers are written column
# by column: they are laid out as recvmmsg(2) says, where a word has eight bytes.

from __future__ import annotations

import ctypes
import random
import struct
from array import array
from typing import NamedTuple

SLOT = 2048
NAME, CONTROL = 32, 256
MOST = 1024
PATTERN = bytes(range(251)) * (SLOT // 251 + 2)

_HEADER = 64
_GARBAGE = b"\xa5"

GRO = (17, 104)
LEVELS = (0, 1, 17, 41, 132, -1, 0x7FFF_FFFF)
KINDS = (1, 2, 8, 11, 35, 50, 67, 103, 104, -1)
STRIDES = (
    0,
    1,
    2,
    3,
    100,
    100,
    1200,
    SLOT - 1,
    SLOT,
    SLOT + 1,
    65_535,
    -1,
    -100,
    2**31 - 1,
    -(2**31),
)
FLAGS = (0, 0, 0, 0, 0, 0, 0, 0x20, 0x08, 0x28, 0x80, -1)


class Raw(NamedTuple):
    """One message: what lies in its buffers, and what is told of it."""

    nbytes: int
    """msg_len."""
    name: bytes
    """All of its buffer, garbage at the end."""
    name_length: int
    control: bytes
    """All of its buffer where more is told of than is there, else only what was written."""
    control_length: int
    flags: int


def control_message(rng: random.Random) -> bytes:
    """A whole control message, of those that we read or of any others; its size may be a lie."""
    kind = rng.randrange(8)
    if kind < 4:
        level, number = GRO
        data = struct.pack("=i", rng.choice(STRIDES)) + rng.randbytes(rng.choice((0, 0, 0, 4, 9)))
    elif kind == 4:
        level, number, data = 0, 1, rng.randbytes(1)
    elif kind == 5:
        level, number, data = 0, 8, struct.pack("=i4s4s", 3, b"\x7f\0\0\1", rng.randbytes(4))
    else:
        level, number = rng.choice(LEVELS), rng.choice(KINDS)
        data = rng.randbytes(rng.choice((0, 1, 3, 4, 8, 12, 16, 20, 40)))
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data) + 1)]
    length = 16 + len(data)
    if rng.random() < 0.1:
        length = rng.choice((*range(17), length - 1, length + 1, 255, 2**31, 2**63, 2**64 - 1))
    return struct.pack("=Qii", length, level, number) + data + bytes(-len(data) % 8)


def controls(rng: random.Random) -> bytes:
    """Some of them, the end cut anywhere now and then."""
    whole = b"".join(control_message(rng) for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 6))))
    if rng.random() < 0.1:
        whole = whole[: rng.randrange(len(whole) + 1)]
    return whole[:CONTROL]


def name(rng: random.Random) -> bytes:
    """A raw name, right or of any length and family."""
    family = rng.choice((2, 2, 10, 10, 0, 1, rng.randrange(0x10000)))
    size = {2: 14, 10: 26}.get(family, 20) if rng.random() < 0.7 else rng.randrange(NAME - 1)
    return (struct.pack("=H", family) + rng.randbytes(size))[: rng.choice((NAME, NAME, NAME, 1))]


class Source:
    """Makes messages, most of them of a stock in which the choices were made beforehand."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self._controls = [controls(rng) for _ in range(20_000)]
        self._names = [name(rng) for _ in range(5000)]

    def message(self) -> Raw:
        """The next one."""
        choice = self.rng.random
        told = int(choice() * 300) if choice() < 0.8 else int(choice() * 1.2 * SLOT)
        if choice() < 0.001:
            told = self.rng.choice((SLOT, SLOT + 1, 65_535, 2**31, 2**32 - 1))
        peer = self._names[int(choice() * 5000)]
        peer_told = len(peer)
        control = self._controls[int(choice() * 20_000)]
        lie = choice()
        if lie < 0.2:  # bytes of it are others, or it is random as a whole
            control = (
                self._changed(control) if lie < 0.19 else self.rng.randbytes(int(choice() * 257))
            )
        control_told = len(control)
        if lie > 0.98:
            if lie > 0.99:
                control_told = int(choice() * (control_told + 1))
            else:
                control = control.ljust(CONTROL, _GARBAGE)
                control_told = self.rng.choice((CONTROL, CONTROL + 1, 2**31, 2**64 - 1))
            peer_told = self.rng.choice((0, 1, 16, 28, NAME, NAME + 1, 2**16, 2**16 + 1, 2**32 - 1))
        flags = FLAGS[int(choice() * len(FLAGS))] if lie < 0.01 else 0
        return Raw(told, peer.ljust(NAME, _GARBAGE), peer_told, control, control_told, flags)

    def _changed(self, control: bytes) -> bytes:
        if not control:
            return control
        changed = bytearray(control)
        for _ in range(int(self.rng.random() * 3) + 1):
            at = int(self.rng.random() * len(changed))
            if at % 8 < 4 or self.rng.random() < 0.2:
                changed[at] = int(self.rng.random() * 256)
        return bytes(changed)


class Handover:
    """Stands in the place of recvmmsg, and hands over ``messages``."""

    def __init__(self) -> None:
        self.messages: list[Raw] = []
        self._filled: set[int] = set()

    def receive(self, fd: int, address: int, count: int, flags: int, timeout: None) -> int:
        messages = self.messages
        assert count == len(messages)
        buffer = (ctypes.c_char * (_HEADER * count)).from_address(address)
        raw = memoryview(buffer).cast("B")
        halves, words = raw.cast("I"), raw.cast("Q")
        # What the call before left in them must not be what this one is offered.
        assert halves[2::16].tolist() == [NAME] * count
        assert words[5::8].tolist() == [CONTROL] * count
        assert not any(halves[12::16].tolist())
        for at, message in zip(words[0::8].tolist(), messages):
            ctypes.memmove(at, message.name, NAME)
        for at, message in zip(words[4::8].tolist(), messages):
            ctypes.memmove(at, message.control, len(message.control))
        for index, at in enumerate(words[2::8].tolist()):
            base = ctypes.c_uint64.from_address(at).value
            if base not in self._filled:  # a slab stays what it is: nobody else writes to it
                self._filled.add(base)
                ctypes.memmove(base, PATTERN[index % 251 :], SLOT)
        halves[2::16] = array("I", [message.name_length for message in messages])
        words[5::8] = array("Q", [message.control_length for message in messages])
        halves[12::16] = array("I", [message.flags & 0xFFFF_FFFF for message in messages])
        halves[14::16] = array("I", [message.nbytes for message in messages])
        return count
