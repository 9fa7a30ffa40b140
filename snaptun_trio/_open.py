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
from ._kernel._sockets import check_socket, close_socket
from ._pump import DEFAULT_CAPACITY, BatchPump
from ._receiver import UdpBatchReceiver
from ._sender import UdpBatchSender
from ._sockets import DEFAULT_BUFFER, open_udp_socket, refuse_options

if TYPE_CHECKING:
    import socket as stdlib_socket
    from collections.abc import AsyncIterator

    from ._handling import Handler, OnError
    from ._kernel._interface import Socket
    from ._pool import PacketBufPool
    from ._sockets import Local
    from ._train import Address


# Datagrams that the sender's queue holds. Measured, queueing and flushing packets of 1200 bytes one
# by one cost 396 ns each with 64, 212 with 256 and 511 with 1024.
_QUEUE = 256


@contextlib.asynccontextmanager
async def open_batch_pump(  # noqa: ASYNC911
    local_or_socket: trio.socket.SocketType | stdlib_socket.socket | Local = None,
    *,
    remote: Address | None = None,
    reuse_port: bool = False,
    receive_buffer: int = DEFAULT_BUFFER,
    send_buffer: int = DEFAULT_BUFFER,
    fragment: bool = False,
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
    exception, of the block or of the pump, is never wrapped in a group. Entering is a checkpoint,
    and waits for names to be resolved; leaving is one, and waits for the socket to take what is
    left.

    Without ``fragment`` datagrams are sent with DF set: see `UdpBatchSender` for what an oversize
    one gets.

    Args:
      local_or_socket: what `open_udp_socket` takes as ``local``; or a bound UDP socket, which is
        closed at the end, also where entering fails.
      remote: as for `open_udp_socket`, and so are ``reuse_port``, ``receive_buffer``,
        ``send_buffer`` and ``fragment``. A socket that is given has been set up by its owner, and
        takes none of these.
      handler, on_error: as for `BatchPump`.
      capacity: as for `BatchPump`.
      pool: as for `UdpBatchReceiver`, and so are ``batch_size``, ``gro``, ``ecn``, ``packet_info``
        and ``timestamps``.
      gso, max_segments: as for `UdpBatchSender`.

    Raises:
      OSError: see `open_udp_socket`.
      TypeError, ValueError: see `open_udp_socket`, `BatchPump`, `UdpBatchReceiver` and
        `UdpBatchSender`.
    """
    sock: Socket
    if local_or_socket is None or isinstance(local_or_socket, tuple | int):
        sock = await open_udp_socket(
            local_or_socket,
            remote=remote,
            reuse_port=reuse_port,
            receive_buffer=receive_buffer,
            send_buffer=send_buffer,
            fragment=fragment,
        )
    else:
        sock = check_socket(local_or_socket, "a socket, an address (host, port) or a descriptor")
    try:
        if sock is local_or_socket:
            refuse_options(
                remote=(remote, None),
                reuse_port=(reuse_port, False),
                receive_buffer=(receive_buffer, DEFAULT_BUFFER),
                send_buffer=(send_buffer, DEFAULT_BUFFER),
                fragment=(fragment, False),
            )
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
