from __future__ import annotations

from typing import TYPE_CHECKING

from snaptun_trio import (
    PacketBufPool,
    ReceiverGroupError,
    UdpBatchReceiver,
    UdpReceiverGroup,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import trio

    from snaptun_trio import Address


async def receive_on_all(
    sockets: Iterable[trio.socket.SocketType],
    look_at: Callable[[UdpBatchReceiver, bytes, Address], object],
    *,
    complain: Callable[[str], object] = print,
) -> None:
    """Look at what comes to any of the sockets, until all of them are closed."""
    pool = PacketBufPool()  # one for all of them
    with UdpReceiverGroup(UdpBatchReceiver(sock, pool) for sock in sockets) as group:
        while len(group):
            try:
                receiver, batch = await group.receive()
            except ReceiverGroupError as error:  # that one has left; the others go on
                complain(f"{error.receiver.socket!r}: {error}")
                continue
            for packet, address in batch:
                look_at(receiver, packet, address)
