"""The loop of a program on udp_batch.rs: receive, look at each, queue, flush."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from snaptun_trio import (
    PacketBufPool,
    QueuePacketError,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
    open_udp_socket,
)

if TYPE_CHECKING:
    from snaptun_trio import Address


async def main(port: int) -> None:
    with await open_udp_socket(("::", port)) as sock:
        pool = PacketBufPool()
        receiver = UdpBatchReceiver(sock, pool, batch_size=64)
        sender = UdpBatchSender(sock, batch_size=64, max_packet_size=4096)
        print("answering on port", sender.local_address[1], flush=True)

        def handle(packet: bytes, address: Address) -> None:
            if sender.is_full:  # GRO can bring in more datagrams than there were messages
                with suppress(SendBatchError, trio.WouldBlock):
                    sender.try_flush_best_effort()
            with suppress(QueuePacketError):  # still full, or too large: dropped
                sender.try_queue_packet(packet.upper(), address)

        while True:
            await receiver.recv_batch(handle)
            with suppress(SendBatchError):  # whom nothing can be sent to; all others have it
                await sender.flush()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
