from __future__ import annotations

import contextlib
import sys

import trio

from snaptun_trio import (
    PacketBatch,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
    open_udp_socket,
)


async def main(port: int) -> None:
    with await open_udp_socket(("::", port)) as sock:
        receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
        print("answering on port", sender.local_address[1], flush=True)
        async for batch in receiver:
            answers = [(packet.upper(), address) for packet, address in batch]
            with contextlib.suppress(SendBatchError):  # sendto would have raised, for one
                await sender.send(PacketBatch.pack(answers))


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
