# The arrays of message headers that recvmmsg fills and sendmmsg reads, as columns.
#
# They are built once, with every pointer in place, and read and written whole: a column is a
# strided memoryview over one field of all headers, so that copying a field of 64 messages is one
# statement in C and makes no Python object for each of them. This file knows the layout of the
# headers and nothing of what they are for.

from __future__ import annotations

import ctypes
import mmap
import socket
import sys
from array import array
from typing import Literal

from . import _abi

_HEADER = ctypes.sizeof(_abi.mmsghdr)
_IOVEC = ctypes.sizeof(_abi.iovec)
_MSG = _abi.msghdr


def anonymous_memory(size: int) -> mmap.mmap:
    """So many bytes of zeroed memory that costs nothing until it is touched.

    Private: Python's default is a mapping to share with children, and its page faults made
    receiving a fifth dearer.
    """
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _column(words: memoryview, start: int, stride: int) -> memoryview:
    """Every ``stride``-th byte offset from ``start`` on, as items of the memoryview's format."""
    assert start % words.itemsize == stride % words.itemsize == 0
    return words[start // words.itemsize :: stride // words.itemsize]


def constant(kind: Literal["H", "I", "L"], value: int, count: int) -> memoryview:
    """A column of ``count`` equal items."""
    return memoryview(array(kind, [value]) * count)


def sequence(start: int, step: int, count: int) -> memoryview:
    """A column of ``count`` addresses from ``start`` on, ``step`` bytes apart."""
    return memoryview(array("L", range(start, start + step * count, step or 1)))


class MessageHeaders:
    """Headers, iovecs, names and control buffers for so many messages.

    Each header points to iovecs (one, unless said otherwise), a name and a control buffer of its
    own.

    The column attributes hold one item a message: ``lengths`` is msg_len, ``flags`` msg_flags,
    ``control_lengths`` msg_controllen, and so on.
    """

    def __init__(self, messages: int, control_size: int, iovecs_each: int = 1) -> None:
        self.messages = messages
        self.control_size = control_size
        iovecs = messages * _HEADER
        names = iovecs + messages * iovecs_each * _IOVEC
        controls = names + messages * _abi.NAME_SIZE
        self._memory = anonymous_memory(controls + messages * control_size)
        # The one export that lasts as long as the headers; it tells where they are.
        anchor = (ctypes.c_char * len(self._memory)).from_buffer(self._memory)
        self.address = ctypes.addressof(anchor)
        self.iovec_address = self.address + iovecs
        self.name_address = self.address + names
        self.control_address = self.address + controls
        whole = memoryview(anchor).cast("B")

        self.bytes = whole[:iovecs]
        longs, ints = self.bytes.cast("L"), self.bytes.cast("I")
        self.name_pointers = _column(longs, _MSG.msg_name.offset, _HEADER)
        self.name_lengths = _column(ints, _MSG.msg_namelen.offset, _HEADER)
        self.iovec_pointers = _column(longs, _MSG.msg_iov.offset, _HEADER)
        self.iovec_counts = _column(longs, _MSG.msg_iovlen.offset, _HEADER)
        self.control_pointers = _column(longs, _MSG.msg_control.offset, _HEADER)
        self.control_lengths = _column(longs, _MSG.msg_controllen.offset, _HEADER)
        self.flags = _column(ints, _MSG.msg_flags.offset, _HEADER)
        self.lengths = _column(ints, _abi.mmsghdr.msg_len.offset, _HEADER)

        self.iovec_bytes = whole[iovecs:names]
        longs = self.iovec_bytes.cast("L")
        self.bases = _column(longs, _abi.iovec.iov_base.offset, _IOVEC)
        self.sizes = _column(longs, _abi.iovec.iov_len.offset, _IOVEC)
        # The low halves of the sizes, in the format of ``lengths``, to copy from one to the other.
        # The high halves stay zero: no UDP payload needs them.
        low = _abi.iovec.iov_len.offset + (0 if _abi.LITTLE_ENDIAN else _abi.WORD - 4)
        self.sizes_low = _column(self.iovec_bytes.cast("I"), low, _IOVEC)

        self.names = whole[names:controls]
        self.families = self.names.cast("H")[:: _abi.NAME_SIZE // 2]  # sa_family of each
        words, stride = self.names.cast("Q"), _abi.NAME_SIZE // 8
        quarters = [words[at::stride] for at in range(stride)]
        # Of a sockaddr_in the first 8 bytes name a peer (then comes padding), of a sockaddr_in6 28.
        self._ipv4_names = tuple(quarters[:1])
        self._ipv6_names = (*quarters[:3], self.names.cast("I")[6 :: _abi.NAME_SIZE // 4])
        self.controls = whole[controls:]
        self._control_columns: dict[tuple[int, str], memoryview] = {}

        self.name_pointers[:] = sequence(self.name_address, _abi.NAME_SIZE, messages)
        self.iovec_pointers[:] = sequence(self.iovec_address, iovecs_each * _IOVEC, messages)
        self.iovec_counts[:] = constant("L", iovecs_each, messages)
        self.control_pointers[:] = sequence(self.control_address, control_size, messages)

    def control_column(self, offset: int, kind: Literal["H", "I", "L"]) -> memoryview:
        """The item at byte ``offset`` of every control buffer, of the format ``kind``."""
        column = self._control_columns.get((offset, kind))
        if column is None:
            column = _column(self.controls.cast(kind), offset, self.control_size)
            self._control_columns[offset, kind] = column
        return column

    def name_columns(self, family: int) -> tuple[memoryview, ...]:
        """The parts of the names that name a peer of this family, each as a column."""
        return self._ipv4_names if family == socket.AF_INET else self._ipv6_names

    def name(self, index: int) -> bytes:
        """The raw socket address of one message."""
        start = index * _abi.NAME_SIZE
        return bytes(self.names[start : start + min(self.name_lengths[index], _abi.NAME_SIZE)])

    def control(self, index: int) -> bytes:
        """The control messages of one message."""
        start = index * self.control_size
        return bytes(
            self.controls[start : start + min(self.control_lengths[index], self.control_size)]
        )
