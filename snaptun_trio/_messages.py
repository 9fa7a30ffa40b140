# Messages: what holds the datagrams of a batch.
#
# `Messages` is all that a batch asks of it. `TrainMessages` answers from trains that a program
# made; the messages of a received batch live in `_kernel`, over the memory that the kernel wrote.
# This file must not know batches.

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, final

from ._coalesce import datagram_count, split
from ._losses import ReceiveLosses
from ._train import Address, AddressT_co, PacketTrain, make_train
from ._way_back import way_back

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._train import Way


class PerTrainAddress(enum.Enum):
    """The type of `PER_TRAIN_ADDRESS`."""

    PER_TRAIN_ADDRESS = enum.auto()


PER_TRAIN_ADDRESS: Final = PerTrainAddress.PER_TRAIN_ADDRESS
"""Each train goes to its own address: the batch has no single one."""

Recipient: TypeAlias = Address | PerTrainAddress | None


class Messages(Protocol):
    """All that a batch asks of whatever holds its datagrams. A message is a train."""

    @property
    def count(self) -> int:
        """The number of trains."""

    @property
    def datagrams(self) -> int:
        """The number of datagrams."""

    @property
    def nbytes(self) -> int:
        """The payload bytes."""

    @property
    def plain(self) -> bool:
        """Whether no train has anything but its address: no ECN, no local address and so on."""

    @property
    def losses(self) -> ReceiveLosses | None:
        """What did not come in; `None` where nothing is missing."""

    @property
    def one_way(self) -> bool:
        """Whether all came to one address of ours, as far as that was asked for."""

    def way_back(self) -> Way | None:
        """How an answer to the first train leaves: from the address that it came to. `None` is
        however the kernel likes, also where the address was not asked for."""

    def trains(self) -> tuple[PacketTrain, ...]:
        """The trains, one for each of ``count``, made now and over views of their own: a program
        may release those that it sees."""

    def train(self, index: int) -> PacketTrain:
        """One of `trains`, without making the others."""

    def packets(self) -> list[tuple[bytes, Address | None]]:
        """Each datagram with its address, made now."""

    def by_address(self) -> Mapping[Address | None, Messages]:
        """Those of each peer, in order of first appearance; these very ones where there is one."""

    def detached(self) -> Messages:
        """The same on memory of their own; these very ones where they hold no other."""


def _asks_for_nothing(trains: tuple[PacketTrain, ...]) -> bool:
    # A comprehension that reads one slot takes a sixth of the time of `operator.attrgetter`.
    nones = [train.ecn for train in trains].count(None)
    nones += [train.local_address for train in trains].count(None)
    nones += [train.interface_index for train in trains].count(None)
    return nones == 3 * len(trains)


def over(
    train: PacketTrain[AddressT_co], data: bytes | memoryview, segment_size: int | None = None
) -> PacketTrain[AddressT_co]:
    """The same train over another view of its data, or over a part of it with a size of its own."""
    return make_train(
        data,
        train.segment_size if segment_size is None else segment_size,
        train.address,
        train.ecn,
        train.local_address,
        train.interface_index,
        train.timestamp_ns,
    )


def own_view(data: bytes | memoryview) -> bytes | memoryview:
    """The same memory in a view that nobody else can release."""
    return data if isinstance(data, bytes) else memoryview(data)


