# PacketBatch: what one receive call brought, or what is to be sent together.
#
# A batch is columns, not objects. It knows its datagrams through the few questions of `Columns`,
# and makes trains, packets and addresses only when somebody looks at them; a batch that is only
# passed on never does. `TrainColumns` answers from trains that a program made; the columns of a
# received batch live in `_kernel`, over the memory that the kernel wrote. This file must not know
# sockets, the pool or which system it runs on.

from __future__ import annotations

import enum
from operator import attrgetter
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


class Keep(enum.Enum):
    """The type of `KEEP`."""

    KEEP = enum.auto()


KEEP: Final = Keep.KEEP  # "each train goes to its own address", where a batch has no single target

Target: TypeAlias = Address | Keep | None


class Losses(NamedTuple):
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


class Columns(Protocol):
    """All that a batch asks of whatever holds its datagrams."""

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
    def losses(self) -> Losses | None:
        """What did not come in; `None` where nothing is missing."""

    def trains(self) -> tuple[PacketTrain, ...]:
        """The trains, one for each of ``count``, made now.

        They must not get into a program's hands: it may release their views, and what is being
        sent would be gone.
        """

    def train(self, index: int) -> PacketTrain:
        """One of `trains`, without making the others."""

    def seen_trains(self) -> tuple[PacketTrain, ...]:
        """The trains as a program sees them."""

    def packets(self) -> list[tuple[bytes, Address | None]]:
        """Each datagram with its address, made now."""


_asks_for = attrgetter("ecn", "local_address", "interface_index")


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


@final
class TrainColumns:
    """The columns of trains that a program made, or that go through Python one by one.

    Args:
      payloads: the data of each train.
      segment_sizes: the segment size of each train, in bytes.
      addresses: the peer of each train.
      trains: the trains themselves, where they exist already; without them none asks for anything
        but its address.
      losses: what did not come in with them.
    """

    __slots__ = (
        "_seen",
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
        losses: Losses | None = None,
    ) -> None:
        self.payloads = payloads
        self.segment_sizes = segment_sizes
        self.addresses = addresses
        self.losses = losses
        self.plain = set(map(_asks_for, trains or ())) <= {(None, None, None)}
        """Whether no train asks for anything but its address: no ECN, no source, no interface."""
        self._seen = trains
        self._trains: tuple[PacketTrain, ...] | None = None
        self.count = len(payloads)
        lengths = list(map(len, payloads))
        self.nbytes = sum(lengths)
        if lengths == segment_sizes:
            self.datagrams = self.count
        else:
            self.datagrams = sum(map(datagram_count, lengths, segment_sizes))

    @classmethod
    def of(cls, trains: tuple[PacketTrain, ...], losses: Losses | None = None) -> TrainColumns:
        """The columns of these trains, over views of their own."""
        return cls(
            [d if isinstance(d := train.data, bytes) else memoryview(d) for train in trains],
            [train.segment_size for train in trains],
            [train.address for train in trains],
            trains,
            losses,
        )

    def trains(self) -> tuple[PacketTrain, ...]:
        if self._trains is None:
            if self._seen is None:
                made = map(make_train, self.payloads, self.segment_sizes, self.addresses)
            else:
                made = map(over, self._seen, self.payloads)
            self._trains = tuple(made)
        return self._trains

    def train(self, index: int) -> PacketTrain:
        return self.trains()[index]

    def seen_trains(self) -> tuple[PacketTrain, ...]:
        return self.trains() if self._seen is None else self._seen

    def packets(self) -> list[tuple[bytes, Address | None]]:
        return [
            (packet, address)
            for payload, size, address in zip(self.payloads, self.segment_sizes, self.addresses)
            for packet in split(payload, size)
        ]

    def ordered(self, indices: list[int]) -> TrainColumns:
        """The same in another order."""
        seen = None if self._seen is None else tuple([self._seen[i] for i in indices])
        return TrainColumns(
            [self.payloads[i] for i in indices],
            [self.segment_sizes[i] for i in indices],
            [self.addresses[i] for i in indices],
            seen,
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

    __slots__ = ("_columns", "_target", "_trains")

    _columns: Columns
    _target: Target
    _trains: tuple[PacketTrain[AddressT_co], ...] | None

    def __init__(self, trains: Iterable[PacketTrain[AddressT_co]]) -> None:
        if isinstance(trains, PacketTrain):  # whose items are its packets
            raise TypeError("trains is an iterable of PacketTrains, not one PacketTrain")
        kept = tuple(trains)
        if not set(map(type, kept)) <= {PacketTrain}:
            others = type_names(one for one in kept if type(one) is not PacketTrain)
            raise TypeError(f"a batch is made of PacketTrains, not of {others}")
        self._columns = TrainColumns.of(kept)
        self._target = KEEP
        self._trains = kept

    @property
    def trains(self) -> tuple[PacketTrain[AddressT_co], ...]:
        """The trains, made when first asked for."""
        if self._trains is None:
            trains: tuple[PacketTrain[Any], ...] = self._columns.seen_trains()
            if self._target is not KEEP:
                trains = tuple([train.to(self._target) for train in trains])
            self._trains = trains
        return self._trains

    def __len__(self) -> int:
        return self._columns.datagrams

    def __bool__(self) -> bool:
        return self._columns.count > 0

    def __iter__(self) -> Iterator[tuple[bytes, AddressT_co]]:
        target: Any = self._target
        packets: list[tuple[bytes, Any]] = self._columns.packets()
        if target is KEEP:
            return iter(packets)
        return ((packet, target) for packet, _ in packets)

    def __repr__(self) -> str:
        return f"<PacketBatch: {len(self)} datagrams, {self.nbytes} bytes>"

    @property
    def nbytes(self) -> int:
        """The payload bytes of all its datagrams."""
        return self._columns.nbytes

    @property
    def truncated(self) -> int:
        """The number of datagrams that arrived cut, because a buffer was too small. Normally 0."""
        losses = self._columns.losses
        return losses.truncated if losses else 0

    @overload
    def to(self, address: Address) -> PacketBatch[Address]: ...
    @overload
    def to(self, address: Address | None) -> PacketBatch: ...
    def to(self, address: Address | None) -> PacketBatch[Any]:
        """The whole batch for another peer, at no cost: nothing is copied, no train is made.

        What `PacketTrain.to` keeps and drops holds for each train. `None` is the connected peer.
        """
        return batch_of(self._columns, address)


def batch_of(columns: Columns, target: Target = KEEP) -> PacketBatch[Any]:
    """A batch over columns that exist already."""
    batch: PacketBatch[Any] = PacketBatch.__new__(PacketBatch)
    batch._columns = columns
    batch._target = target
    batch._trains = None
    return batch


def columns_of(batch: PacketBatch) -> tuple[Columns, Target]:
    """What a batch is made of: its columns, and the one target that replaces their addresses."""
    return batch._columns, batch._target
