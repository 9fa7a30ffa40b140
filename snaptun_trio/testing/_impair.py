# impair: a bad network between a program and the channel that it sends on.
#
# What happens to a datagram is drawn from the seed, the same number of draws for each, so that one
# probability changes nothing of what another does. It must not know what a channel is made of, but
# for a memory channel's way to deliver later.

from __future__ import annotations

import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, final

import attrs
import trio

from .._batch import PacketBatch, packed_for
from .._brief import brief
from .._channel import UdpChannel
from .._sender import UdpBatchSender
from .._train import Address, PacketTrain
from ._channels import MemoryChannel

if TYPE_CHECKING:
    from .._train import Packet


@attrs.frozen(kw_only=True)
class ImpairedDatagram:
    """What became of one datagram."""

    number: int
    """Which one it was, from 0, in the order in which they were sent."""
    packet: bytes
    """What the program sent."""
    address: Address | None
    """Whom to."""
    copies: int
    """How often it was passed on: 0 is lost, 2 is duplicated."""
    flipped_bit: int | None
    """The bit that was turned over, 0 for the lowest of the first byte; `None` if none was."""
    reordered: bool
    """Whether it was passed on at once, before those that are delayed."""


@final
class ImpairedChannel(UdpChannel):
    """A channel on which what is sent is impaired; see `impair`. All else is the channel's own."""

    def __init__(
        self, channel: UdpChannel | UdpBatchSender, chances: list[float], delay: float, seed: int
    ) -> None:
        super().__init__()
        self._channel: Any = channel
        self._chances = chances
        self._delay = delay
        self._random = random.Random(seed)
        self._log: list[ImpairedDatagram] = []

    @property
    def log(self) -> list[ImpairedDatagram]:
        """What became of each datagram so far, also of a send that failed then."""
        return list(self._log)

    @property
    def counts(self) -> Counter[str]:
        """The log as numbers, ``submitted``, ``lost``, ``duplicated``, ``corrupted``,
        ``reordered`` and ``passed_on``, which is submitted - lost + duplicated."""
        return Counter(
            submitted=len(self._log),
            lost=sum(not one.copies for one in self._log),
            duplicated=sum(one.copies == 2 for one in self._log),
            corrupted=sum(one.flipped_bit is not None for one in self._log),
            reordered=sum(one.reordered for one in self._log),
            passed_on=sum(one.copies for one in self._log),
        )

    @property
    def address(self) -> Address:
        """The channel's."""
        return self._channel.address  # type: ignore[no-any-return]

    @property
    def local_address(self) -> Address:
        """The channel's."""
        return self._channel.local_address  # type: ignore[no-any-return]

    def _path_mtu(self) -> int:
        return self._channel.mtu  # type: ignore[no-any-return]

    def statistics(self) -> Any:  # noqa: ANN401
        """The channel's, of what was passed on."""
        return self._channel.statistics()

    def _close(self) -> None:
        self._channel.close()

    async def _receive(self) -> PacketBatch[Address]:
        return await self._channel.receive()  # type: ignore[no-any-return]

    async def _send(self, batch: PacketBatch) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        batch, delays = self._impaired(batch)
        if not self._delay:
            await self._channel.send(batch)
            return
        try:
            self._channel._post(batch, iter(delays))
        finally:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _send_packets_nowait(self, packets: list[bytes]) -> None:
        batch, delays = self._impaired(packed_for(None, packets))
        if self._delay:
            self._channel._post(batch, iter(delays))
        elif isinstance(self._channel, UdpBatchSender):
            self._channel._unattended.add(self._channel._accept(batch))
        else:
            self._channel.send_packets_nowait(packet for packet, _ in batch)

    async def _send_packet(self, packet: Packet) -> None:
        await self._send(PacketBatch.pack([(packet, None)]))

    def _impaired(self, batch: PacketBatch) -> tuple[PacketBatch, list[float]]:
        """What is passed on of a batch, and after how many seconds each of its datagrams."""
        trains: list[PacketTrain] = []
        delays: list[float] = []
        for train in batch.trains:
            packets: list[bytes] = []
            for packet in train:
                one = self._decide(packet, train.address)
                self._log.append(one)
                packets += [_flipped(packet, one.flipped_bit)] * one.copies
                delays += [0.0 if one.reordered else self._delay] * one.copies
            trains += PacketTrain.pack(
                packets,
                train.address,
                ecn=train.ecn,
                local_address=train.local_address,
                interface_index=train.interface_index,
            )
        return PacketBatch(trains), delays

    def _decide(self, packet: bytes, address: Address | None) -> ImpairedDatagram:
        draws = [self._random.random() for _ in range(5)]
        lost, twice, corrupt, reordered = (
            draw < chance for draw, chance in zip(draws, self._chances)
        )
        flips = corrupt and not lost and packet
        return ImpairedDatagram(
            number=len(self._log),
            packet=packet,
            address=address,
            copies=0 if lost else 2 if twice else 1,
            flipped_bit=int(draws[4] * 8 * len(packet)) if flips else None,
            reordered=reordered and not lost,
        )


def _flipped(packet: bytes, bit: int | None) -> bytes:
    if bit is None:
        return packet
    changed = bytearray(packet)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def impair(
    channel: UdpChannel | UdpBatchSender,
    *,
    loss: float = 0,
    duplicate: float = 0,
    reorder: float = 0,
    corrupt: float = 0,
    delay: float = 0,
    seed: int = 0,
) -> ImpairedChannel:
    """Put a bad network behind what is sent on a channel; what it receives stays as it is.

    The same seed does the same to the same datagrams. To impair both directions, impair both ends.

    Args:
      channel: an end of `memory_channel_pair`, any other `~snaptun_trio.UdpChannel`, or a
        `~snaptun_trio.UdpBatchSender`. To close what is returned closes it.
      loss: the probability that a datagram is lost, 0 to 1; and so on for each of these:
      duplicate: that it arrives twice.
      reorder: that it is not delayed, and so overtakes those that are; needs a ``delay``.
      corrupt: that one bit of it is turned over. A real network hides most of that from programs.
      delay: the seconds that every datagram takes, by trio's clock. Only a memory channel can
        deliver later; no task is needed for it.
      seed: for all that is drawn.

    Raises:
      TypeError: an argument has the wrong type, or the channel cannot delay.
      ValueError: a number is out of its range, or ``reorder`` has no delay.
    """
    if not isinstance(channel, UdpChannel | UdpBatchSender):
        raise TypeError(f"channel is a UdpChannel or a UdpBatchSender, not {brief(channel)}")
    numbers = {"loss": loss, "duplicate": duplicate, "corrupt": corrupt, "reorder": reorder}
    for name, number in (*numbers.items(), ("delay", delay)):
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise TypeError(f"{name} is a number, not {brief(number)}")
        if not 0 <= number <= (1 if name in numbers else math.inf) or math.isinf(number):
            raise ValueError(f"{name} is out of range: {number}")
    if delay and not isinstance(channel, MemoryChannel):
        raise TypeError(f"delay={delay}: only a MemoryChannel delivers later")
    if reorder and not delay:
        raise ValueError("reorder needs a delay, which those that overtake do without")
    return ImpairedChannel(channel, list(numbers.values()), delay, seed)
