# Message by message: what becomes one message, and what a message that came in means.
#
# The portable backend goes this way always; it follows the same rules as `_send.c`, and the tests
# hold the two together. No system call is made here.

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .._batch import PER_TRAIN_ADDRESS, ReceiveLosses, TrainMessages
from .._coalesce import (
    MAX_PAYLOAD_IPV4,
    MAX_PAYLOAD_IPV6,
    MAX_SEGMENTS,
    MAX_TRAIN_IPV4,
    MAX_TRAIN_IPV6,
    datagram_count,
)
from .._train import make_train
from . import _abi, _cmsg, _sockaddr

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .._batch import Recipient
    from .._train import Address, PacketTrain
    from ._interface import SocketIO


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
    content: TrainMessages, recipient: Recipient, place: tuple[int, int], family: int, gso: bool
) -> Iterator[OutgoingMessage]:
    """Cut everything from a place on, a train and bytes in it, into messages that the kernel takes.

    Without ``gso`` each datagram is one.
    """
    index, offset = place
    while index < content.count:
        first = content.train(index)
        ipv4, asked = _way(first, recipient, family)
        data = first.data
        length = len(data)
        size = min(first.segment_size, length)
        nbytes = min(length - offset, _piece_size(size, length, ipv4, gso))
        whole = nbytes == length
        buffers = [data if whole else memoryview(data)[offset : offset + nbytes]]
        datagrams = datagram_count(nbytes, size)
        offset += nbytes
        if offset >= length:
            index, offset = index + 1, 0
        # Only what begins with its train is joined by others.
        room = MAX_TRAIN_IPV4 if ipv4 else MAX_TRAIN_IPV6
        last = first
        while gso and whole and index < content.count:
            after = content.train(index)
            more = len(after)
            if not (
                last.nbytes
                and after.nbytes
                and last.nbytes % size == 0
                and (
                    min(after.segment_size, after.nbytes) == size
                    or (more == 1 and after.nbytes < size)
                )
                and nbytes + after.nbytes <= room
                and datagrams + more <= MAX_SEGMENTS
                and (recipient is not PER_TRAIN_ADDRESS or _same_peer(first, after, family))
                and _way(after, recipient, family) == (ipv4, asked)
            ):
                break
            buffers.append(after.data)
            nbytes += after.nbytes
            datagrams += more
            last = after
            index += 1
        yield OutgoingMessage(
            buffers,
            nbytes,
            first.address if recipient is PER_TRAIN_ADDRESS else recipient,
            _cmsg.encode(size if datagrams > 1 else 0, *asked, ipv4),
            (index, offset),
            datagrams,
        )


def _way(
    train: PacketTrain, recipient: Recipient, family: int
) -> tuple[bool, tuple[int | None, str | None, int | None]]:
    """Whether a train leaves over IPv4, and what it asks for beside its address."""
    address = train.address if recipient is PER_TRAIN_ADDRESS else recipient
    name = None if address is None else _sockaddr.name_of(address, family)
    ipv4 = _sockaddr.is_ipv4(name) if name else family == _sockaddr.AF_INET
    if recipient is PER_TRAIN_ADDRESS:
        return ipv4, (train.ecn, train.local_address, train.interface_index)
    # The source belongs to the way to the train's own peer, see `PacketTrain.to`.
    return ipv4, (train.ecn, None, None)


def _same_peer(one: PacketTrain, other: PacketTrain, family: int) -> bool:
    a, b = one.address, other.address
    if a is None or b is None:
        return a is b
    return a == b or _sockaddr.name_of(a, family) == _sockaddr.name_of(b, family)


def gathered(made: TrainMessages, family: int) -> TrainMessages:
    """The same in the order of the peers, each peer's in their own, where all are single ones.

    Neighbours can then leave as one message. These very ones where there is nothing to gain, and
    where some are for the connected peer, who may be among the others by name.
    """
    if made.datagrams != made.count or made.count < 3 or None in made.addresses:
        return made
    order: dict[bytes, list[int]] = {}
    for index, address in enumerate(made.addresses):
        if address is not None:
            order.setdefault(_sockaddr.name_of(address, family), []).append(index)
    if not 1 < len(order) < made.count:
        return made
    return made.ordered([index for indices in order.values() for index in indices])


def check(made: TrainMessages, recipient: Recipient, family: int) -> None:
    """Make sure that trains can be sent on sockets of this family, as far as Python can tell.

    Raises:
      TypeError, ValueError: an address, or a local address, is none of this family.
    """
    if recipient is None:
        return
    addresses = set(made.addresses) if recipient is PER_TRAIN_ADDRESS else {recipient}
    for address in addresses:
        if address is not None:
            _sockaddr.name_of(address, family)
    if not made.plain:
        for train in made.trains():
            ipv4, asked = _way(train, recipient, family)
            _cmsg.encode(0, *asked, ipv4)


def _piece_size(segment_size: int, length: int, ipv4: bool, gso: bool) -> int:
    """How many bytes of a train go into one message."""
    if not gso or length <= segment_size:
        return segment_size or 1
    whole = MAX_PAYLOAD_IPV4 if ipv4 else MAX_PAYLOAD_IPV6
    room = whole if length <= whole else MAX_TRAIN_IPV4 if ipv4 else MAX_TRAIN_IPV6
    return segment_size * max(1, min(MAX_SEGMENTS, room // segment_size))


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
    trains = []
    truncated = datagrams_lost = bytes_lost = trains_unknown = bytes_unknown = 0
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
            if told.segment_size is None:
                truncated += 1
            else:
                truncated += 1 if kept % size else 0
                datagrams_lost += datagram_count(length, size) - datagram_count(kept, size)
        trains.append(make_train(data, size, address, *told[1:]))
    losses = ReceiveLosses(
        truncated, datagrams_lost, bytes_lost, trains_unknown, bytes_unknown, error
    )
    return TrainMessages.of_trains(tuple(trains), losses if any(losses) else None)
