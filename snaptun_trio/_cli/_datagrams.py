# What the datagrams of a path carry, so that at its end one can tell which each is and that every
# byte of it arrived, and the counts of what did. This file knows no socket and no clock.
#
#     filler ............ | number (8 bytes) | CRC-32 of all that stands before (4 bytes)
#
# Number and checksum stand last so that the checksum of the filler is taken once and only continued
# over each number.

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Any
from zlib import crc32

import attrs

if TYPE_CHECKING:
    from .. import PacketTrain

TRAILER = struct.Struct("<QI")
SMALLEST = TRAILER.size
# The CRC-32 of anything followed by its own CRC-32, least significant byte first, is this number,
# whatever the start value. So one pass over a whole datagram checks it.
RESIDUE = 0x2144DF1C


class TrainMaker:
    """Makes trains of numbered datagrams. ``salt`` makes those of another run not pass."""

    def __init__(self, size: int, length: int, salt: int) -> None:
        filler = random.Random(salt).randbytes(size - SMALLEST)
        self._train = bytearray((filler + bytes(SMALLEST)) * length)
        self._trailers = range(len(filler), size * length, size)
        self._checksum = crc32(filler, salt)

    def make(self, first: int) -> bytes:
        """The train whose first datagram has the number ``first``."""
        for number, place in enumerate(self._trailers, first):
            checksum = crc32(number.to_bytes(8, "little"), self._checksum)
            TRAILER.pack_into(self._train, place, number, checksum)
        return bytes(self._train)


@attrs.define
class Arrivals:
    """Counts what arrives."""

    delivered: int = 0
    """Datagrams that arrived as they were sent, each counted once."""
    duplicates: int = 0
    corrupt: int = 0

    def take(self, train: PacketTrain[Any]) -> None:
        """Count a train."""
        self.delivered += len(train)


@attrs.define
class CheckedArrivals(Arrivals):
    """Looks at each datagram of a `TrainMaker` with the same ``salt``."""

    salt: int = 0
    _seen: bytearray = attrs.field(factory=bytearray, init=False)  # by number, 1 if it is

    def take(self, train: PacketTrain[Any]) -> None:
        for packet in train:
            number = number_of(packet, self.salt)
            if number is None:
                self.corrupt += 1
                continue
            if number >= len(self._seen):
                self._seen.extend(bytes(number + 1 - len(self._seen)))
            if self._seen[number]:
                self.duplicates += 1
            else:
                self._seen[number] = 1
                self.delivered += 1


def number_of(packet: bytes, salt: int) -> int | None:
    """The datagram's number, or `None` if it did not arrive as it was sent."""
    if len(packet) < SMALLEST or crc32(packet, salt) != RESIDUE:
        return None
    return int.from_bytes(packet[-SMALLEST:-4], "little")
