from __future__ import annotations

import trio

from snaptun_trio import BatchPump, PacketBatch, UdpBatchReceiver, UdpBatchSender


async def join(left: trio.socket.SocketType, right: trio.socket.SocketType) -> None:
    """Pass datagrams both ways between the peers of two connected sockets, until cancelled."""

    def to_connected(batch: PacketBatch) -> PacketBatch | None:
        return batch.to(None)  # None in place of a batch would drop it

    async with trio.open_nursery() as nursery:
        for one, other in ((left, right), (right, left)):
            pump = BatchPump(UdpBatchReceiver(one), UdpBatchSender(other), handler=to_connected)
            await nursery.start(pump.run)
