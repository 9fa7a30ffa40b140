# System calls that refuse, by the descriptor they are made on: what a kernel does to one socket
# and not to another, on demand, with each backend.

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from snaptun_trio._kernel import _portable

from . import system_calls

if TYPE_CHECKING:
    import socket

    import pytest

    from snaptun_trio._kernel._pieces import OutgoingMessage


def refuse_by_descriptor(
    monkeypatch: pytest.MonkeyPatch, backend: str, codes: dict[int, int]
) -> None:
    """Sends on a descriptor of ``codes`` fail with that errno, unless it is 0."""
    if backend == "portable":
        real_one = _portable._send_message

        def send_message(plain: socket.socket, message: OutgoingMessage) -> None:
            if code := codes.get(plain.fileno(), 0):
                raise OSError(code, os.strerror(code))
            real_one(plain, message)

        monkeypatch.setattr(_portable, "_send_message", send_message)
        return

    def sendmmsg(fd: int, address: int, count: int, flags: int) -> int:
        if code := codes.get(fd, 0):
            ctypes.set_errno(code)
            return -1
        return real(fd, address, count, flags)

    _, real = system_calls.replace(monkeypatch, send=sendmmsg)
