# A relay that adds a byte to what clients send and takes one off what comes back, by the functions
# of `UdpRelay`: a program by itself. It knows nothing of the benchmark.
# `python _ours_protocol.py LISTEN_PORT TARGET_PORT`

from __future__ import annotations

import signal
import sys

import trio

from snaptun_trio import Address, PacketBatch, RelayClient, UdpRelay

HOST = "127.0.0.1"
HEADER = b"D"


def add(batch: PacketBatch[Address], client: RelayClient) -> list[bytes]:
    """To the target."""
    return [HEADER + packet for packet, _ in batch]


def strip(batch: PacketBatch[Address], client: RelayClient) -> list[bytes]:
    """To the client."""
    return [packet[1:] for packet, _ in batch]


async def relay(listen: int, target: int) -> None:
    """Relay until SIGTERM."""
    running = UdpRelay((HOST, listen), [(HOST, target)], from_client=add, from_target=strip)
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            await nursery.start(running.run)
            async for _ in signals:
                break
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(relay, int(sys.argv[1]), int(sys.argv[2]))
