# Stands between the library and the real kernel, as an LD_PRELOAD shim would.
#
# A real kernel does not give EIO at the third message of a batch on demand. The interposer does:
# it is asked about each message of a send before the kernel is, and may refuse it with an errno;
# what it lets through goes into the real system call, so datagrams arrive or they do not. It has
# the semantics of sendmmsg: a refusal of the first message is the call's error, at a later one the
# call returns how many went before, and the errno comes up again only if it is asked again.
#
# The layouts are declared here a second time, so that a mistake in the package's cannot hide.

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

import attrs

from snaptun_trio import _kernel
from snaptun_trio._kernel import _portable, _sockaddr

from .. import system_calls

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    import pytest

    from snaptun_trio._kernel._pieces import OutgoingMessage

_UDP_SEGMENT = (17, 103)  # SOL_UDP, include/uapi/linux/udp.h


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
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
    _fields_ = (("header", _Msghdr), ("length", ctypes.c_uint))


class _Cmsghdr(ctypes.Structure):
    _fields_ = (("length", ctypes.c_size_t), ("level", ctypes.c_int), ("type", ctypes.c_int))


@attrs.frozen
class Message:
    """One message that the library wants to send."""

    payload: bytes
    segment_size: int
    """0 where the message does not ask for segmentation."""
    name: bytes


Verdict = "Callable[[Message], int]"
"""Returns the errno with which a message is refused, or 0 to ask the kernel."""

SHORT = -1
"""A verdict: end the call before this message, without an error, as a signal would."""


class Interposer:
    """Puts itself into the backend that is in use, and takes itself out with ``monkeypatch``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, verdict: Callable[[Message], int]) -> None:
        self.verdict = verdict
        self.calls = 0
        self._real_one = _portable._send_message
        monkeypatch.setattr(_portable, "_send_message", self._send_message)
        if _kernel.choose_backend()[0].backend == "linux":
            _, self._real_mmsg = system_calls.replace(monkeypatch, send=self._sendmmsg)

    def _sendmmsg(self, fd: int, address: int, count: int, flags: int) -> int:
        if not count:  # the package asks whether there is such a call
            return self._real_mmsg(fd, address, count, flags)
        self.calls += 1
        headers = (_Mmsghdr * count).from_address(address)
        allowed = 0
        for header in headers:
            code = self.verdict(_message(header.header))
            if code:
                if allowed == 0 and code != SHORT:
                    ctypes.set_errno(code)
                    return -1
                if allowed:
                    break
            allowed += 1
        return self._real_mmsg(fd, address, allowed, flags)

    def _send_message(self, plain: socket.socket, message: OutgoingMessage) -> None:
        self.calls += 1
        segments = [data for level, kind, data in message.controls if (level, kind) == _UDP_SEGMENT]
        size = int.from_bytes(segments[-1], "little") if segments else 0
        address = message.address
        name = b"" if address is None else _sockaddr.name_of(address, int(plain.family))
        code = self.verdict(Message(message.payload, size, name))
        if code > 0:
            raise OSError(code, os.strerror(code))
        self._real_one(plain, message)


def _message(header: _Msghdr) -> Message:
    payload = b"".join(
        ctypes.string_at(header.iovecs[i].base, header.iovecs[i].length)
        for i in range(header.iovec_count)
    )
    name = ctypes.string_at(header.name, header.name_length) if header.name else b""
    return Message(payload, _segment_size(header), name)


def _segment_size(header: _Msghdr) -> int:
    offset, found = 0, 0
    while header.control and offset + ctypes.sizeof(_Cmsghdr) <= header.control_length:
        control = _Cmsghdr.from_address(header.control + offset)
        if (control.level, control.type) == _UDP_SEGMENT:
            at = header.control + offset + ctypes.sizeof(_Cmsghdr)
            found = ctypes.c_uint16.from_address(at).value
        offset += (control.length + 7) & ~7
    return found


def from_script(codes: Iterator[int]) -> Callable[[Message], int]:
    """Verdicts in the order in which messages are asked about; then everything goes through."""
    return lambda message: next(codes, 0)


def blocked(code: int) -> bool:
    """Whether an errno means that the socket is full."""
    return code in (errno.EAGAIN, errno.EWOULDBLOCK)
