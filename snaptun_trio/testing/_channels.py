# memory_channel_pair: a network of two hosts that is only memory.
#
# Datagrams wait at the end that they were sent to, ordered by when they are due, so that a slow
# network needs no task. It must not know sockets.

from __future__ import annotations

import math
from heapq import heappop, heappush
from itertools import count, groupby, repeat
from typing import TYPE_CHECKING, final

import trio

from .._batch import PacketBatch, packed_for
from .._channel import UdpChannel
from .._train import Address, PacketTrain, check_address, check_int

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._statistics import ChannelStatistics
    from .._train import Packet

# What an Ethernet carries, less the headers of IPv6 and UDP.
_MTU = 1500 - 40 - 8


@final
class MemoryChannel(UdpChannel):
    """One end of `memory_channel_pair`, a `~snaptun_trio.UdpChannel` to the other one.

    Nothing here takes time but a delay (`impair`), and no send waits or is refused. A cancelled
    send has sent nothing. Of two ends, what one sent is what the other received, of which what
    found no room was dropped there.
    """

    def __init__(self, local_address: Address, address: Address, capacity: int) -> None:
        super().__init__()
        self._local_address, self._address = local_address, address
        self._capacity = capacity
        self._other = self  # until `memory_channel_pair` says otherwise
        self._inbox: list[tuple[float, int, bytes, int | None]] = []  # due, number, packet, ECN
        self._numbers = count()
        self._changed = trio.Event()
        self._received = self._dropped = 0

    @property
    def address(self) -> Address:
        """The other end's address, where all that is received comes from."""
        return self._address

    @property
    def local_address(self) -> Address:
        """This end's own address."""
        return self._local_address

    def _path_mtu(self) -> int:
        return _MTU

    def statistics(self) -> ChannelStatistics:
        """What this end has counted. What is on its way to it has been received, and waits."""
        return self._counted(
            received=self._received,
            waiting=len(self._inbox),
            dropped=self._dropped,
            sent=self._other._received,
        )

    def _close(self) -> None:
        # What is on its way to the other end still arrives there, and then it is told of the end:
        # UDP has no such thing, but a test wants a handler's loop to end.
        self._discarded += len(self._inbox)
        self._inbox.clear()
        self._wake()
        self._other._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _send(self, batch: PacketBatch) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._post(batch)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _send_packets_nowait(self, packets: list[bytes]) -> None:
        self._post(packed_for(None, packets))

    async def _send_packet(self, packet: Packet) -> None:
        await self._send(PacketBatch.pack([(packet, None)]))

    def _post(self, batch: PacketBatch, delays: Iterator[float] = repeat(0.0)) -> None:  # noqa: B008
        """Send each datagram so that it arrives after its delay, in seconds."""
        self._check_open()
        now, other = trio.current_time(), self._other
        for train in batch.trains:
            for packet, delay in zip(train, delays):
                other._received += 1
                if other._closed:
                    other._discarded += 1
                elif len(other._inbox) + len(other._left) >= other._capacity:
                    other._dropped += 1
                else:
                    item = (now + delay, next(other._numbers), packet, train.ecn)
                    heappush(other._inbox, item)
        other._wake()

    async def _receive(self) -> PacketBatch[Address]:
        await trio.lowlevel.checkpoint_if_cancelled()
        batch = self._take()
        if batch:
            await trio.lowlevel.cancel_shielded_checkpoint()
        while not batch:
            with trio.CancelScope(deadline=self._inbox[0][0] if self._inbox else math.inf):
                await self._changed.wait()
            batch = self._take()
        return batch

    def _take(self) -> PacketBatch[Address]:
        """All that is due, as the kernel would hand it over."""
        self._check_open()
        if not self._inbox and self._other._closed:
            raise trio.EndOfChannel
        found: list[tuple[bytes, int | None]] = []
        while self._inbox and self._inbox[0][0] <= trio.current_time():
            found.append(heappop(self._inbox)[2:])
        trains: list[PacketTrain] = []
        for ecn, alike in groupby(found, key=lambda one: one[1]):
            trains += PacketTrain.pack([packet for packet, _ in alike], self._address, ecn=ecn)
        return PacketBatch(trains)  # type: ignore[arg-type]  # they all have an address


def memory_channel_pair(
    *,
    capacity: int = 1000,
    addresses: tuple[Address, Address] = (("192.0.2.1", 50_000), ("192.0.2.2", 443)),
) -> tuple[MemoryChannel, MemoryChannel]:
    """Two ends, each of which receives what is sent at the other as a socket would.

    What arrives is trains of `bytes` with the sender's address, in as few as the kernel would make
    of them, with the ECN bits that they were sent with. Nothing is lost but for want of room, and
    the order is kept; `impair` makes a worse network of it. When an end is closed, what is on its
    way to the other still arrives, and then receiving there raises `trio.EndOfChannel`. It
    runs under `trio.testing.MockClock`.

    Args:
      capacity: the datagrams that may wait at an end, or be on their way to it, 1 or more. The
        newest are dropped, and counted there.
      addresses: the addresses of the two ends.

    Raises:
      TypeError, ValueError: these are no addresses, or the capacity is none.
    """
    check_int("capacity", capacity, 1, 2**31)
    here, there = addresses
    for address in addresses:
        check_address(address)
        if address is None:
            raise TypeError("each end has an address, which None is not")
    one, other = MemoryChannel(here, there, capacity), MemoryChannel(there, here, capacity)
    one._other, other._other = other, one
    return one, other
