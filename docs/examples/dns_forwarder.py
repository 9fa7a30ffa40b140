"""Passes DNS questions on to a server: python dns_forwarder.py HOST PORT SERVER SERVER_PORT"""

from __future__ import annotations

import contextlib
import sys

import trio
from dns_waiting import PATIENCE, Waiting

from snaptun_trio import (
    Address,
    BatchPump,
    PacketBatch,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
    open_udp_socket,
)


async def main(host: str, port: int, server: str, server_port: int) -> None:
    waiting = Waiting()

    def ask(batch: PacketBatch[Address]) -> PacketBatch:
        now = trio.current_time()
        found = [waiting.ask(message, client, now) for message, client in batch]
        return PacketBatch.pack((message, None) for message in found if message)

    def answer(batch: PacketBatch[Address]) -> PacketBatch:
        found = [waiting.answer(message) for message, _ in batch]
        return PacketBatch.pack(answered for answered in found if answered)

    front = await open_udp_socket((host, port))
    back = await open_udp_socket(remote=(server, server_port))  # only the server is heard
    there = BatchPump(UdpBatchReceiver(front), UdpBatchSender(back), handler=ask)
    here = BatchPump(UdpBatchReceiver(back), UdpBatchSender(front), handler=answer)
    async with trio.open_nursery() as nursery:
        await nursery.start(there.run)
        await nursery.start(here.run)
        print("forwarding from port", there.local_address[1], flush=True)
        while True:
            await trio.sleep(PATIENCE)
            late = PacketBatch.pack(
                (message, None) for message in waiting.late(trio.current_time())
            )
            with contextlib.suppress(SendBatchError):  # refused: the others have been sent
                await there.sender.send(late)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
