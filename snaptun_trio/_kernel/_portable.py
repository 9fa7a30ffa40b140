# The same two operations on the standard library's socket alone.
#
# For macOS, Windows, and a Linux sandbox that forbids recvmmsg and sendmmsg. A system call moves
# one message; where the platform has recvmsg and sendmsg the offloads work all the same. It makes
# an object for each train: here that is not what costs.

from __future__ import annotations

import contextlib
import socket
import sys
from itertools import islice
from typing import TYPE_CHECKING

from . import _abi, _options, _sockaddr
from ._interface import Position, Sent
from ._pieces import Arrival, pieces, received
from ._slab import COPIED_UP_TO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._batch import Columns, Target
    from .._train import Address
    from ._cmsg import ControlMessage
    from ._interface import Socket
    from ._pieces import Piece
    from ._slab import Slab

_HAS_MSG = hasattr(socket.socket, "recvmsg_into") and hasattr(socket.socket, "sendmsg")
# As an input flag, Linux alone tells the true length of a datagram that did not fit (recvmsg(2)).
_RECEIVE_FLAGS = _abi.MSG_TRUNC if sys.platform == "linux" else 0
# A call for each message: a batch beyond this gains nothing, and holds up the other tasks.
_MESSAGES = 64
_WSAEMSGSIZE = 10040  # Windows' way to say that a datagram was cut (winsock2.h)


@contextlib.contextmanager
def plain_socket(sock: Socket) -> Iterator[socket.socket]:
    """The socket as the standard library's, for as long as no other task can run.

    A trio socket has no synchronous methods. The same descriptor in an object of its own has, and
    it is let go again before anybody could close it.
    """
    if isinstance(sock, socket.socket):
        yield sock
        return
    plain = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.fileno())
    try:
        plain.setblocking(False)
        yield plain
    finally:
        plain.detach()


class PortableBackend:
    """Moves batches with one system call for each message."""

    name = "portable"

    def receive(self, sock: Socket, slab: Slab, slots: int) -> Columns:
        rows: list[tuple[int, int, Address, list[ControlMessage]]] = []
        late_error = None
        with plain_socket(sock) as plain:
            while len(rows) < min(slots, _MESSAGES):
                try:
                    rows.append(_receive_message(plain, slab.slot(len(rows))))
                except OSError as error:
                    if not rows:
                        raise
                    if not isinstance(error, BlockingIOError):
                        late_error = error
                    break
        copy = sum([length for length, *_ in rows]) <= COPIED_UP_TO
        memory = memoryview(slab.payload) if copy else slab.view(slab.lend())
        memory = memory.toreadonly()[slab.packed_size :]
        stride = slab.stride
        return received(
            [
                Arrival(
                    memory[index * stride : index * stride + slab.slot_size],
                    length,
                    flags,
                    address,
                    control,
                )
                for index, (length, flags, address, control) in enumerate(rows)
            ],
            _options.gro_enabled(sock),
            late_error,
            copy=copy,
        )

    def prepare(
        self, sock: Socket, columns: Columns, target: Target, position: Position, gso: bool
    ) -> PortableTransmission:
        found = pieces(columns, target, position, _sockaddr.socket_family(sock), gso)
        return PortableTransmission(sock, list(islice(found, _MESSAGES)), position)

    def prepare_single(
        self, sock: Socket, columns: Columns, target: Target, position: Position
    ) -> PortableTransmission:
        found = pieces(columns, target, position, _sockaddr.socket_family(sock), gso=False)
        return PortableTransmission(sock, list(islice(found, 1)), position)


class PortableTransmission:
    """Messages that are sent one by one."""

    __slots__ = ("_done", "_pieces", "_position", "_sock")

    def __init__(self, sock: Socket, found: list[Piece], position: Position) -> None:
        self._sock = sock
        self._pieces = found
        self._done = 0
        self._position = position

    @property
    def more(self) -> bool:
        return self._done < len(self._pieces)

    def send(self, most: int) -> Sent:
        messages = datagrams = nbytes = 0
        with plain_socket(self._sock) as plain:
            for piece in self._pieces[self._done : self._done + most]:
                try:
                    _send_message(plain, piece)
                except OSError as error:
                    if messages:
                        # The next call meets it again, at its own message.
                        break
                    return Sent(self._position, 0, 0, 0, error, piece.end, piece.datagrams > 1)
                self.skip()
                messages += 1
                datagrams += piece.datagrams
                nbytes += piece.nbytes
        return Sent(self._position, messages, datagrams, nbytes)

    def skip(self) -> None:
        self._position = self._pieces[self._done].end
        self._done += 1

    def close(self) -> None:
        self._pieces = []


def _receive_message(
    plain: socket.socket, slot: memoryview
) -> tuple[int, int, Address, list[ControlMessage]]:
    if _HAS_MSG:
        length, control, flags, address = plain.recvmsg_into(
            [slot], _abi.CONTROL_SIZE, _RECEIVE_FLAGS
        )
        cut = flags & socket.MSG_TRUNC and _abi.MSG_TRUNC
        cut_control = flags & socket.MSG_CTRUNC and _abi.MSG_CTRUNC
        return length, cut | cut_control, address, control
    try:
        length, address = plain.recvfrom_into(slot)
    except OSError as error:
        if getattr(error, "winerror", None) != _WSAEMSGSIZE:
            raise
        # Windows keeps the sender's address to itself then, and the true length as well.
        return len(slot) + 1, _abi.MSG_TRUNC, ("0.0.0.0", 0), []
    return length, 0, address, []


def _send_message(plain: socket.socket, piece: Piece) -> None:
    data = memoryview(piece.train.data)[piece.start : piece.start + piece.nbytes]
    name = () if piece.address is None else (_sockaddr.mapped(piece.address, int(plain.family)),)
    if _HAS_MSG:
        plain.sendmsg([data], piece.controls, 0, *name)
    elif name:
        plain.sendto(data, *name)
    else:
        plain.send(data)
