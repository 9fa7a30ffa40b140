# The same two operations on the standard library's socket alone.
#
# For macOS, Windows, and a Linux sandbox that forbids recvmmsg and sendmmsg. A system call moves
# one message; where the platform has recvmsg and sendmsg the offloads work all the same. It makes
# an object for each train: here that is not what costs.

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from itertools import islice
from typing import TYPE_CHECKING

from .._batch import KEEP, TrainColumns
from . import _abi, _options, _sockaddr
from ._interface import Laid
from ._pieces import IncomingMessage, OutgoingMessage, check, gathered, outgoing_messages, received

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._batch import Columns, Target
    from ._interface import Socket

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


class Scratch:
    """Buffers to receive into. What comes in is copied out, so one serves nearly always."""

    def __init__(self, buffer_size: int) -> None:
        self._buffer_size = buffer_size
        self._idle: list[memoryview] = []
        self._reused = self._allocated = 0

    def take(self) -> memoryview:
        """A buffer for one receive call."""
        if self._idle:
            self._reused += 1
            return self._idle.pop()
        return self.get()

    def put_back(self, buffer: memoryview) -> None:
        """Take it back."""
        self._idle.append(buffer)

    def get(self) -> memoryview:
        self._allocated += 1
        return memoryview(bytearray(self._buffer_size))

    def statistics(self) -> tuple[int, int, int, int, int, int]:
        return 0, len(self._idle), 0, self._reused, self._allocated, 0


class PortableBackend:
    """Moves batches with one system call for each message."""

    name = "portable"

    def memory(self, buffer_size: int, capacity: int) -> Scratch:
        return Scratch(buffer_size)

    def receive(
        self, sock: Socket, memory: Scratch, offered: int, slots: int
    ) -> TrainColumns | None:
        messages: list[IncomingMessage] = []
        late_error = None
        buffer = memory.take()
        try:
            with plain_socket(sock) as plain:
                while len(messages) < min(offered, _MESSAGES):
                    try:
                        messages.append(_receive_message(plain, buffer))
                    except BlockingIOError:
                        break
                    except OSError as error:
                        if not messages:
                            raise
                        late_error = error
                        break
        finally:
            memory.put_back(buffer)
        return received(messages, _options.gro_enabled(sock), late_error) if messages else None

    def lay_out(self, columns: Columns, target: Target, family: int) -> Laid:
        listed = columns if isinstance(columns, TrainColumns) else TrainColumns.of(columns.trains())
        check(listed, target, family)
        return Laid(gathered(listed, family) if target is KEEP else listed, target)

    def prepare(
        self, sock: Socket, laid: Laid, train: int, offset: int, *, gso: bool, single: bool
    ) -> PortableTransmission:
        found = outgoing_messages(
            laid.columns, laid.name, train, offset, int(sock.family), gso and not single
        )
        return PortableTransmission(sock, islice(found, 1) if single else found, (train, offset))


class PortableTransmission:
    """Messages that are sent one by one, and cut when it is their turn.

    Not before: a train that is refused has what is behind it laid out anew.
    """

    __slots__ = ("_found", "_next", "_sock", "datagrams", "messages", "nbytes", "offset", "train")

    def __init__(
        self, sock: Socket, found: Iterator[OutgoingMessage], start: tuple[int, int]
    ) -> None:
        self._sock = sock
        self._found = found
        self._next: OutgoingMessage | None = None
        self.train, self.offset = start
        self.messages = self.datagrams = self.nbytes = 0

    @property
    def more(self) -> bool:
        if self._next is None:
            self._next = next(self._found, None)
        return self._next is not None

    @property
    def _first(self) -> OutgoingMessage:
        assert self.more
        assert self._next is not None
        return self._next

    @property
    def end_train(self) -> int:
        return self._first.end[0]

    @property
    def end_offset(self) -> int:
        return self._first.end[1]

    @property
    def segmented(self) -> bool:
        return self._first.datagrams > 1

    def send(self, fd: int, most: int) -> int:
        self.messages = self.datagrams = self.nbytes = 0
        with plain_socket(self._sock) as plain:
            while self.messages < min(most, _MESSAGES):
                try:
                    if not self.more:
                        break
                    message = self._first
                    _send_message(plain, message)
                except Exception as error:
                    # After others have gone, the next call meets it again, at its own message.
                    if self.messages:
                        return 0
                    if not isinstance(error, OSError):
                        raise
                    return error.errno or errno.EIO
                self.skip()
                self.messages += 1
                self.datagrams += message.datagrams
                self.nbytes += message.nbytes
        return 0

    def skip(self) -> None:
        (self.train, self.offset), self._next = self._first.end, None

    def close(self) -> None:
        self._found, self._next = iter(()), None


def _receive_message(plain: socket.socket, buffer: memoryview) -> IncomingMessage:
    if _HAS_MSG:
        length, control, flags, address = plain.recvmsg_into(
            [buffer], _abi.CONTROL_SIZE, _RECEIVE_FLAGS
        )
        cut = flags & socket.MSG_TRUNC and _abi.MSG_TRUNC
        cut_control = flags & socket.MSG_CTRUNC and _abi.MSG_CTRUNC
        return IncomingMessage(bytes(buffer[:length]), length, cut | cut_control, address, control)
    try:
        length, address = plain.recvfrom_into(buffer)
    except OSError as error:
        if getattr(error, "winerror", None) != _WSAEMSGSIZE:
            raise
        # Windows keeps the sender's address to itself then, and the true length as well.
        return IncomingMessage(bytes(buffer), len(buffer) + 1, _abi.MSG_TRUNC, ("0.0.0.0", 0), [])
    return IncomingMessage(bytes(buffer[:length]), length, 0, address, [])


def _send_message(plain: socket.socket, message: OutgoingMessage) -> None:
    address = message.address
    name = () if address is None else (_sockaddr.mapped(address, int(plain.family)),)
    if _HAS_MSG:
        plain.sendmsg(message.buffers, message.controls, 0, *name)
    elif name:
        plain.sendto(message.payload, *name)
    else:
        plain.send(message.payload)
