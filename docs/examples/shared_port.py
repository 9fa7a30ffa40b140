from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from snaptun_trio import Address


async def open_shared_socket(address: Address) -> trio.socket.SocketType:
    """A socket on a port that other processes of this user may open in the same way."""
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    await sock.bind(address)
    return sock
