from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import trio

from snaptun_trio import (
    BatchPump,
    PacketBatch,
    PacketBufPool,
    UdpBatchReceiver,
    UdpBatchSender,
    open_batch_pump,
)

if TYPE_CHECKING:
    from snaptun_trio import Address, PacketTrain

MOST_CLIENTS = 1000  # a stranger can make up any number of addresses
IDLE_SECONDS = 60.0  # a client that gets no answer for so long is forgotten


async def join(left: trio.socket.SocketType, right: trio.socket.SocketType) -> None:
    """Pass datagrams both ways between the peers of two connected sockets, until cancelled."""

    def to_connected(batch: PacketBatch) -> PacketBatch | None:
        return batch.to(None)  # None in place of a batch would drop it

    async with trio.open_nursery() as nursery:
        for one, other in ((left, right), (right, left)):
            pump = BatchPump(UdpBatchReceiver(one), UdpBatchSender(other), handler=to_connected)
            await nursery.start(pump.run)


async def relay(sock: trio.socket.SocketType, target: Address) -> None:
    """Pass the datagrams of many clients on to a target, and its answers back, until cancelled."""
    links: dict[Address, trio.MemorySendChannel[PacketBatch]] = {}
    pool = PacketBufPool()

    async def open_link(
        client: Address, task_status: trio.TaskStatus[trio.MemorySendChannel[PacketBatch]]
    ) -> None:
        with trio.socket.socket(sock.family, sock.type) as outside:
            await outside.connect(target)  # nobody but the target can answer here
            async with open_batch_pump(outside, pool=pool) as link:
                task_status.started(link.outgoing)
                with trio.move_on_after(IDLE_SECONDS) as idle:
                    async for answers in link.incoming:
                        await front.outgoing.send(answers.to(client))
                        idle.deadline = trio.current_time() + IDLE_SECONDS
                del links[client]

    async with open_batch_pump(sock, pool=pool) as front, trio.open_nursery() as nursery:
        async for batch in front.incoming:
            questions: defaultdict[Address, list[PacketTrain]] = defaultdict(list)
            for train in batch.trains:
                questions[train.address].append(train.to(None))
            for client, trains in questions.items():
                if client not in links and len(links) < MOST_CLIENTS:
                    links[client] = await nursery.start(open_link, client)
                if client in links:
                    await links[client].send(PacketBatch(trains))
