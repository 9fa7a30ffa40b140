# What the real kernel is handed: the headers of each recvmmsg and sendmmsg call, read as C sees
# them.
#
# The two functions of the C library are wrapped, not replaced, unless a test says so. The
# structures are written down here once more, from the manual page, so that a mistake in the
# package's own layout shows.

from __future__ import annotations

import ctypes
import errno
import struct
import sys
from typing import TYPE_CHECKING

import attrs

from . import system_calls

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


_WORD = ctypes.sizeof(ctypes.c_size_t)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    """struct msghdr of sendmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iovecs", ctypes.POINTER(_Iovec)),
        ("iovec_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    """struct mmsghdr of sendmmsg(2)."""

    _fields_ = (("message", _Msghdr), ("length", ctypes.c_uint))


@attrs.frozen
class Message:
    """One message that was handed to the kernel."""

    name: bytes
    bases: tuple[int, ...]
    """Where its payload lies."""
    payload: bytes
    segment_size: int
    """What UDP_SEGMENT asks for; 0 is no segmentation."""
    other_controls: tuple[tuple[int, int, bytes], ...]

    def datagrams(self) -> list[bytes]:
        """What the kernel makes of it."""
        size = self.segment_size or len(self.payload) or 1
        return [self.payload[at : at + size] for at in range(0, len(self.payload) or 1, size)]


def _string(address: int | None, length: int) -> bytes:
    return ctypes.string_at(address, length) if address and length else b""


def _controls(raw: bytes) -> list[tuple[int, int, bytes]]:
    header = struct.Struct("@Nii")
    found = []
    at = 0
    while at < len(raw):
        length, level, kind = header.unpack_from(raw, at)
        assert header.size <= length <= len(raw) - at, "a control message over its buffer"
        found.append((level, kind, raw[at + header.size : at + length]))
        at += -(-length // _WORD) * _WORD
    return found


def read_messages(address: int, count: int) -> list[Message]:
    """The messages in ``count`` headers at ``address``."""
    messages = []
    for whole in (_Mmsghdr * count).from_address(address):
        header = whole.message
        controls = _controls(_string(header.control, header.control_length))
        segments = [data for level, kind, data in controls if (level, kind) == (17, 103)]
        iovecs = header.iovecs[: header.iovec_count]
        messages.append(
            Message(
                _string(header.name, header.name_length),
                tuple(iovec.base or 0 for iovec in iovecs),
                b"".join(_string(iovec.base, iovec.length) for iovec in iovecs),
                int.from_bytes(segments[0], sys.byteorder) if segments else 0,
                tuple(control for control in controls if control[:2] != (17, 103)),
            )
        )
    return messages


def shorten_controls(address: int, count: int, nbytes: int) -> None:
    """Leave only so much room for control messages in ``count`` headers at ``address``."""
    for whole in (_Mmsghdr * count).from_address(address):
        assert whole.message.control_length >= nbytes
        whole.message.control_length = nbytes


@attrs.frozen
class Incoming:
    """A message as the kernel would hand it over."""

    payload: bytes = attrs.field(repr=lambda payload: f"{len(payload)} bytes")
    name: bytes
    controls: tuple[tuple[int, int, bytes], ...] = ()

    def deliver(self, whole: _Mmsghdr) -> None:
        """Write it where the header says, as recvmmsg(2) with MSG_TRUNC does."""
        header = whole.message
        assert header.name is not None
        assert header.control is not None
        rest = self.payload
        for room in header.iovecs[: header.iovec_count]:
            assert room.base is not None
            ctypes.memmove(room.base, rest, min(len(rest), room.length))
            rest = rest[room.length :]
        ctypes.memmove(header.name, self.name, min(len(self.name), header.name_length))
        raw = b"".join(
            struct.pack("@Nii", 2 * _WORD + len(data), level, kind)
            + data.ljust(-(-len(data) // _WORD) * _WORD, b"\0")
            for level, kind, data in self.controls
        )
        ctypes.memmove(header.control, raw, min(len(raw), header.control_length))
        header.flags = 0x20 if rest else 0
        header.flags |= 0x08 if len(raw) > header.control_length else 0
        whole.length = len(self.payload)
        header.name_length = len(self.name)
        header.control_length = min(len(raw), header.control_length)


class Recorder:
    """Wraps the Linux backend's two system calls.

    Attributes:
      sent: the messages of each sendmmsg call.
      before_sending, after_receiving: called at those moments, with what the call has.
      received_messages: how many messages the last recvmmsg call brought.
      received_at: where the payloads of received messages were put.
      interruptions: so many calls are answered with EINTR before the next one is made.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[list[Message]] = []
        self.received_at: set[int] = set()
        self.received_messages = 0
        self.interruptions = 0
        self.interrupted = 0
        self.pretend = False
        """Take everything that is to be sent without asking the kernel."""
        self.refuse_with = 0
        """Refuse everything that is to be sent with this errno, 0 is not to."""
        self.incoming: list[Incoming] = []
        """Hand this over instead of asking the kernel."""
        self.before_sending: Callable[[], object] = lambda: None
        self.after_receiving: Callable[[], object] = lambda: None
        self._receive, self._send = system_calls.replace(
            monkeypatch, self._recvmmsg, self._sendmmsg
        )

    def _interrupt(self) -> bool:
        if not self.interruptions:
            return False
        self.interruptions -= 1
        self.interrupted += 1
        ctypes.set_errno(errno.EINTR)
        return True

    def _recvmmsg(self, fd: int, address: int, count: int, flags: int, timeout: None) -> int:
        if not count:  # the package asks whether there is such a call
            return self._receive(fd, address, count, flags, timeout)
        if self._interrupt():
            return -1
        if self.incoming:
            got = min(count, len(self.incoming))
            for header, message in zip((_Mmsghdr * got).from_address(address), self.incoming):
                message.deliver(header)
            del self.incoming[:got]
        else:
            got = self._receive(fd, address, count, flags, timeout)
        number = ctypes.get_errno()
        if got > 0:
            self.received_messages = got
            for header in (_Mmsghdr * got).from_address(address):
                rooms = header.message.iovecs[: header.message.iovec_count]
                self.received_at.update(room.base or 0 for room in rooms)
            del header, rooms
            self.after_receiving()
        ctypes.set_errno(number)
        return got

    def _sendmmsg(self, fd: int, address: int, count: int, flags: int) -> int:
        if not count:  # the package asks whether there is such a call
            return self._send(fd, address, count, flags)
        if self._interrupt():
            return -1
        if self.refuse_with:
            ctypes.set_errno(self.refuse_with)
            return -1
        self.before_sending()
        self.sent.append(read_messages(address, count))
        return count if self.pretend else self._send(fd, address, count, flags)

    @property
    def messages(self) -> list[Message]:
        """All messages that were handed to the kernel."""
        return [message for call in self.sent for message in call]
