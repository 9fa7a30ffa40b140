"""Relays what clients ask it to, a task for each: python protocol_relay.py PORT HOST TARGET_PORT"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from functools import partial

import trio

from snaptun_trio import UdpChannel, UdpServer, open_udp_channel, serve_udp

DATA, PING, BYE = b"D", b"P", b"B"  # the first byte of what clients send


async def session(target: tuple[str, int], client: UdpChannel) -> None:
    """Relay for one client, until it says good-bye or is silent for too long."""
    # That the target is not there for a while ends no session.
    opening = open_udp_channel(*target, report_errors=False)
    async with await opening as upstream, trio.open_nursery() as nursery:
        nursery.start_soon(answers, upstream, client)
        async for batch in client:
            packets = [packet for packet, _ in batch]
            send(upstream, [packet[1:] for packet in packets if packet[:1] == DATA])
            send(client, [packet for packet in packets if packet[:1] == PING])
            if any(packet[:1] == BYE for packet in packets):
                break
        nursery.cancel_scope.cancel()


async def answers(upstream: UdpChannel, client: UdpChannel) -> None:
    """What the target answers."""
    async for batch in upstream:
        send(client, [DATA + packet for packet, _ in batch])


def send(channel: UdpChannel, packets: list[bytes]) -> None:
    """What there is no room for is lost, as anywhere on the way."""
    with suppress(trio.WouldBlock):
        channel.send_packets_nowait(packets)


def note(error: Exception, channel: UdpChannel) -> None:
    """One client's trouble, such as no descriptor for its session: the others go on."""
    logging.warning("%s: %r", channel.address, error)


async def main(port: int, host: str, target_port: int) -> None:
    async with trio.open_nursery() as nursery:
        handler = partial(session, (host, target_port))
        server: UdpServer = await nursery.start(
            partial(serve_udp, handler, port, max_peers=1000, idle_timeout=30.0, on_error=note)
        )
        print("relaying on port", server.local_address[1], flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
