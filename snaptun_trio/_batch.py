# PacketBatch: what one receive call brought, or what is to be sent together.
#
# A batch is messages, not objects. It knows its datagrams through the few questions of `Messages`,
# and makes trains, packets and addresses only when somebody looks at them; a batch that is only
# passed on never does. `TrainMessages` answers from trains that a program made; the messages of a
# received batch live in `_kernel`, over the memory that the kernel wrote. This file must not know
# sockets, the pool or which system it runs on.

from __future__ import annotations

import enum
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    NamedTuple,
    Protocol,
    TypeAlias,
    final,
    overload,
)

from ._brief import type_names
from ._coalesce import datagram_count, split
from ._train import Address, AddressT_co, PacketTrain, make_train

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class PerTrainAddress(enum.Enum):
    """The type of `PER_TRAIN_ADDRESS`."""

    PER_TRAIN_ADDRESS = enum.auto()


PER_TRAIN_ADDRESS: Final = PerTrainAddress.PER_TRAIN_ADDRESS
"""Each train goes to its own address: the batch has no single one."""

Recipient: TypeAlias = Address | PerTrainAddress | None


class ReceiveLosses(NamedTuple):
    """What did not come in with a receive call. A sound setup never has any."""

    truncated: int = 0
    """Datagrams that arrived cut."""
    datagrams: int = 0
    """Datagrams of which nothing fitted into the buffer."""
    nbytes: int = 0
    """Bytes that did not fit."""
    trains_unknown: int = 0
    """Messages left out: their control messages came cut, so nobody can tell where their datagrams
    end."""
    bytes_unknown: int = 0
    """The bytes of those messages."""
    error: OSError | None = None
    """An asynchronous error that ended the call after the messages."""


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
    def losses(self) -> ReceiveLosses | None:
        """What did not come in; `None` where nothing is missing."""

    def trains(self) -> tuple[PacketTrain, ...]:
        """The trains, one for each of ``count``, made now and over views of their own: a program
        may release those that it sees."""

    def train(self, index: int) -> PacketTrain:
        """One of `trains`, without making the others."""

    def packets(self) -> list[tuple[bytes, Address | None]]:
        """Each datagram with its address, made now."""


def _asks_for_nothing(trains: tuple[PacketTrain, ...]) -> bool:
    # A comprehension that reads one slot takes a sixth of the time of `operator.attrgetter`.
    nones = [train.ecn for train in trains].count(None)
    nones += [train.local_address for train in trains].count(None)
    nones += [train.interface_index for train in trains].count(None)
    return nones == 3 * len(trains)


def over(train: PacketTrain[AddressT_co], data: bytes | memoryview) -> PacketTrain[AddressT_co]:
    """The same train over another view of its data."""
    return make_train(
        data,
        train.segment_size,
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

    def ordered(self, indices: list[int]) -> TrainMessages:
        """The same in another order."""
        return TrainMessages(
            [self.payloads[i] for i in indices],
            [self.segment_sizes[i] for i in indices],
            [self.addresses[i] for i in indices],
            None if self._trains is None else tuple([self._trains[i] for i in indices]),
        )


@final
class PacketBatch(Generic[AddressT_co]):
    """All the trains of one receive call, or any trains that are to be sent together. Immutable.

    ``len(batch)`` is the number of datagrams. Iterating yields ``(packet, address)`` pairs, each
    packet a `bytes` of its own that holds no memory of the batch.

    A received batch keeps the memory that the kernel wrote into, its *slab*. It goes back to the
    pool by itself when the batch and the last ``train.data`` view of it are gone. A batch of at
    most 4096 bytes has memory of its own, and keeps no slab.

    Args:
      trains: the trains, in the order in which they are to be sent.

    Raises:
      TypeError: one of them is not a `PacketTrain`, or there is only one instead of several.
    """

    __slots__ = ("_messages", "_recipient", "_trains")

    _messages: Messages
    _recipient: Recipient
    _trains: tuple[PacketTrain[AddressT_co], ...] | None

    def __init__(self, trains: Iterable[PacketTrain[AddressT_co]]) -> None:
        if isinstance(trains, PacketTrain):  # whose items are its packets
            raise TypeError("trains is an iterable of PacketTrains, not one PacketTrain")
        kept = tuple(trains)
        if not set(map(type, kept)) <= {PacketTrain}:
            others = type_names(one for one in kept if type(one) is not PacketTrain)
            raise TypeError(f"a batch is made of PacketTrains, not of {others}")
        self._messages = TrainMessages.of_trains(kept)
        self._recipient = PER_TRAIN_ADDRESS
        self._trains = kept

    @property
    def trains(self) -> tuple[PacketTrain[AddressT_co], ...]:
        """The trains, made when first asked for."""
        if self._trains is None:
            trains: tuple[PacketTrain[Any], ...] = self._messages.trains()
            if self._recipient is not PER_TRAIN_ADDRESS:
                trains = tuple([train.to(self._recipient) for train in trains])
            self._trains = trains
        return self._trains

    def __len__(self) -> int:
        return self._messages.datagrams

    def __bool__(self) -> bool:
        return self._messages.count > 0

    def __iter__(self) -> Iterator[tuple[bytes, AddressT_co]]:
        recipient: Any = self._recipient
        packets: list[tuple[bytes, Any]] = self._messages.packets()
        if recipient is PER_TRAIN_ADDRESS:
            return iter(packets)
        return ((packet, recipient) for packet, _ in packets)

    def __repr__(self) -> str:
        return f"<PacketBatch: {len(self)} datagrams, {self.nbytes} bytes>"

    @property
    def nbytes(self) -> int:
        """The payload bytes of all its datagrams."""
        return self._messages.nbytes

    @property
    def truncated(self) -> int:
        """The number of datagrams that arrived cut, because a buffer was too small. Normally 0."""
        losses = self._messages.losses
        return losses.truncated if losses else 0

    @overload
    def to(self, address: Address) -> PacketBatch[Address]: ...
    @overload
    def to(self, address: Address | None) -> PacketBatch: ...
    def to(self, address: Address | None) -> PacketBatch[Any]:
        """The whole batch for another peer, at no cost: nothing is copied, no train is made.

        What `PacketTrain.to` keeps and drops holds for each train. `None` is the connected peer.
        """
        return batch_of(self._messages, address)


def batch_of(messages: Messages, recipient: Recipient = PER_TRAIN_ADDRESS) -> PacketBatch[Any]:
    """A batch over messages that exist already."""
    batch: PacketBatch[Any] = PacketBatch.__new__(PacketBatch)
    batch._messages = messages
    batch._recipient = recipient
    batch._trains = None
    return batch


def messages_of(batch: PacketBatch) -> tuple[Messages, Recipient]:
    """What a batch is made of: its messages, and whom all of them are for instead."""
    return batch._messages, batch._recipient
