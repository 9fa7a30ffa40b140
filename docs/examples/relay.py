from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from snaptun_trio import BatchPump, UdpBatchReceiver, UdpBatchSender, open_batch_pump

if TYPE_CHECKING:
    from snaptun_trio import Address, PacketBatch


async def relay(sock: trio.socket.SocketType, target: Address) -> None:
    """Send everything that arrives at a socket on to one target, until cancelled."""

    def to_target(batch: PacketBatch) -> PacketBatch | None:
        return batch.to(target)  # None would drop the batch

    async with open_batch_pump(sock, handler=to_target):
        await trio.sleep_forever()


async def relay_between(
    inside: trio.socket.SocketType, outside: trio.socket.SocketType, target: Address
) -> None:
    """The same from one socket to another, with a pump of one's own in one's own nursery."""
    pump = BatchPump(
        UdpBatchReceiver(inside),
        UdpBatchSender(outside),
        handler=lambda batch: batch.to(target),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
