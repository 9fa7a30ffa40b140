# What a datagram of the demonstration carries, so that the sink can tell which one it is and that
# every byte of it arrived. Pure functions over bytes; this file knows no socket and no clock.
#
#     filler ............ | number (8 bytes) | CRC-32 of all that stands before (4 bytes)
#
# Number and checksum stand last so that the sender need not read the filler again for each
# datagram: the checksum of the filler is taken once and continued over the number.

from __future__ import annotations

import random
import struct
from zlib import crc32

TRAILER = struct.Struct("<QI")
SMALLEST = TRAILER.size
NUMBER = struct.Struct("<Q")

# The CRC-32 of anything followed by its own CRC-32, least significant byte first, is this number,
# whatever the start value. So one pass over a whole datagram checks it.
RESIDUE = 0x2144DF1C


class TrainMaker:
    """Makes trains of numbered, checksummed datagrams.

    ``salt`` is the start value of the checksums: a datagram of another run does not pass.
    """

    def __init__(self, size: int, length: int, salt: int) -> None:
        if size < SMALLEST or length < 1:
            raise ValueError(f"cannot make trains of {length} datagrams of {size} bytes")
        filler = random.Random(salt).randbytes(size - SMALLEST)
        self._train = bytearray((filler + bytes(SMALLEST)) * length)
        self._trailers = range(len(filler), size * length, size)
        self._checksum = crc32(filler, salt)

    def make(self, first: int) -> bytes:
        """The train whose first datagram has the number ``first``."""
        train, checksum = self._train, self._checksum
        for number, place in enumerate(self._trailers, first):
            TRAILER.pack_into(train, place, number, crc32(NUMBER.pack(number), checksum))
        return bytes(train)


def number_of(packet: bytes, salt: int) -> int | None:
    """The datagram's number, or `None` if it did not arrive as it was sent."""
    if len(packet) < SMALLEST or crc32(packet, salt) != RESIDUE:
        return None
    number: int = NUMBER.unpack_from(packet, len(packet) - SMALLEST)[0]
    return number
