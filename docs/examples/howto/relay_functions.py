"""Relays what clients ask it to, by functions: python relay_functions.py PORT HOST TARGET_PORT"""

from __future__ import annotations

import logging
import sys

import trio

from snaptun_trio import Address, PacketBatch, RelayClient, UdpRelay

DATA, PING, BYE = b"D", b"P", b"B"  # the first byte of what clients send


def from_client(batch: PacketBatch[Address], client: RelayClient) -> list[bytes]:
    """What goes to the target of what one client sent."""
    packets = [packet for packet, _ in batch]
    client.answer([packet for packet in packets if packet[:1] == PING])
    if any(packet[:1] == BYE for packet in packets):
        client.close()
    return [packet[1:] for packet in packets if packet[:1] == DATA]


def from_target(batch: PacketBatch[Address], client: RelayClient) -> list[bytes]:
    """What goes to the client of what its target answered."""
    return [DATA + packet for packet, _ in batch]


def note(error: Exception, client: RelayClient) -> None:
    """What one client sent was not expected: the others go on."""
    logging.warning("%s: %r", client.address, error)


async def main(port: int, host: str, target_port: int) -> None:
    relay = UdpRelay(
        (None, port),
        [(host, target_port)],
        from_client=from_client,
        from_target=from_target,
        on_error=note,
        max_sessions=1000,
        idle_timeout=30.0,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        print("relaying on port", relay.local_address[1], flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
