# Sockets: whether a borrowed one is fit, and how one of our own is opened and closed.

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import trio

from .._brief import brief
from . import _sockaddr
from ._interface import Socket

if TYPE_CHECKING:
    from .._train import Address

# What a socket of our own asks for, in bytes; the kernel caps it (net.core.rmem_max, wmem_max).
# The default of 212 992 holds four trains of 50 x 1200 bytes on the way in. On the way out it is
# used up by 256 small datagrams to one absent neighbour, and then nobody is served for 3 seconds.
_SOCKET_BUFFER = 4 << 20


def check_socket(sock: object, wanted: str = "a trio or standard library socket") -> Socket:
    """Make sure that this is a socket we can move datagrams on.

    Args:
      sock: what was given.
      wanted: what could have been given.

    Raises:
      TypeError: it is neither a `trio.socket.SocketType` nor a `socket.socket`.
      ValueError: it is not a UDP socket of IPv4 or IPv6, it is closed, or it would block.
    """
    if not isinstance(sock, Socket):
        raise TypeError(f"{wanted} is needed, not {brief(sock, 80)}")
    if sock.fileno() < 0:
        raise ValueError("the socket is closed")
    if sock.type != socket.SOCK_DGRAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise ValueError(f"a UDP socket of IPv4 or IPv6 is needed, not {brief(sock, 120)}")
    if isinstance(sock, socket.socket) and sock.gettimeout() != 0:
        raise ValueError("the socket must not block: sock.setblocking(False)")
    return sock


def open_socket(address: Address) -> trio.socket.SocketType:
    """A UDP socket that is bound to a numeric local address.

    Raises:
      OSError: the address cannot be bound.
      TypeError, ValueError: it is not a numeric address.
    """
    sock = socket.socket(_sockaddr.family_of(address), socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if address[0] == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            if sock.getsockopt(socket.SOL_SOCKET, name) < _SOCKET_BUFFER:
                sock.setsockopt(socket.SOL_SOCKET, name, _SOCKET_BUFFER)
        try:
            sock.bind(address)
        except OSError as error:  # the kernel does not say which address
            raise OSError(error.errno, f"{error.strerror}: {address}") from None
        return trio.socket.from_stdlib_socket(sock)
    except BaseException:
        sock.close()
        raise


def close_socket(sock: Socket) -> None:
    """Close a socket, and wake every task that waits for it."""
    if isinstance(sock, socket.socket) and sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
    sock.close()


def switched_off(offload: str) -> bool:
    """Whether the operator switched "GSO" or "GRO" off in the environment."""
    return os.environ.get(f"SNAPTUN_TRIO_{offload}") == "0"
