# A tun device, and a relay between two of them that throws faults from a seed.
#
# The relay stands between two network namespaces as a bad network would. Of each UDP datagram that
# comes in it draws, from a seeded generator, whether it is lost, damaged (one bit of the payload),
# doubled, or held back until some later ones have passed; and it counts exactly what it did. The
# kernels on both sides are real: checksums, queues and sockets do what they always do.
#
# The relay is two tasks of the caller's trio run. It knows nothing of the package.

from __future__ import annotations

import errno
import fcntl
import heapq
import os
import random
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from . import netns, packets

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

# include/uapi/linux/if_tun.h
_TUNSETIFF = 0x4004_54CA
_TUNSETOFFLOAD = 0x4004_54D0
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_LARGEST = 65_535 + packets.VIRTIO_NET_HDR
_AT_ONCE = 64  # packets that one wake-up moves before the other tasks get their turn
_QUEUE = 20_000  # txqueuelen: what the device keeps for a relay that is not there yet


class Tun:
    """A tun device of the current namespace, up, with an address of its own."""

    def __init__(self, name: str, *, ip: str, peer_ip: str, virtio_headers: bool = False) -> None:
        try:
            self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        except OSError as error:
            pytest.skip(f"/dev/net/tun cannot be opened: {error.strerror}")
        flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if virtio_headers else 0)
        fcntl.ioctl(self.fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        self.name = name
        netns.sysctl(f"net.ipv6.conf.{name}.disable_ipv6", int(":" not in ip))
        nodad = " nodad" if ":" in ip else ""
        netns.run(f"ip link set dev {name} txqueuelen {_QUEUE} up")
        netns.run(f"ip address add {ip} peer {peer_ip} dev {name}{nodad}")
        if ":" in ip:
            netns.wait_for_ipv6(name, ip)

    def read(self) -> bytes | None:
        """The next packet that the kernel sent into the device, or `None`."""
        try:
            return os.read(self.fd, _LARGEST)
        except BlockingIOError:
            return None

    def write(self, packet: bytes) -> int:
        """Let the kernel receive this packet. Returns 0, or the errno with which it refused."""
        try:
            os.write(self.fd, packet)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def dropped(self) -> int:
        """How many packets the device dropped because nobody read them in time.

        To be called in the device's namespace.
        """
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            name, _, columns = line.partition(":")
            if name.strip() == self.name:
                return int(columns.split()[11])
        raise LookupError(f"no device {self.name} in this namespace")

    def close(self) -> None:
        """Close the device, which removes it."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@attrs.frozen(kw_only=True)
class Faults:
    """How a path treats a datagram: probabilities from 0 to 1."""

    loss: float = 0.0
    damage: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0


@attrs.define
class Way:
    """One direction through the relay: its faults, and what it did so far."""

    faults: Faults
    seed: int
    taken: int = 0
    lost: int = 0
    damaged: int = 0
    duplicated: int = 0
    damaged_emitted: int = 0
    emitted: int = 0
    whole: list[bytes] | None = None
    """The payloads of the undamaged datagrams as they were emitted, if a test asks for them."""
    _random: random.Random = attrs.field(init=False, repr=False)
    _held: list[tuple[int, int, bool, bytes]] = attrs.field(factory=list, repr=False)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(self.seed)

    @property
    def held(self) -> int:
        """Datagrams that were held back and wait for others to pass."""
        return len(self._held)

    def treat(self, packet: bytes) -> list[bytes]:
        """What comes out at this moment when that packet goes in."""
        self.taken += 1
        draw = self._random.random
        if draw() < self.faults.loss:
            self.lost += 1
            copies = 0
        else:
            copies = 1
        has_payload = len(packet) > packets.payload_offset(packet)
        damaged = draw() < self.faults.damage and copies > 0 and has_payload
        if damaged:
            self.damaged += 1
            packet = self._with_a_flipped_bit(packet)
        if copies and draw() < self.faults.duplication:
            self.duplicated += 1
            copies = 2
        out = []
        for _ in range(copies):
            if draw() < self.faults.reordering:
                # Released when that many more have come in; `taken` breaks ties, oldest first.
                release = self.taken + self._random.randrange(1, 9)
                heapq.heappush(self._held, (release, self.taken, damaged, packet))
            else:
                out.append(self._emit(packet, damaged))
        while self._held and self._held[0][0] <= self.taken:
            out.append(self._release())
        return out

    def flush(self) -> list[bytes]:
        """Everything that was held back."""
        return [self._release() for _ in range(len(self._held))]

    def _release(self) -> bytes:
        _, _, damaged, packet = heapq.heappop(self._held)
        return self._emit(packet, damaged)

    def _emit(self, packet: bytes, damaged: bool) -> bytes:
        self.emitted += 1
        if damaged:
            self.damaged_emitted += 1
        elif self.whole is not None:
            self.whole.append(packet[packets.payload_offset(packet) :])
        return packet

    def _with_a_flipped_bit(self, packet: bytes) -> bytes:
        start = packets.payload_offset(packet)
        changed = bytearray(packet)
        changed[self._random.randrange(start, len(packet))] ^= 1 << self._random.randrange(8)
        return bytes(changed)


class Relay:
    """Carries packets between two tun devices, with faults of its own on either way."""

    def __init__(
        self, left: Tun, right: Tun, *, seed: int, there: Faults, back: Faults | None = None
    ) -> None:
        self._left = left
        self._right = right
        self.there = Way(there, seed)
        """The way from left to right."""
        self.back = Way(back or Faults(), seed + 1)
        """The way from right to left."""

    async def run(self) -> None:
        """Carry, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._carry, self._left, self._right, self.there)
            nursery.start_soon(self._carry, self._right, self._left, self.back)

    def flush(self) -> None:
        """Let go of everything that was held back to be late."""
        for packet in self.there.flush():
            self._write(self._right, packet)
        for packet in self.back.flush():
            self._write(self._left, packet)

    async def _carry(self, source: Tun, sink: Tun, way: Way) -> None:
        while True:
            await trio.lowlevel.wait_readable(source.fd)
            self.carry_now(source, sink, way)

    def carry_now(self, source: Tun, sink: Tun, way: Way) -> int:
        """Carry at most a batch of what waits; returns how many packets that were."""
        for count in range(_AT_ONCE):
            packet = source.read()
            if packet is None:
                return count
            if packets.is_udp(packet):
                for out in way.treat(packet):
                    self._write(sink, out)
        return _AT_ONCE

    def carry_all(self) -> None:
        """Carry everything that waits on either side, without waiting for more."""
        while self.carry_now(self._left, self._right, self.there):
            pass
        while self.carry_now(self._right, self._left, self.back):
            pass

    def _write(self, sink: Tun, packet: bytes) -> None:
        code = sink.write(packet)
        assert code == 0, f"the relay could not hand on a packet: {os.strerror(code)}"
