# A network of its own for a sitting: a loopback device with the MTU of an Ethernet.
#
# The usual loopback takes 64 KiB at once, so nothing can be too large for it. A namespace belongs
# to a thread; the sitting is in a thread that does not outlive it, and neither does the network.

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MTU = 1500
CLONE_NEWNET = 0x4000_0000  # linux/sched.h
SIOCSIFFLAGS, SIOCSIFMTU = 0x8914, 0x8922  # linux/sockios.h
IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40  # linux/if.h


def enter() -> None:
    """Move this thread there. Raises `OSError` where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"no network of its own: {os.strerror(error)}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFMTU, struct.pack("16si20x", b"lo", MTU))
        flags = IFF_UP | IFF_LOOPBACK | IFF_RUNNING
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags))


def call(function: Callable[[bool], T]) -> T:
    """Call the function in such a network, or where we are; it is told whether it is there."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            try:
                enter()
                inside = True
            except OSError:
                inside = False
            results.append(function(inside))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
