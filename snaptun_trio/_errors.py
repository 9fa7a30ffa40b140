# The exceptions that trio and the standard library have no word for.
#
# Everything else keeps its usual type: `trio.WouldBlock`, `trio.ClosedResourceError`,
# `trio.BusyResourceError` for what trio has a convention for, `OSError` for what the kernel says,
# `ValueError` and `TypeError` for a configuration mistake. This file knows no socket and no queue.
#
#     QueuePacketError
#      +-- QueueFullError
#      +-- PacketTooLargeError
#     SendBatchError          (carries SendFailure objects)

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._train import Address, Packet, PacketTrain


class QueuePacketError(Exception):
    """A packet was not queued. Nothing of it is in the queue.

    Base class of `QueueFullError` and `PacketTooLargeError`.
    """

    packet: Packet
    """The packet that was refused; for a train, the train's `~PacketTrain.data`."""
    address: Address | None
    """Where it was to go; `None` is the connected peer."""

    def __init__(self, message: str, packet: Packet, address: Address | None) -> None:
        super().__init__(message)
        self.packet = packet
        self.address = address


class QueueFullError(QueuePacketError):
    """The sender's queue has no room left. Flush it, then queue the packet again."""

    def __init__(self, packet: Packet, address: Address | None, batch_size: int) -> None:
        super().__init__(
            f"no room in the queue, which holds {batch_size} datagrams: flush it first",
            packet,
            address,
        )


class PacketTooLargeError(QueuePacketError):
    """The packet is larger than the sender's ``max_packet_size``. It will never fit."""

    packet_len: int
    """The packet's length, or the longest datagram's of a train, in bytes."""
    max_packet_size: int
    """The sender's limit, in bytes."""

    def __init__(
        self, packet: Packet, address: Address | None, packet_len: int, max_packet_size: int
    ) -> None:
        super().__init__(
            f"a datagram of {packet_len} bytes is over the sender's limit of {max_packet_size}",
            packet,
            address,
        )
        self.packet_len = packet_len
        self.max_packet_size = max_packet_size


@attrs.frozen
class SendFailure:
    """Datagrams that the kernel refused, and what it said."""

    train: PacketTrain
    """The refused datagrams, with the address they were for. They are out of the queue."""
    error: OSError
    """What the kernel said of them."""

    @property
    def datagrams(self) -> int:
        """How many they are."""
        return len(self.train)


class SendBatchError(Exception):
    """Some datagrams of a flush can never be sent. All the others have been sent, or are queued.

    The error is raised once the whole queue was gone through, so one bad address never holds up
    another. ``failures`` says which they are, and why: each has the ``train`` and the kernel's
    ``error``. It is no `OSError`, as it can be several.
    """

    failures: list[SendFailure]
    """One entry for each train that was refused, in the order of the attempts."""

    def __init__(self, failures: Sequence[SendFailure]) -> None:
        self.failures = list(failures)
        reasons: Counter[str] = Counter()
        addresses: set[Address | None] = set()
        for failure in self.failures:
            reasons[failure.error.strerror or str(failure.error)] += len(failure.train)
            addresses.add(failure.train.address)
        count = reasons.total()
        (whom,) = map(_peer, addresses) if len(addresses) == 1 else (f"{len(addresses)} peers",)
        why = [
            reason if len(reasons) == 1 else f"{reason} ({times})"
            for reason, times in reasons.items()
        ]
        datagrams = "1 datagram" if count == 1 else f"{count} datagrams"
        super().__init__(f"{datagrams} to {whom} could not be sent: {', '.join(why)}")


def _peer(address: Address | None) -> str:
    return "the connected peer" if address is None else f"{address[0]} port {address[1]}"
