"""Collects syslog (RFC 5424 over UDP) on standard output: python syslog_collector.py HOST PORT"""

from __future__ import annotations

import re
import signal
import sys

import trio

from snaptun_trio import UdpBatchReceiver, open_udp_socket

MESSAGE = re.compile(rb"<\d{1,3}>1 ")


async def collect(receiver: UdpBatchReceiver) -> None:
    async for batch in receiver:
        for packet, address in batch:
            if MESSAGE.match(packet):
                text = packet.replace(b"\n", b"\\n")  # or anybody could forge a line
                sys.stdout.buffer.write(b"%b %b\n" % (address[0].encode(), text))
        sys.stdout.flush()  # once for all that came together


async def tell_drops(receiver: UdpBatchReceiver) -> None:
    told = 0
    while True:
        await trio.sleep(1)
        dropped = receiver.statistics().buffers_dropped_by_kernel or 0
        if dropped > told:
            print(dropped - told, "dropped in this second", file=sys.stderr, flush=True)
        told = dropped


async def main(host: str, port: int) -> None:
    with (
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
        await open_udp_socket((host, port)) as sock,
        UdpBatchReceiver(sock, gro=False) as receiver,  # the kernel counts datagrams then
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, receiver)
            nursery.start_soon(tell_drops, receiver)
            print("collecting on port", receiver.local_address[1], file=sys.stderr, flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()
        seen = receiver.statistics()
    dropped = seen.buffers_dropped_by_kernel
    print(seen.datagrams_received, "received,", dropped, "dropped", file=sys.stderr)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
