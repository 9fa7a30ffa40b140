# Message by message: what becomes one message, and what a message that came in means.
#
# The portable backend goes this way always; it follows the same rules as `_send.c`, and the tests
# hold the two together. No system call is made here.

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from .._coalesce import (
    MAX_PAYLOAD_IPV4,
    MAX_PAYLOAD_IPV6,
    MAX_TRAIN_IPV4,
    MAX_TRAIN_IPV6,
    datagram_count,
)
from .._losses import ReceiveLosses
from .._messages import PER_TRAIN_ADDRESS, TrainMessages
from .._train import make_train
from . import _abi, _cmsg, _sockaddr

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .._messages import Messages, Recipient
    from .._train import Address
    from ._interface import SocketIO


class Way(NamedTuple):
    """How a train leaves. Only trains that leave alike can be one message."""

    name: bytes | None
    """The raw name of the peer, `None` for the connected one."""
    ipv4: bool
    ecn: int | None = None
    local_address: str | None = None
    interface_index: int | None = None


class Prepared(NamedTuple):
    """A batch that can be sent on sockets of one family: its trains, in the order in which they
    leave, and how each of them does."""

    content: TrainMessages
    recipient: Recipient
    ways: list[Way]
    order: list[int] | None = None
    """Where each train stood in what was given, `None` where it still stands there."""


def prepare(messages: Messages, recipient: Recipient, family: int) -> Prepared:
    """Make sure that a batch can be sent on sockets of this family, as far as Python can tell.

    Raises:
      TypeError, ValueError: an address, or a local address, is none of this family.
    """
    content = TrainMessages.of(messages)
    ways = _ways(content, recipient, family)
    order = _by_peer(content, ways) if recipient is PER_TRAIN_ADDRESS else None
    if order is not None:
        content, ways = content.ordered(order), [ways[index] for index in order]
    return Prepared(content, recipient, ways, order)


def _ways(content: TrainMessages, recipient: Recipient, family: int) -> list[Way]:
    if recipient is PER_TRAIN_ADDRESS:
        # By identity, for as long as the addresses live: 80.0 equals 80, and is no port.
        known: dict[int, Way] = {}
        for address in content.addresses:
            if id(address) not in known:
                known[id(address)] = _way(address, family)
        ways = [known[id(address)] for address in content.addresses]
    else:
        ways = list(repeat(_way(recipient, family), content.count))
    if content.plain:
        return ways
    # The source belongs to the way to the train's own peer, see `PacketTrain.to`.
    kept = recipient is PER_TRAIN_ADDRESS
    for index, train in enumerate(content.trains()):
        local, interface = (train.local_address, train.interface_index) if kept else (None, None)
        way = ways[index]._replace(ecn=train.ecn, local_address=local, interface_index=interface)
        _cmsg.encode(0, *way[2:], way.ipv4)
        ways[index] = way
    return ways


def _way(address: Address | None, family: int) -> Way:
    name = None if address is None else _sockaddr.name_of(address, family)
    return Way(name, _sockaddr.is_ipv4(name) if name else family == _sockaddr.AF_INET)


def _by_peer(content: TrainMessages, ways: list[Way]) -> list[int] | None:
    """The order of the peers, each peer's in their own, where all are single datagrams.

    Neighbours can then leave as one message. `None` where there is nothing to gain, and where some
    are for the connected peer, who may be among the others by name.
    """
    if content.datagrams != content.count or content.count < 3:
        return None
    order: dict[bytes, list[int]] = {}
    for index, way in enumerate(ways):
        if way.name is None:
            return None
        order.setdefault(way.name, []).append(index)
    if not 1 < len(order) < content.count:
        return None
    return [index for indices in order.values() for index in indices]


class OutgoingMessage(NamedTuple):
    """One message to be sent: a part of a train, all of it, or several that make one together."""

    buffers: list[bytes | memoryview]
    nbytes: int
    address: Address | None
    controls: tuple[_cmsg.ControlMessage, ...]
    end: tuple[int, int]
    """The train and the offset that it ends before."""
    datagrams: int

    @property
    def payload(self) -> bytes:
        """All its bytes."""
        return b"".join(self.buffers)


