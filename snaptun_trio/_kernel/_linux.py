# Linux: recvmmsg with UDP_GRO and sendmmsg with UDP_SEGMENT, one system call a batch.
#
# The work over whole batches is the compiled part's, `_rows.h` says what that is about. Here stands
# what is rare: batches in which a buffer was too small, trains as a program sees them, ancillary
# data. What an errno means is not decided here.

from __future__ import annotations

from typing import TYPE_CHECKING

from .._batch import KEEP, TrainColumns
from .._train import make_train
from . import _cmsg, _options, _rows, _sockaddr
from ._interface import Laid
from ._pieces import IncomingMessage, received

if TYPE_CHECKING:
    from .._batch import Columns, Target
    from .._train import Address, PacketTrain
    from ._interface import Socket


def _make_trains(rows: _rows.Rows, first: int, stop: int) -> tuple[PacketTrain, ...]:
    """The trains of some rows."""
    trains = []
    for index in range(first, stop):
        data, _, size, address, control, _ = rows.row(index)
        told = _cmsg.decode(_cmsg.parse(control)) if control else _cmsg.NOTHING
        trains.append(make_train(data, size, address, *told[1:]))
    return tuple(trains)


_rows.use(_sockaddr.decode, _make_trains)


class LinuxBackend:
    """Moves batches with one system call each."""

    name = "linux"

    def memory(self, buffer_size: int, capacity: int) -> _rows.Pool:
        return _rows.Pool(buffer_size, capacity)

    def receive(self, sock: Socket, memory: _rows.Pool, offered: int, slots: int) -> Columns | None:
        rows = memory.receive(sock.fileno(), offered, slots)
        if rows is None or not rows.cut:
            return rows
        return received(
            [
                IncomingMessage(data, told, flags, address, _cmsg.parse(control))
                for data, told, _, address, control, flags in map(rows.row, range(rows.count))
            ],
            gro=_options.gro_enabled(sock),
        )

    def lay_out(self, columns: Columns, target: Target, family: int) -> Laid:
        name: bytes | bool | None = True
        if target is not KEEP:
            name = None if target is None else _sockaddr.name_of(target, family)
        if isinstance(columns, _rows.Rows) and columns.plain:
            if name is True:
                _check_family(columns, family)
            rows = columns
        else:
            rows = _rows_of(columns, target, family)
        return Laid(rows.gathered() if name is True else rows, name)

    def prepare(
        self, sock: Socket, laid: Laid, train: int, offset: int, *, gso: bool, single: bool
    ) -> _rows.Transmission:
        rows, name = laid
        return _rows.prepare(rows, name, train, offset, gso, single, int(sock.family))


def _check_family(rows: _rows.Rows, family: int) -> None:
    """Make sure that what one socket received can be sent back by another.

    One socket received them all, so the first row speaks for all.
    """
    if rows.count and rows.family != family:
        address = rows.row(0)[3]
        if address is not None:
            _sockaddr.name_of(address, family)


def _rows_of(columns: Columns, target: Target, family: int) -> _rows.Rows:
    """Rows of what a program made, or of what has ancillary data that has to be said again."""
    listed = columns if isinstance(columns, TrainColumns) else TrainColumns.of(columns.trains())
    names: list[bytes | None] = []
    last: Address | None = None
    name: bytes | None = None
    for address in listed.addresses:
        if address is not last:
            last, name = address, None if address is None else _sockaddr.name_of(address, family)
        names.append(name)
    controls = None
    if not listed.plain:
        kept = target is KEEP
        if target is not KEEP:
            names = [None if target is None else _sockaddr.name_of(target, family)] * listed.count
        controls = [
            _control(train, name, family, kept) for train, name in zip(listed.trains(), names)
        ]
    return _rows.rows(listed.payloads, listed.segment_sizes, names, controls, listed.addresses)


def _control(train: PacketTrain, name: bytes | None, family: int, kept: bool) -> bytes | None:
    """What a train asks for beside its address, as raw control messages."""
    ipv4 = _sockaddr.is_ipv4(name) if name else family == _sockaddr.AF_INET
    # The source belongs to the way to the train's own peer, see `PacketTrain.to`.
    local = train.local_address if kept else None
    interface = train.interface_index if kept else None
    return _cmsg.serialise(_cmsg.encode(0, train.ecn, local, interface, ipv4)) or None
