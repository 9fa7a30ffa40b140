# Message by message: how columns are cut into messages, and what a message that came in means.
#
# The portable backend goes this way always; the Linux backend where whole arrays cannot say it:
# trains over the kernel's limits, ancillary data, sends without GSO, buffers that were too small.
# No system call is made here.

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .._batch import KEEP, Losses, TrainColumns
from .._coalesce import (
    MAX_PAYLOAD_IPV4,
    MAX_PAYLOAD_IPV6,
    MAX_SEGMENTS,
    MAX_TRAIN_IPV4,
    MAX_TRAIN_IPV6,
    datagram_count,
    segment_ranges,
)
from .._train import make_train
from . import _abi, _cmsg, _sockaddr
from ._interface import START, Position

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .._batch import Columns, Target
    from .._train import Address, PacketTrain


class Piece(NamedTuple):
    """One message to be sent: a part of a train, or all of it."""

    train: PacketTrain
    start: int
    nbytes: int
    address: Address | None
    name: bytes
    """The raw address; empty for the connected peer."""
    controls: tuple[_cmsg.ControlMessage, ...]
    end: Position
    datagrams: int


def pieces(
    columns: Columns, target: Target, position: Position, family: int, gso: bool
) -> Iterator[Piece]:
    """Cut everything from ``position`` on into messages that the kernel takes."""
    trains = columns.trains()
    offset = position.offset
    for index in range(position.train, len(trains)):
        train = trains[index]
        address = train.address if target is KEEP else target
        name = b"" if address is None else _sockaddr.encode(address, family)
        ipv4 = _sockaddr.is_ipv4(name) if name else family == _sockaddr.AF_INET
        # The source belongs to the way to the train's own peer, see `PacketTrain.to`.
        local = train.local_address if target is KEEP else None
        interface = train.interface_index if target is KEEP else None
        size, length = train.segment_size, len(train.data)
        for at, nbytes in segment_ranges(length - offset, _piece_size(size, length, ipv4, gso)):
            end = offset + at + nbytes
            yield Piece(
                train,
                offset + at,
                nbytes,
                address,
                name,
                _cmsg.encode(size if nbytes > size else 0, train.ecn, local, interface, ipv4),
                Position(index, end) if end < length else Position(index + 1),
                datagram_count(nbytes, size),
            )
        offset = 0


def check(train: PacketTrain, family: int) -> None:
    """Make sure that a train can be sent on sockets of this family, as far as Python can tell.

    Raises:
      TypeError, ValueError: its address, or its local address, is none of this family.
    """
    next(pieces(TrainColumns.of((train,)), KEEP, START, family, gso=True))


def _piece_size(segment_size: int, length: int, ipv4: bool, gso: bool) -> int:
    """How many bytes of a train go into one message."""
    if not gso or length <= segment_size:
        return segment_size or 1
    whole = MAX_PAYLOAD_IPV4 if ipv4 else MAX_PAYLOAD_IPV6
    room = whole if length <= whole else MAX_TRAIN_IPV4 if ipv4 else MAX_TRAIN_IPV6
    return segment_size * max(1, min(MAX_SEGMENTS, room // segment_size))


class Arrival(NamedTuple):
    """One message that came in."""

    buffer: memoryview
    """The whole buffer that was offered, read-only."""
    length: int
    """The message's true length in bytes, which may be more than the buffer's."""
    flags: int
    """msg_flags: whether the payload or the control messages were cut."""
    address: Address | None
    control: list[_cmsg.ControlMessage]


def received(
    arrivals: Iterable[Arrival], gro: bool, error: OSError | None = None, *, copy: bool
) -> TrainColumns:
    """Columns of trains from messages, with the account of what did not fit.

    ``gro`` says whether a message can be several datagrams, ``copy`` that the buffers are not to be
    kept.
    """
    trains = []
    truncated = datagrams_lost = bytes_lost = trains_unknown = bytes_unknown = 0
    for buffer, length, flags, address, control in arrivals:
        told = _cmsg.decode(control)
        if gro and flags & _abi.MSG_CTRUNC and told.segment_size is None:
            # The segment size may be what was cut off, and to guess it would make two datagrams
            # into one.
            trains_unknown += 1
            bytes_unknown += length
            continue
        kept = min(length, len(buffer))
        size = told.segment_size or kept
        if kept < length:
            bytes_lost += length - kept
            if told.segment_size is None:
                truncated += 1
            else:
                truncated += 1 if kept % size else 0
                datagrams_lost += datagram_count(length, size) - datagram_count(kept, size)
        data = bytes(buffer[:kept]) if copy else buffer[:kept]
        trains.append(make_train(data, size, address, *told[1:]))
    losses = Losses(truncated, datagrams_lost, bytes_lost, trains_unknown, bytes_unknown, error)
    return TrainColumns.of(tuple(trains), losses if any(losses) else None)
