# Linux: recvmmsg with UDP_GRO and sendmmsg with UDP_SEGMENT, one system call a batch.
#
# The work over whole batches is the compiled part's, `_rows.h` says what that is about. Here stands
# what is rare: batches in which a buffer was too small, trains as a program sees them, ancillary
# data. What an errno means is not decided here.

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from .._coalesce import MAX_SEGMENTS
from .._messages import PER_TRAIN_ADDRESS, TrainMessages
from .._train import make_train
from .._way_back import way_back
from . import _cmsg, _rows, _sockaddr
from ._fan import Fan, Link, Received, Sent
from ._interface import SocketIO
from ._pieces import IncomingMessage, received

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._messages import Messages, Recipient
    from .._train import Address, PacketTrain, Way


def _make_trains(rows: _rows.Rows, first: int, stop: int) -> tuple[PacketTrain, ...]:
    """The trains of some rows."""
    trains = []
    for index in range(first, stop):
        data, _, size, address, control, _ = rows.row(index)
        told = _cmsg.read(control) if control else ()
        trains.append(make_train(data, size, address, *told))
    return tuple(trains)


@lru_cache(1024)
def _control(way: Way, ipv4: bool) -> bytes | None:
    return _cmsg.serialise(_cmsg.encode(0, *way, ipv4)) or None


@lru_cache(1024)
def _way_back(packet_info: bytes) -> Way | None:
    """How an answer leaves, by the raw control messages that say where a message came to."""
    _, host, interface, _ = _cmsg.read(packet_info)
    return way_back(host, interface)


_rows.use(_sockaddr.decode, _make_trains, _way_back)

# More sockets than that are not read by one call of `receive_each`.
_READ_AT_ONCE = 256


class LinuxIO(SocketIO):
    """Moves a batch with one system call."""

    backend = "linux"

    @staticmethod
    def memory(buffer_size: int, capacity: int) -> _rows.Pool:
        return _rows.Pool(buffer_size, capacity)

    @staticmethod
    def fan(front: SocketIO, memory: _rows.Pool, *, gro: bool, gso: bool) -> LinuxFan:
        return LinuxFan(front, memory, gro=gro, gso=gso)

    def receive(self, memory: _rows.Pool, offered: int, slots: int) -> Messages | None:
        rows = memory.receive(self.sock.fileno(), offered, slots)
        if rows is None or not rows.cut:
            return rows
        return received(
            [
                IncomingMessage(data, told, flags, address, _cmsg.parse(control))
                for data, told, _, address, control, flags in map(rows.row, range(rows.count))
            ],
            self,
        )

    def outgoing(self, messages: Messages, address: Recipient) -> _rows.Outgoing:
        name: bytes | bool | None = True
        if address is not PER_TRAIN_ADDRESS:
            name = None if address is None else _sockaddr.name_of(address, self.family)
        if isinstance(messages, _rows.Rows) and messages.plain:
            rows = messages
            if name is True and rows.family != self.family:
                self._check_family(rows)
        else:
            rows = self._rows_of(messages, address)
        return _rows.outgoing(rows, name, self.family)

    def gathered(
        self,
        payloads: list[bytes | memoryview],
        sizes: list[int],
        addresses: list[Address | None],
        names: list[bytes | None],
        ways: list[Way | None],
    ) -> _rows.Outgoing:
        controls = None
        if any(ways):
            control, ipv4 = self.control, self.family == _sockaddr.AF_INET
            controls = [
                way and (_control(way, True) if ipv4 else control(name, way))
                for name, way in zip(names, ways)
            ]
        rows = _rows.rows(payloads, sizes, names, controls, addresses)
        return _rows.outgoing(rows, True, self.family)

    def _check_family(self, rows: _rows.Rows) -> None:
        """Make sure that what some other socket received can be sent here: one speaks for all."""
        address = rows.row(0)[3] if rows.count else None
        if address is not None:
            _sockaddr.name_of(address, self.family)

    def _rows_of(self, messages: Messages, address: Recipient) -> _rows.Rows:
        """Rows of what a program made, or of what has ancillary data that has to be said again."""
        made = TrainMessages.of(messages)
        kept = address is PER_TRAIN_ADDRESS
        if address is PER_TRAIN_ADDRESS:
            names = self._names_of(made.addresses)
        else:
            name = None if address is None else _sockaddr.name_of(address, self.family)
            names = [name] * made.count
        controls = None
        if not made.plain:
            # The source belongs to the way to the train's own peer, see `PacketTrain.to`.
            ways = [(t.ecn, t.local_address, t.interface_index) for t in made.trains()]
            ways = ways if kept else [(ecn, None, None) for ecn, _, _ in ways]
            controls = [self.control(name, way) for name, way in zip(names, ways)]
        return _rows.rows(made.payloads, made.segment_sizes, names, controls, made.addresses)

    def _names_of(self, addresses: list[Address | None]) -> list[bytes | None]:
        names: list[bytes | None] = []
        # By identity, for as long as the addresses live: 80.0 equals 80, and is no port.
        known: dict[int, bytes | None] = {id(None): None}
        last, name = None, None
        for own in addresses:
            if own is not last:
                last = own
                if id(own) not in known and own is not None:
                    known[id(own)] = _sockaddr.name_of(own, self.family)
                name = known[id(own)]
            names.append(name)
        return names

    def control(self, name: bytes | None, way: Way) -> bytes | None:
        """What a train asks for beside its address, as raw control messages."""
        ipv4 = _sockaddr.is_ipv4(name) if name else self.family == _sockaddr.AF_INET
        return _control(way, ipv4)


class LinuxFan(Fan):
    """All of the many with one call of ours."""

    _memory: _rows.Pool
    # Of the many. Where some are IPv6, IPv6's limit for trains holds for all: it is the lower one.
    _family = 0

    def _tell(self, link: Link, way: Way | None) -> None:
        self._family = max(self._family, link.io.family)
        link.handle = link.io.sock.fileno()
        link.name = _sockaddr.name_of(link.address, self._front.family)
        assert isinstance(self._front, LinuxIO)
        link.control = None if way is None else self._front.control(link.name, way)

    def receive(self, links: Sequence[Link]) -> Received:
        links = links[:_READ_AT_ONCE]
        rows = self._memory.receive_each(
            [link.handle for link in links],
            [link.name for link in links],
            [link.control for link in links],
        )
        return Received(rows, rows.served, rows.error)

    def send(self, links: Sequence[Link], batches: list[Messages], budget: int) -> Sent:
        rows = [batch for batch in batches if isinstance(batch, _rows.Rows)]
        if len(rows) < len(batches):  # they came in cut, or a program made them
            rows = list(map(self._rows_for, links, batches))
        handles = [link.handle for link in links]
        segments = MAX_SEGMENTS if self.gso else 0
        sent = _rows.send_each(rows, handles, budget, segments, self._family)
        return Sent(*sent[:4], [*sent[4]])

    @staticmethod
    def _rows_for(link: Link, messages: Messages) -> _rows.Rows:
        """Rows for whom a link is connected to."""
        if isinstance(messages, _rows.Rows):
            return messages
        if isinstance(messages, TrainMessages) and messages.plain:  # nearly always, and it is cheap
            nobody: list[bytes | None] = [None] * messages.count
            columns = messages.payloads, messages.segment_sizes, nobody, None, messages.addresses
            return _rows.rows(*columns)
        assert isinstance(link.io, LinuxIO)
        return link.io._rows_of(messages, None)