@final
class TrainMessages:
    """Trains that a program made, or that go through Python one by one, as messages.

    Args:
      payloads: the data of each train.
      segment_sizes: the segment size of each train, in bytes.
      addresses: the peer of each train.
      trains: the trains themselves, where they exist already; without them none asks for anything
        but its address.
      losses: what did not come in with them.
    """

    __slots__ = (
        "_trains",
        "addresses",
        "count",
        "datagrams",
        "losses",
        "nbytes",
        "payloads",
        "plain",
        "segment_sizes",
    )

    def __init__(
        self,
        payloads: list[bytes | memoryview],
        segment_sizes: list[int],
        addresses: list[Address | None],
        trains: tuple[PacketTrain, ...] | None = None,
        losses: ReceiveLosses | None = None,
    ) -> None:
        self.payloads = payloads
        self.segment_sizes = segment_sizes
        self.addresses = addresses
        self.losses = losses
        self.plain = trains is None or _asks_for_nothing(trains)
        """Whether no train asks for anything but its address: no ECN, no source, no interface."""
        self._trains = trains
        self.count = len(payloads)
        lengths = list(map(len, payloads))
        self.nbytes = sum(lengths)
        if lengths == segment_sizes:
            self.datagrams = self.count
        else:
            self.datagrams = sum(map(datagram_count, lengths, segment_sizes))

    @classmethod
    def of_packet(cls, packet: bytes) -> TrainMessages:
        """A single datagram for the connected peer, at half the price."""
        one = cls.__new__(cls)
        size = len(packet)
        one.payloads, one.segment_sizes, one.addresses = [packet], [size], [None]
        one.losses = one._trains = None
        one.plain = True
        one.count = one.datagrams = 1
        one.nbytes = size
        return one

    @classmethod
    def of_trains(
        cls, trains: tuple[PacketTrain, ...], losses: ReceiveLosses | None = None
    ) -> TrainMessages:
        """These trains, over views of their own."""
        return cls(
            [d if isinstance(d := train.data, bytes) else memoryview(d) for train in trains],
            [train.segment_size for train in trains],
            [train.address for train in trains],
            trains,
            losses,
        )

    @classmethod
    def of(cls, messages: Messages) -> TrainMessages:
        """Any messages, train by train."""
        return messages if isinstance(messages, cls) else cls.of_trains(messages.trains())

    @property
    def one_way(self) -> bool:
        ways = {(train.local_address, train.interface_index) for train in self._trains or ()}
        return len(ways) < 2

    def way_back(self) -> Way | None:
        if not self._trains:
            return None
        return way_back(self._trains[0].local_address, self._trains[0].interface_index)

    def trains(self) -> tuple[PacketTrain, ...]:
        return tuple(map(self.train, range(self.count)))

    def train(self, index: int) -> PacketTrain:
        data = own_view(self.payloads[index])
        if self._trains is not None:
            return over(self._trains[index], data)
        return make_train(data, self.segment_sizes[index], self.addresses[index])

    def packets(self) -> list[tuple[bytes, Address | None]]:
        return [
            (packet, address)
            for payload, size, address in zip(self.payloads, self.segment_sizes, self.addresses)
            for packet in split(payload, size)
        ]

    def by_address(self) -> dict[Address | None, TrainMessages]:
        if self.addresses.count(self.addresses[0] if self.addresses else None) == self.count:
            return dict.fromkeys(self.addresses[:1], self)
        indices: dict[Address | None, list[int]] = {}
        for index, address in enumerate(self.addresses):
            indices.setdefault(address, []).append(index)
        return {address: self.ordered(of_peer) for address, of_peer in indices.items()}

    def detached(self) -> TrainMessages:
        if set(map(type, self.payloads)) <= {bytes}:
            return self
        payloads: list[bytes | memoryview] = list(map(bytes, self.payloads))
        trains = self._trains
        if trains is not None:
            trains = tuple(map(over, trains, payloads))
        return TrainMessages(payloads, self.segment_sizes, self.addresses, trains, self.losses)

    def ordered(self, indices: list[int]) -> TrainMessages:
        """Some of them, or all in another order. Which of them came in cut is known still."""
        cut: frozenset[int] = self.losses.cut if self.losses else frozenset()
        if cut:
            cut = frozenset([at for at, index in enumerate(indices) if index in cut])
        return TrainMessages(
            [self.payloads[i] for i in indices],
            [self.segment_sizes[i] for i in indices],
            [self.addresses[i] for i in indices],
            None if self._trains is None else tuple([self._trains[i] for i in indices]),
            ReceiveLosses(cut) if cut else None,
        )
