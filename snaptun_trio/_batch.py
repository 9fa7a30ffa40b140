# PacketBatch: what one receive call brought, or what is to be sent together.
#
# A batch is messages, not objects. It knows its datagrams through the few questions of `Messages`,
# and makes trains, packets and addresses only when somebody looks at them; a batch that is only
# passed on never does. This file must not know sockets, the pool or which system it runs on.

from __future__ import annotations

from itertools import groupby
from operator import attrgetter
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    final,
    overload,
)

from ._brief import brief, type_names
from ._coalesce import joined
from ._losses import ReceiveLosses
from ._messages import PER_TRAIN_ADDRESS, Messages, Recipient, TrainMessages, over
from ._packing import packed
from ._train import Address, AddressT_co, PacketTrain, make_train, max_train_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ._train import Packet, Way


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

    @overload
    @staticmethod
    def pack(pairs: Iterable[tuple[Packet, Address]]) -> PacketBatch[Address]: ...
    @overload
    @staticmethod
    def pack(pairs: Iterable[tuple[Packet, Address | None]]) -> PacketBatch: ...
    @staticmethod
    def pack(pairs: Iterable[tuple[Packet, Address | None]]) -> PacketBatch[Any]:
        """Pack ``(packet, address)`` pairs into a batch, gathered into as few trains as possible.

        The addresses come in the order in which they first appear, and the packets of each in
        their own. Two spellings of one peer are two addresses here, see `Address`.

        >>> a, b = ("192.0.2.1", 9), ("192.0.2.2", 9)
        >>> list(PacketBatch.pack([(b"one", a), (b"two", b), (b"three", a)]))
        [(b'one', ('192.0.2.1', 9)), (b'three', ('192.0.2.1', 9)), (b'two', ('192.0.2.2', 9))]

        Args:
          pairs: each packet, any bytes-like object, with its peer; `None` is the connected one.

        Raises:
          TypeError: one of them is no such pair, a packet is not bytes-like, or an address is none.
          ValueError: a packet is over 65 527 bytes, which no UDP datagram can hold, or a number of
            an address is out of its range.
        """
        return batch_of(TrainMessages(*packed(pairs)))

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
        return iter(self.packets())

    def __repr__(self) -> str:
        return f"<PacketBatch: {len(self)} datagrams, {self.nbytes} bytes>"

    @property
    def nbytes(self) -> int:
        """The payload bytes of all its datagrams."""
        return self._messages.nbytes

    @property
    def truncated(self) -> int:
        """The number of datagrams that arrived cut, because a buffer was too small. Normally 0.

        Each batch that is made of a part of this one, by `by_address`, tells of its own.
        """
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

    def packets(self) -> list[tuple[bytes, AddressT_co]]:
        """What iterating yields as one list, made in one go.

        >>> PacketBatch([PacketTrain(b"onetwo", 3, None)]).packets()
        [(b'one', None), (b'two', None)]
        """
        packets: list[tuple[bytes, Any]] = self._messages.packets()
        recipient: Any = self._recipient
        if recipient is not PER_TRAIN_ADDRESS:
            return [(packet, recipient) for packet, _ in packets]
        return packets

    def by_address(self) -> dict[AddressT_co, PacketBatch[AddressT_co]]:
        """One batch for each peer, in order of first appearance, each peer's order kept.

        Nothing is copied: each of them keeps the slab of the whole batch for as long as it lives.
        A batch with one peer is its own only part, and costs next to nothing to ask. Peers are
        told apart by their addresses as tuples: ``("::1", 9)`` and ``("::1", 9, 0, 0)`` are two.
        A receiver always spells a peer in the same way.

        >>> a, b = ("192.0.2.1", 9), ("192.0.2.2", 9)
        >>> batch = PacketBatch.pack([(b"one", a), (b"two", b), (b"three", a)])
        >>> batch.by_address()[a].packets()
        [(b'one', ('192.0.2.1', 9)), (b'three', ('192.0.2.1', 9))]
        """
        if self._recipient is not PER_TRAIN_ADDRESS:
            whole: dict[Any, PacketBatch[AddressT_co]] = {self._recipient: self} if self else {}
            return whole
        parts: Mapping[Any, Messages] = self._messages.by_address()
        return {
            address: self if messages is self._messages else batch_of(messages)
            for address, messages in parts.items()
        }

    def detach(self) -> PacketBatch[AddressT_co]:
        """The same batch on memory of its own, so that no slab is kept for it.

        All is copied that is not held as `bytes`, and all of a train's fields are kept. A batch
        that holds nothing but `bytes` is returned itself.

        >>> PacketBatch([PacketTrain(memoryview(b"one"), 3, None)]).detach().trains[0].data
        b'one'
        """
        messages = self._messages.detached()
        return self if messages is self._messages else batch_of(messages, self._recipient)

    # Plain data: what is pickled, and a deep copy, is on memory of its own.

    def __getstate__(self) -> tuple[object, ...]:
        losses = self._messages.losses
        return self.trains, losses.cut if losses else frozenset()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        trains, cut = state
        self._messages = TrainMessages.of_trains(trains, ReceiveLosses(cut) if cut else None)
        self._recipient = PER_TRAIN_ADDRESS
        self._trains = trains

    def __copy__(self) -> PacketBatch[AddressT_co]:
        return self  # it is immutable


