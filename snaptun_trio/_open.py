# open_batch_pump: a pump that owns everything it needs.
#
# It puts socket, receiver, sender, pump and nursery together, and takes them apart in the right
# order. What any of them does is in the file of its name.

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from ._coalesce import MAX_SEGMENTS
from ._groups import raise_single
from ._kernel._sockets import check_socket, close_socket, open_socket
from ._pump import DEFAULT_CAPACITY, BatchPump
from ._receiver import UdpBatchReceiver
from ._sender import UdpBatchSender

if TYPE_CHECKING:
    import socket as stdlib_socket
    from collections.abc import AsyncIterator

    from ._handling import Handler, OnError
    from ._pool import PacketBufPool
    from ._train import Address


# Datagrams that the sender's queue holds. Measured, queueing and flushing packets of 1200 bytes one
# by one cost 396 ns each with 64, 212 with 256 and 511 with 1024.
_QUEUE = 256


@contextlib.asynccontextmanager
async def open_batch_pump(  # noqa: ASYNC911
    socket: trio.socket.SocketType | stdlib_socket.socket | Address,
    *,
    handler: Handler | None = None,
    on_error: OnError | None = None,
    capacity: int = DEFAULT_CAPACITY,
    pool: PacketBufPool | None = None,
    batch_size: int = 256,
    gro: bool = True,
    gso: bool = True,
    max_segments: int = MAX_SEGMENTS,
    ecn: bool = False,
    packet_info: bool = False,
    timestamps: bool = False,
) -> AsyncIterator[BatchPump[UdpBatchReceiver, UdpBatchSender]]:
    """A running `BatchPump` that owns its socket, receiver, sender and nursery.

    Leaving the block stops receiving, sends everything that was put into ``pump.outgoing`` already,
    and closes the socket. Leaving it by an exception or by cancellation closes at once. A single
    exception, of the block or of the pump, is never wrapped in a group. Entering is a checkpoint
    and does not wait; leaving is one, and waits for the socket to take what is left.

    Datagrams are sent with DF set: see `UdpBatchSender` for what an oversize one gets.

    Args:
      socket: a bound UDP socket, which is closed at the end; or a numeric local address to bind one
        to, with port 0 for any. ``"::"`` takes IPv4 as well. A socket that is opened here asks for
        send and receive buffers of 4 MiB; the kernel may grant less, see the statistics.
      handler, on_error: as for `BatchPump`.
      capacity: as for `BatchPump`.
      pool: as for `UdpBatchReceiver`, and so are ``batch_size``, ``gro``, ``ecn``, ``packet_info``
        and ``timestamps``.
      gso, max_segments: as for `UdpBatchSender`.

    Raises:
      OSError: the address cannot be bound.
      TypeError, ValueError: see `BatchPump`, `UdpBatchReceiver` and `UdpBatchSender`.
    """
    sock = (
        open_socket(socket)
        if isinstance(socket, tuple)
        else check_socket(socket, "a socket or an address (host, port)")
    )
    try:
        receiver = UdpBatchReceiver(
            sock,
            pool,
            batch_size=batch_size,
            gro=gro,
            ecn=ecn,
            packet_info=packet_info,
            timestamps=timestamps,
        )
        sender = UdpBatchSender(sock, batch_size=_QUEUE, gso=gso, max_segments=max_segments)
        with receiver, sender:
            pump = BatchPump(
                receiver, sender, handler=handler, on_error=on_error, capacity=capacity
            )
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(pump.run)
                    yield pump
                    await pump.drain()
            except BaseExceptionGroup as group:
                raise_single(group)
            finally:
                pump.close()
    finally:
        close_socket(sock)
