# Hostile traffic: all sizes from thousands of addresses, source port 0, bad checksums, oversize.
#
# It fills a socket as `Traffic` does and says what must come out again. Nothing is left to chance:
# the same mix each time, and of each datagram it is known what becomes of it. What needs rights
# that the process has not, or a small MTU where there is none, is left out; `parts` says what is
# in.

from __future__ import annotations

import random
import socket
import struct
from typing import NamedTuple

from ._shapes import Shape
from ._traffic import (
    MOST_SENDERS,
    UDP_SEGMENT,
    Load,
    Traffic,
    from_address,
    payload,
)

ROUND = 512
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0  # linux/in.h
IP_HEADER, UDP_HEADER = struct.Struct("!BBHHHBBH4s4s"), struct.Struct("!HHHH")
LOOPBACK = bytes((127, 0, 0, 1))


class Shot(NamedTuple):
    """One thing that is thrown at the socket, and what comes of it."""

    data: bytes
    control: list[tuple[int, int, bytes]]
    raw: bool
    datagrams: int
    """How many come in."""
    refused: bool
    """Whether they cannot be sent on."""


def checksum(data: bytes) -> int:
    """The Internet's checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def raw_packet(peer: int, source_port: int, target_port: int, data: bytes, *, wrong: bool) -> bytes:
    """A whole IPv4 packet from 127.1.x.y; the kernel fills in the header's checksum."""
    source = bytes((127, 1, peer >> 8, peer & 255))
    length = UDP_HEADER.size + len(data)
    pseudo = source + LOOPBACK + struct.pack("!BBH", 0, socket.IPPROTO_UDP, length)
    udp = UDP_HEADER.pack(source_port, target_port, length, 0)
    correct = checksum(pseudo + udp + data) or 0xFFFF
    udp = UDP_HEADER.pack(source_port, target_port, length, correct ^ 0x5555 if wrong else correct)
    total = IP_HEADER.size + length
    return IP_HEADER.pack(0x45, 0, total, 0, 0, 64, 17, 0, source, LOOPBACK) + udp + data


class Mob(Traffic):
    """Throws the mix at a socket."""

    def __init__(self, target: socket.socket, *, oversize: bool, answered: bool) -> None:
        super().__init__(Shape("hostile", (), 1, 1, 1, peers=MOST_SENDERS + 1), target)
        self.sent_on = self.refused = 0
        self.senders[0].setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        self._raw = open_raw()
        self.parts = ["all sizes", "many sources"]
        self.parts += ["source port 0", "bad checksums"] if self._raw else []
        self.parts += ["oversize"] if oversize else []
        self._shots = self._mix(target.getsockname()[1], answered)

    def _mix(self, port: int, answered: bool) -> list[Shot]:
        chance = random.Random(1)
        shots = []
        for number in range(ROUND):
            peer, kind = chance.randrange(1, 20_000), number % 16
            data, source = payload(chance.randrange(1_400)), from_address(peer)
            if kind < 3 and "oversize" in self.parts:
                data = payload(chance.randrange(1_500, 4_000))
                shots.append(Shot(data, [source], False, 1, True))
            elif kind < 5 and self._raw:
                packet = raw_packet(peer, 0, port, data, wrong=False)
                shots.append(Shot(packet, [], True, 1, answered))
            elif kind < 6 and self._raw:
                packet = raw_packet(peer, 9, port, data, wrong=True)
                shots.append(Shot(packet, [], True, 0, True))
            elif kind < 8:
                size, segments = chance.randrange(1, 100), chance.randrange(2, 6)
                data = payload(size * segments - chance.randrange(size))
                size_of = (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", size))
                shots.append(Shot(data, [source, size_of], False, segments, False))
            else:
                shots.append(Shot(data, [source], False, 1, False))
        chance.shuffle(shots)
        return shots

    def send(self, trains: int, most_datagrams: int | None = None) -> Load:
        """One round of the mix. What waits in the target now, and the bytes that can be sent on."""
        datagrams = nbytes = 0
        before = self._dropped()
        for shot in self._shots[:trains]:
            if not self._has_room():
                break
            if shot.raw and self._raw:
                self._raw.sendto(shot.data, (self._to[0], 0))
            else:
                self.senders[0].sendmsg([shot.data], shot.control, 0, self._to)
            datagrams += shot.datagrams
            if shot.refused:
                self.refused += shot.datagrams
            else:
                self.sent_on += shot.datagrams
                nbytes += len(shot.data) - shot.raw * (IP_HEADER.size + UDP_HEADER.size)
        if self._dropped() != before:
            raise RuntimeError("the kernel dropped datagrams while the socket was filled")
        return Load(datagrams, nbytes)

    def close(self) -> None:
        """Close the senders."""
        super().close()
        if self._raw:
            self._raw.close()


def open_raw() -> socket.socket | None:
    """A socket for whole packets, where this process may have one."""
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except PermissionError:
        return None
