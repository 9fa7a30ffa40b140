"""A socket for which the kernel polls the device's queue itself, instead of waiting for it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from snaptun_trio import open_udp_socket

if TYPE_CHECKING:
    import trio

    from snaptun_trio import Address

SO_BUSY_POLL = 46  # include/uapi/asm-generic/socket.h; the socket module has no name for it


async def open_polling_socket(local: Address, microseconds: int) -> trio.socket.SocketType:
    """Older kernels let only CAP_NET_ADMIN ask for more than ``net.core.busy_read``."""
    sock = await open_udp_socket(local)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_BUSY_POLL, microseconds)
    except BaseException:
        sock.close()
        raise
    return sock