def check_batch(value: PacketBatch) -> None:
    """Make sure that this is a batch.

    Raises:
      TypeError: it is none.
    """
    if not isinstance(value, PacketBatch):
        raise TypeError(f"a PacketBatch is needed, not {brief(value)}; bytes go by send_packet")


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


def way_back_of(batch: PacketBatch) -> Way | None:
    """How an answer to its first train leaves; `None` is however the kernel likes."""
    return batch._messages.way_back()


def by_way(batch: PacketBatch[AddressT_co]) -> Iterator[PacketBatch[AddressT_co]]:
    """What came to one address of ours, and then what came to another one."""
    for _, trains in groupby(batch.trains, attrgetter("local_address", "interface_index")):
        yield PacketBatch(trains)


def addressed(batch: PacketBatch, address: Address, way: Way | None) -> PacketBatch:
    """A whole batch for one peer, that leaves from an address of ours if ``way`` names one."""
    if way is None:
        return batch.to(address)
    _, host, interface = way
    return PacketBatch(
        make_train(train.data, train.segment_size, address, train.ecn, host, interface)
        for train in batch.trains
    )


@overload
def packed_for(address: Address, packets: list[bytes]) -> PacketBatch[Address]: ...
@overload
def packed_for(address: None, packets: list[bytes]) -> PacketBatch: ...
def packed_for(address: Address | None, packets: list[bytes]) -> PacketBatch[Any]:
    """Packets for one peer, in as few trains as possible, order kept. `None` is the connected one.

    Raises:
      ValueError: a packet is over 65 527 bytes.
    """
    trains = joined(packets, max_train_bytes(address))
    payloads: list[bytes | memoryview] = [data for data, _ in trains]
    return batch_of(
        TrainMessages(payloads, [size for _, size in trains], [address] * len(trains)), address
    )


def merged(batches: Sequence[PacketBatch]) -> PacketBatch:
    """Small batches as one, each address's order kept."""
    if all(batch._messages.plain for batch in batches):
        return PacketBatch.pack([pair for batch in batches for pair in batch.packets()])
    return PacketBatch([train for batch in batches for train in batch.trains])


def chosen(batch: PacketBatch[AddressT_co], places: list[int]) -> PacketBatch[AddressT_co]:
    """Some of its datagrams, by their places in it; each a train of its own."""
    each = [(train, packet) for train in batch.trains for packet in train]
    return PacketBatch(
        [over(train, packet, len(packet)) for train, packet in map(each.__getitem__, places)]
    )


def part_of(batch: PacketBatch[AddressT_co], start: int, stop: int) -> PacketBatch[AddressT_co]:
    """Its datagrams from ``start`` to before ``stop``, as indices; over the same memory."""
    if start <= 0 and stop >= len(batch):
        return batch
    kept: list[PacketTrain[AddressT_co]] = []
    for train in batch.trains:
        count, size = len(train), train.segment_size
        first, end = max(start, 0), min(stop, count)
        if (first, end) == (0, count):
            kept.append(train)
        elif first < end:
            kept.append(over(train, train.data[first * size : end * size]))
        start, stop = start - count, stop - count
    return PacketBatch(kept)
