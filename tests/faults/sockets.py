# Sockets that the kernel treats badly, and what the kernel counts about a socket.
#
# All of them are non-blocking sockets of the standard library, bound to a port that the kernel
# chose. This file knows nothing of the package.

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# include/uapi/asm-generic/socket.h
SO_NO_CHECK = 11
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SO_MEMINFO = 55
# include/uapi/linux/sock_diag.h
_MEMINFO = struct.Struct("=9I")
_RMEM_ALLOC, _WMEM_ALLOC, _DROPS = 0, 2, 8
# include/uapi/linux/in.h, in6.h
IP_RECVERR = 11
IPPROTO_UDPLITE = 136
# include/uapi/linux/udp.h
UDP_SEGMENT = 103
UDP_GRO = 104

PLENTY = 4 << 20
"""A socket buffer that a clean test cannot fill; the kernel doubles it, or caps it."""


def udp(
    address: str = "127.0.0.1",
    *,
    port: int = 0,
    receive_buffer: int = PLENTY,
    send_buffer: int = PLENTY,
    protocol: int = 0,
    gro: bool = False,
) -> socket.socket:
    """A non-blocking datagram socket, bound to ``address``."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM, protocol)
    sock.setblocking(False)
    _resize(sock, socket.SO_RCVBUF, SO_RCVBUFFORCE, receive_buffer)
    _resize(sock, socket.SO_SNDBUF, SO_SNDBUFFORCE, send_buffer)
    if gro:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    try:
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _resize(sock: socket.socket, option: int, forced: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, option, size)


def udp_lite(address: str = "127.0.0.1") -> socket.socket:
    """A UDP-Lite socket: a real EIO for every send that asks for GSO, and for no other."""
    try:
        return udp(address, protocol=IPPROTO_UDPLITE)
    except OSError as error:
        pytest.skip(f"this kernel has no UDP-Lite: {error.strerror}")


def without_checksums(sock: socket.socket) -> socket.socket:
    """Switch transmit checksums off: a real EINVAL for every send that asks for GSO."""
    sock.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
    return sock


def with_error_queue(sock: socket.socket) -> socket.socket:
    """Switch IP_RECVERR on: errors about earlier datagrams reach the socket, and its queue."""
    sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    return sock


def _meminfo(sock: socket.socket) -> tuple[int, ...]:
    return _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size))


def drops(sock: socket.socket) -> int:
    """Buffers that the kernel dropped from this socket's queue: too many, or damaged."""
    return _meminfo(sock)[_DROPS]


def receive_memory(sock: socket.socket) -> int:
    """Bytes of the receive buffer that are taken."""
    return _meminfo(sock)[_RMEM_ALLOC]


def send_memory(sock: socket.socket) -> int:
    """Bytes of the send buffer that are taken."""
    return _meminfo(sock)[_WMEM_ALLOC]


def drain(sock: socket.socket) -> Iterator[bytes]:
    """Read plainly all that waits, until the kernel has no more."""
    while True:
        try:
            yield sock.recv(65_536)
        except BlockingIOError:
            return


def snmp(name: str, *, v6: bool = False) -> int:
    """A UDP counter of the current namespace, such as ``InCsumErrors``."""
    if v6:
        lines = Path("/proc/thread-self/net/snmp6").read_text().splitlines()
        return int(dict(line.split() for line in lines)[f"Udp6{name}"])
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Udp: "))
    return int(values[names.index(name)])
