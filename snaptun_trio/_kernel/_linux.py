# Linux: recvmmsg with UDP_GRO and sendmmsg with UDP_SEGMENT, one system call a batch.
#
# The C library is reached through ctypes; measured, crossing over costs 0.7 us a call, which is
# nothing for a batch. How the headers for sending are filled is `_transmit`'s, how what came is
# read `_columns`'s. What an errno means is not decided here.

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

from . import _abi, _cmsg, _options, _sockaddr, _transmit
from ._columns import SlabColumns, alike, copied_single
from ._headers import constant
from ._pieces import Arrival, received
from ._slab import COPIED_UP_TO

if TYPE_CHECKING:
    from .._batch import Columns, Target
    from ._interface import Position, Sent, Socket
    from ._slab import Layout, Slab

_libc = ctypes.CDLL(None, use_errno=True)

# MSG_TRUNC as an input flag makes msg_len the datagram's true length even where the buffer was
# shorter (recvmsg(2)), so that what was lost can be counted exactly.
_RECEIVE_FLAGS = _abi.MSG_DONTWAIT | _abi.MSG_TRUNC
# No SIGPIPE concerns UDP, but a socket that was shut down must not end the process either.
_SEND_FLAGS = _abi.MSG_DONTWAIT | _abi.MSG_NOSIGNAL


_NO_FLAGS = constant("I", 0, _abi.MAX_BATCH_SIZE)


def _system_call(name: str, arguments: list[type]) -> ctypes._NamedFuncPointer:
    function = getattr(_libc, name)
    function.argtypes = arguments
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


def available() -> bool:
    """Whether this system lets us make the two calls; a sandbox may forbid them (seccomp)."""
    try:
        calls = [
            _system_call("recvmmsg", _RECVMMSG),
            _system_call("sendmmsg", _SENDMMSG),
        ]
    except AttributeError:
        return False
    for call in calls:
        # Asked of no descriptor, a call that exists can only answer EBADF.
        ctypes.set_errno(0)
        call(-1, None, 0, 0, *([None] if call.argtypes == _RECVMMSG else []))
        if ctypes.get_errno() != errno.EBADF:
            return False
    return True


_RECVMMSG: list[type] = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_uint,
    ctypes.c_int,
    ctypes.c_void_p,
]
_SENDMMSG: list[type] = _RECVMMSG[:4]


def last_error() -> OSError:
    """The error of the last call, as the exception class that fits its errno."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


class LinuxBackend:
    """Moves batches with one system call each."""

    name = "linux"

    def __init__(self) -> None:
        self._recvmmsg = _system_call("recvmmsg", _RECVMMSG)
        self._sendmmsg = _system_call("sendmmsg", _SENDMMSG)

    def receive(self, sock: Socket, slab: Slab, slots: int) -> Columns:
        size = slab.expected_size
        layout = slab.packed(size) if size else slab.layout
        layout.rearm()
        fd, address = sock.fileno(), layout.headers.address
        count: int = self._recvmmsg(fd, address, slots, _RECEIVE_FLAGS, None)
        while count < 0 and ctypes.get_errno() == errno.EINTR:
            count = self._recvmmsg(fd, address, slots, _RECEIVE_FLAGS, None)
        if count < 0:
            raise last_error()
        layout.used = count
        if size and _longer_than(layout.headers.lengths[:count], size):
            layout = slab.unpack(count)
        if layout.headers.flags[:count] != _NO_FLAGS[:count]:
            return _receive_cut(slab, layout, count, gro=_options.gro_enabled(sock))
        if count == 1 and layout.headers.lengths[0] <= COPIED_UP_TO:
            return copied_single(slab, layout)
        columns = SlabColumns(slab, layout, count)
        return columns.copied() if columns.nbytes <= COPIED_UP_TO else columns.hold()

    def prepare(
        self, sock: Socket, columns: Columns, target: Target, position: Position, gso: bool
    ) -> LinuxTransmission:
        transmit = _transmit.take(_sockaddr.socket_family(sock))
        try:
            transmit.fill(columns, target, position, gso)
        except BaseException:
            _transmit.put_back(transmit)
            raise
        return LinuxTransmission(self._sendmmsg, sock.fileno(), transmit)

    def prepare_single(
        self, sock: Socket, columns: Columns, target: Target, position: Position
    ) -> LinuxTransmission:
        transmit = _transmit.take(_sockaddr.socket_family(sock))
        try:
            transmit.fill_single(columns, target, position)
        except BaseException:
            _transmit.put_back(transmit)
            raise
        return LinuxTransmission(self._sendmmsg, sock.fileno(), transmit)


class LinuxTransmission:
    """Filled headers, and how many of them `sendmmsg` took."""

    __slots__ = ("_fd", "_sendmmsg", "_transmit")

    def __init__(
        self, sendmmsg: ctypes._NamedFuncPointer, fd: int, transmit: _transmit.Transmit
    ) -> None:
        self._sendmmsg = sendmmsg
        self._fd = fd
        self._transmit = transmit

    @property
    def more(self) -> bool:
        return self._transmit.done < self._transmit.messages

    def send(self, most: int) -> Sent:
        transmit = self._transmit
        address = transmit.headers.address + transmit.done * _abi.HEADER
        messages = min(transmit.messages - transmit.done, most)
        count: int = self._sendmmsg(self._fd, address, messages, _SEND_FLAGS)
        while count < 0 and ctypes.get_errno() == errno.EINTR:
            count = self._sendmmsg(self._fd, address, messages, _SEND_FLAGS)
        return transmit.refused(last_error()) if count < 0 else transmit.sent(count)

    def skip(self) -> None:
        self._transmit.done += 1

    def close(self) -> None:
        _transmit.put_back(self._transmit)


def _longer_than(lengths: memoryview, size: int) -> bool:
    """Whether any of the lengths is over ``size``."""
    return not (lengths[0] <= size and alike(lengths)) and max(lengths) > size


def _receive_cut(slab: Slab, layout: Layout, count: int, gro: bool) -> Columns:
    """A call in which a buffer was too small. Rare, so it goes message by message."""
    headers, start, stride = layout.headers, layout.start, layout.stride
    # A packed message that is no longer than its place was not cut there.
    room = slab.slot_size if start == slab.packed_size else stride
    copy = sum(headers.lengths[:count]) <= COPIED_UP_TO
    memory = memoryview(slab.payload) if copy else slab.view(slab.lend())
    memory = memory.toreadonly()
    return received(
        [
            Arrival(
                memory[start + index * stride :][:room],
                headers.lengths[index],
                headers.flags[index],
                _sockaddr.decode(headers.name(index)),
                _cmsg.parse(headers.control(index)),
            )
            for index in range(count)
        ],
        gro,
        copy=copy,
    )
