# The same on the standard library's socket alone.
#
# For macOS, Windows, a machine without a C compiler, and a Linux sandbox that forbids recvmmsg and
# sendmmsg. A system call moves one message; where the platform has recvmsg and sendmsg the offloads
# work all the same. It makes an object for each train: here that is not what costs.

from __future__ import annotations

import contextlib
import errno
import socket
import sys
import weakref
from typing import TYPE_CHECKING

import trio

from . import _abi, _sockaddr
from ._interface import SocketIO
from ._pieces import (
    IncomingMessage,
    OutgoingMessage,
    Prepared,
    outgoing_messages,
    prepare,
    received,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .._messages import Messages, Recipient, TrainMessages
    from ._interface import Socket

_HAS_MSG = hasattr(socket.socket, "recvmsg_into") and hasattr(socket.socket, "sendmsg")
# As an input flag, Linux alone tells the true length of a datagram that did not fit (recvmsg(2)).
_RECEIVE_FLAGS = _abi.MSG_TRUNC if sys.platform == "linux" else 0
# As numbers: to ask one of Python's flags costs as much as a quarter of the system call.
_TRUNC, _CTRUNC = (int(getattr(socket, name, 0)) for name in ("MSG_TRUNC", "MSG_CTRUNC"))
_ANY_MESSAGE = 65_536  # bytes; an IP packet holds less, and GRO makes no longer ones
# A call for each message: a batch beyond this gains nothing, and holds up the other tasks.
_MESSAGES = 64
_WSAEMSGSIZE = 10040  # Windows' way to say that a datagram was cut (winsock2.h)
_WORK_SHIFT = 14  # 2**14 bytes are 16 KiB, see `Outgoing.work`


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

    def release(self, buffer: memoryview) -> None:
        """Take it back."""
        self._idle.append(buffer)

    def get(self) -> memoryview:
        self._allocated += 1
        return memoryview(bytearray(self._buffer_size))

    def statistics(self) -> tuple[int, int, int, int, int, int]:
        return 0, len(self._idle), 0, self._reused, self._allocated, 0


class PortableIO(SocketIO):
    """Moves each message with a system call of its own."""

    backend = "portable"
    most_messages = _MESSAGES

    @trio.lowlevel.enable_ki_protection
    def __init__(self, sock: Socket) -> None:
        super().__init__(sock)
        if isinstance(sock, socket.socket):
            self._plain = sock
        else:
            # A trio socket has no synchronous methods; a second object for its descriptor has. That
            # one must never close it: not here, not when it is collected, not at exit.
            plain = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.fileno())
            try:
                plain.setblocking(False)
                weakref.finalize(self, plain.detach)
            except BaseException:
                plain.detach()
                raise
            self._plain = plain
        self._received: list[IncomingMessage] = []  # that nobody was given yet

    @contextlib.contextmanager
    def plain(self) -> Iterator[socket.socket]:
        yield self._open_plain()

    def _open_plain(self) -> socket.socket:
        """The socket, unless its owner closed it: its number may be somebody else's by now.

        Raises:
          OSError: EBADF.
        """
        if self.sock.fileno() != self._plain.fileno():
            raise OSError(errno.EBADF, "the socket was closed")
        return self._plain

    @staticmethod
    def memory(buffer_size: int, capacity: int) -> Scratch:
        return Scratch(buffer_size)

    def receive(self, memory: Scratch, offered: int, slots: int) -> TrainMessages | None:
        messages = self._received  # still full, where there was no memory to pass it on
        late_error = None
        plain = self._open_plain()
        buffer = memory.take()
        try:
            while len(messages) < min(offered, _MESSAGES):
                messages.append(_receive_message(plain, buffer))
        except BlockingIOError:
            pass
        except OSError as error:
            if not messages:
                raise
            late_error = error
        except MemoryError:
            if not messages:
                raise
        finally:
            memory.release(buffer)
        if not messages:
            return None
        found = received(messages, self, late_error)
        messages.clear()
        return found

    def outgoing(self, messages: Messages, address: Recipient) -> PortableOutgoing:
        return PortableOutgoing(prepare(messages, address, self.family), self._transmit)

    def _transmit(self, message: OutgoingMessage) -> None:
        _send_message(self._open_plain(), message)