def outgoing_messages(
    prepared: Prepared, place: tuple[int, int], segments: int
) -> Iterator[OutgoingMessage]:
    """Cut everything from a place on, a train and bytes in it, into messages that the kernel takes.

    None of them has more than ``segments`` datagrams; 0 is as good as 1, and asks for no GSO.
    """
    content, recipient, ways, _ = prepared
    payloads, sizes = content.payloads, content.segment_sizes
    index, offset = place
    while index < content.count:
        first, way = index, ways[index]
        data = payloads[index]
        length = len(data)
        size = min(sizes[index], length)
        nbytes = min(length - offset, _piece_size(size, length, way.ipv4, segments))
        whole = nbytes == length
        buffers = [data if whole else memoryview(data)[offset : offset + nbytes]]
        datagrams = datagram_count(nbytes, size)
        offset += nbytes
        if offset >= length:
            index, offset = index + 1, 0
        # Only what begins with its train is joined by others, and nothing follows a shorter end.
        room = MAX_TRAIN_IPV4 if way.ipv4 else MAX_TRAIN_IPV6
        joins = whole and datagrams < segments
        while joins and length and length % size == 0 and index < content.count:
            after = payloads[index]
            length = len(after)
            more = datagram_count(length, sizes[index])
            if not (
                length
                and (min(sizes[index], length) == size or (more == 1 and length < size))
                and nbytes + length <= room
                and datagrams + more <= segments
                and ways[index] == way
            ):
                break
            buffers.append(after)
            nbytes += length
            datagrams += more
            index += 1
        yield OutgoingMessage(
            buffers,
            nbytes,
            content.addresses[first] if recipient is PER_TRAIN_ADDRESS else recipient,
            _cmsg.encode(size if datagrams > 1 else 0, *way[2:], way.ipv4),
            (index, offset),
            datagrams,
        )


def _piece_size(segment_size: int, length: int, ipv4: bool, segments: int) -> int:
    """How many bytes of a train go into one message."""
    if length <= segment_size:
        return segment_size or 1
    whole = MAX_PAYLOAD_IPV4 if ipv4 else MAX_PAYLOAD_IPV6
    room = whole if length <= whole else MAX_TRAIN_IPV4 if ipv4 else MAX_TRAIN_IPV6
    return segment_size * max(1, min(segments, room // segment_size))


class IncomingMessage(NamedTuple):
    """One message that came in."""

    data: bytes | memoryview
    """What fitted into the buffer."""
    length: int
    """The message's true length in bytes, which may be more."""
    flags: int
    """msg_flags: whether the payload or the control messages were cut."""
    address: Address | None
    control: list[_cmsg.ControlMessage]


def received(
    messages: Iterable[IncomingMessage], io: SocketIO, error: OSError | None = None
) -> TrainMessages:
    """What came in as trains, with the account of what did not fit."""
    payloads: list[bytes | memoryview] = []
    sizes: list[int] = []
    addresses: list[Address | None] = []
    ancillary: list[_cmsg.Ancillary] = []
    cut: list[int] = []  # the trains of which the last datagram is cut
    datagrams_lost = bytes_lost = trains_unknown = bytes_unknown = 0
    for data, length, flags, address, control in messages:
        told = _cmsg.decode(control)
        if flags & _abi.MSG_CTRUNC and told.segment_size is None and io.gro:
            # The segment size may be what was cut off, and to guess it would make two datagrams
            # into one.
            trains_unknown += 1
            bytes_unknown += length
            continue
        kept = len(data)
        size = told.segment_size or kept
        if kept < length:
            bytes_lost += length - kept
            if told.segment_size is None or kept % size:
                cut.append(len(payloads))
            if told.segment_size is not None:
                datagrams_lost += datagram_count(length, size) - datagram_count(kept, size)
        payloads.append(data)
        sizes.append(size)
        addresses.append(address)
        ancillary.append(told)
    losses = ReceiveLosses(
        frozenset(cut), datagrams_lost, bytes_lost, trains_unknown, bytes_unknown, error
    )
    trains = None
    if not _NOTHING_TOLD.issuperset([told[1:] for told in ancillary]):
        trains = tuple(
            [
                make_train(data, size, address, *told[1:])
                for data, size, address, told in zip(payloads, sizes, addresses, ancillary)
            ]
        )
    return TrainMessages(payloads, sizes, addresses, trains, losses if any(losses) else None)


_NOTHING_TOLD = {_cmsg.NOTHING[1:]}
