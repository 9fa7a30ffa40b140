# memory_channel_pair: a network of two hosts that is only memory.
#
# Datagrams wait at the end that they were sent to, ordered by when they are due, so that a slow
# network needs no task. It must not know sockets.

from __future__ import annotations

import errno
import math
import os
from heapq import heappop, heappush
from itertools import count, groupby, repeat
from typing import TYPE_CHECKING, final

import attrs
import trio

from .._batch import PacketBatch
from .._brief import brief
from .._closing import Closing
from .._errors import SendBatchError, SendFailure
from .._train import Address, PacketTrain, check_address, check_int

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._train import Packet


@attrs.frozen(kw_only=True)
class MemoryChannelStatistics:
    """A snapshot of a `MemoryChannel`.

    Of two ends a and b: what a sent = what a failed to send + what a dropped + what b received +
    what waits at b + what b discarded.
    """

    datagrams_sent: int
    """Datagrams that were given to this end to send."""
    datagrams_failed: int
    """Those for another address than the other end's, reported as for a
    `~snaptun_trio.UdpBatchSender`."""
    datagrams_dropped: int
    """Those for which there was no room at the other end, or which was closed."""
    datagrams_received: int
    """Datagrams that the program received from this end."""
    datagrams_waiting: int
    """Datagrams on their way to this end, or waiting there."""
    datagrams_discarded: int
    """Datagrams that were waiting when this end was closed."""


@final
class MemoryChannel(Closing, trio.abc.Channel[PacketBatch]):
    """One end of `memory_channel_pair`: it sends to the other, and receives what that sends.

    Any number of tasks may send and receive. Nothing here takes time but a delay (`impair`).
    """

    def __init__(self, local_address: Address, address: Address, capacity: int) -> None:
        self._local_address, self._address = local_address, address
        self._capacity = capacity
        self._other = self  # until `memory_channel_pair` says otherwise
        self._inbox: list[tuple[float, int, bytes, int | None]] = []  # due, number, packet, ECN
        self._numbers = count()
        self._changed = trio.Event()
        self._closed = False
        self._sent = self._failed = self._dropped = self._received = self._discarded = 0

    @property
    def address(self) -> Address:
        """The other end's address, where all that is received comes from."""
        return self._address

    @property
    def local_address(self) -> Address:
        """This end's own address."""
        return self._local_address

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> PacketBatch[Address]:
        """Receive all that is there, as one batch, waiting for it if need be.

        A cancelled receive has received nothing.

        Raises:
          trio.EndOfChannel: the other end is closed, and nothing is left.
          trio.ClosedResourceError: this end is closed, before or during it.
        """
        return self._batch(await self._receive(self._capacity))

    @trio.lowlevel.enable_ki_protection
    async def receive_packet(self) -> bytes:
        """Receive one datagram's payload; otherwise like `receive`."""
        return (await self._receive(1))[0][0]

    @trio.lowlevel.enable_ki_protection
    async def send(self, value: PacketBatch) -> None:
        """Send a batch to the other end, with its address or `None` as the address.

        It never waits for the other end, and always is a checkpoint. As with UDP, datagrams for
        which there is no room are dropped without a word, and so is all if the other end is closed.
        A cancelled send has sent nothing.

        Raises:
          snaptun_trio.SendBatchError: some datagrams were for another address, which nobody has
            here (ENETUNREACH). Everything else is sent.
          trio.ClosedResourceError: this end is closed.
          TypeError: not a batch.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._post(value)
        finally:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def send_packet(self, packet: Packet) -> None:
        """Send one datagram; otherwise like `send`."""
        await self.send(PacketBatch(PacketTrain.pack([packet], None)))

    def statistics(self) -> MemoryChannelStatistics:
        """What this end has counted."""
        return MemoryChannelStatistics(
            datagrams_sent=self._sent,
            datagrams_failed=self._failed,
            datagrams_dropped=self._dropped,
            datagrams_received=self._received,
            datagrams_waiting=len(self._inbox),
            datagrams_discarded=self._discarded,
        )

    def close(self) -> None:
        """Stop sending and receiving, now and for good. Closing again does nothing.

        What waits at this end is discarded. What is on its way to the other end still arrives
        there, and then its `receive` raises `trio.EndOfChannel`: UDP has no such thing, but a test
        wants a handler's loop to end.
        """
        self._closed = True
        self._discarded += len(self._inbox)
        self._inbox.clear()
        self._wake()
        self._other._wake()

    # -- how

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this end of the memory channel is closed")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _post(self, batch: PacketBatch, delays: Iterator[float] = repeat(0.0)) -> None:  # noqa: B008
        """Send each datagram so that it arrives after its delay, in seconds."""
        self._check_open()
        if not isinstance(batch, PacketBatch):
            raise TypeError(f"a PacketBatch is needed, not {brief(batch)}")
        now, other = trio.current_time(), self._other
        failures = []
        for train in batch.trains:
            reachable = train.address is None or train.address[:2] == self._address[:2]
            for packet, delay in zip(train, delays):
                self._sent += 1
                if not reachable:
                    self._failed += 1
                elif other._closed or len(other._inbox) >= other._capacity:
                    self._dropped += 1
                else:
                    item = (now + delay, next(other._numbers), packet, train.ecn)
                    heappush(other._inbox, item)
            if not reachable:
                error = OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
                failures.append(SendFailure(train, error))
        other._wake()
        if failures:
            raise SendBatchError(failures)

    def _take(self, most: int) -> list[tuple[bytes, int | None]]:
        """What is due, with its ECN bits; empty where nothing is yet."""
        self._check_open()
        found: list[tuple[bytes, int | None]] = []
        now = trio.current_time()
        while self._inbox and self._inbox[0][0] <= now and len(found) < most:
            found.append(heappop(self._inbox)[2:])
        if not found and not self._inbox and self._other._closed:
            raise trio.EndOfChannel
        self._received += len(found)
        return found

    async def _receive(self, most: int) -> list[tuple[bytes, int | None]]:
        await trio.lowlevel.checkpoint_if_cancelled()
        found = self._take(most)
        if found:
            await trio.lowlevel.cancel_shielded_checkpoint()
        while not found:
            due = self._inbox[0][0] if self._inbox else math.inf
            with trio.CancelScope(deadline=due):
                await self._changed.wait()
            found = self._take(most)
        return found

    def _batch(self, found: list[tuple[bytes, int | None]]) -> PacketBatch[Address]:
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
    the order is kept; `impair` makes a worse network of it. It runs under
    `trio.testing.MockClock`.

    Args:
      capacity: the datagrams that may wait at an end, or be on their way to it, 1 or more. The
        newest are dropped, and counted at the end that sent them.
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