class PortableOutgoing:
    """Messages that are sent one by one, and cut when it is their turn.

    Not before: a train that is refused has what is behind it laid out anew.

    Args:
      prepared: the batch.
      transmit: sends one message, or raises what the system says of it.
    """

    __slots__ = (
        "_found",
        "_how",
        "_next",
        "_transmit",
        "content",
        "datagrams",
        "messages",
        "nbytes",
        "offset",
        "prepared",
        "train",
        "work",
    )

    def __init__(self, prepared: Prepared, transmit: Callable[[OutgoingMessage], None]) -> None:
        self.prepared = prepared
        self._transmit = transmit
        self.content = prepared.content
        self._found: Iterator[OutgoingMessage] = iter(())
        self._next: OutgoingMessage | None = None
        self._how = (0, False)
        self.train = self.offset = 0
        self.messages = self.datagrams = self.nbytes = self.work = 0

    @property
    def more(self) -> bool:
        return self.train < self.content.count

    @property
    def _refused(self) -> OutgoingMessage:
        assert self._next is not None, "only after a refusal"
        return self._next

    @property
    def end_train(self) -> int:
        return self._refused.end[0]

    @property
    def end_offset(self) -> int:
        return self._refused.end[1]

    @property
    def segmented(self) -> bool:
        return self._refused.datagrams > 1

    def send(self, fd: int, budget: int, segments: int, single: bool) -> int:
        self.work = taken = 0
        if self._how != (segments, single):
            self._how, self._found, self._next = (segments, single), iter(()), None
        while self.more and taken < (1 if single else _MESSAGES) and self.work < budget:
            try:
                message = self._lay_out()
                # All that needs memory comes before it goes: nothing may go twice or uncounted.
                counted = (
                    self.messages + 1,
                    self.datagrams + message.datagrams,
                    self.nbytes + message.nbytes,
                    self.work + 1 + (message.nbytes >> _WORK_SHIFT),
                )
                self._transmit(message)
            except Exception as error:
                # After others have gone, the next call meets it again, at its own message.
                if taken:
                    return 0
                if not isinstance(error, OSError):
                    raise
                return error.errno or errno.EIO
            taken += 1
            self.train, self.offset = message.end
            self._next = None
            self.messages, self.datagrams, self.nbytes, self.work = counted
        return 0

    def _lay_out(self) -> OutgoingMessage:
        """The message that is next."""
        if self._next is None:
            self._next = next(self._found, None)
        if self._next is None:
            segments, single = self._how
            place = self.train, self.offset
            self._found = outgoing_messages(self.prepared, place, 0 if single else segments)
            self._next = next(self._found)
        return self._next

    def place_of(self, train: int) -> int:
        order = self.prepared.order
        return train if order is None else order[train]

    def skip(self, train: int, offset: int) -> None:
        if self._next is None or (train, offset) != self._next.end:
            self._found = iter(())  # what is behind it is laid out anew
        self.train, self.offset, self._next = train, offset, None


def _receive_message(plain: socket.socket, buffer: memoryview) -> IncomingMessage:
    if _HAS_MSG and len(buffer) >= _ANY_MESSAGE:
        # Into memory of its own at once. With the true length of what does not fit, which cannot
        # be here, Python would make up the bytes that are missing.
        data, control, flags, address = plain.recvmsg(_ANY_MESSAGE, _abi.CONTROL_SIZE)
        cut_control = flags & _CTRUNC and _abi.MSG_CTRUNC
        return IncomingMessage(data, len(data), cut_control, address, control)
    if _HAS_MSG:
        length, control, flags, address = plain.recvmsg_into(
            [buffer], _abi.CONTROL_SIZE, _RECEIVE_FLAGS
        )
        cut = flags & _TRUNC and _abi.MSG_TRUNC
        cut_control = flags & _CTRUNC and _abi.MSG_CTRUNC
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
