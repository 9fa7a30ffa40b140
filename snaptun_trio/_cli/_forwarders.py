# What demo and bench compare, each run as a process: the library's pump, and the loops that one
# writes with `trio.socket`, asyncio and uvloop. All do the same work: what arrives goes on to one
# target. None looks into the datagrams, counts them, or knows where they come from.
#
# A line on the standard input asks what it has cost, and a thread answers: what the loop is doing
# has no part in it.

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import trio

from .. import Address, BatchPump, SendBatchError, UdpBatchReceiver, UdpBatchSender

LOOPBACK = "127.0.0.1"
RECEIVE_BUFFER = 4 * 1024 * 1024  # asked for; what the kernel gives is net.core.rmem_max


def open_end() -> socket.socket:
    """The socket of either process."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setblocking(False)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    udp.bind((LOOPBACK, 0))
    return udp


async def pump(udp: socket.socket, target: Address) -> None:
    """The library: a pump with a handler that readdresses each batch."""
    receiver, sender = UdpBatchReceiver(udp), UdpBatchSender(udp)
    await BatchPump(receiver, sender, handler=lambda batch: batch.to(target)).run()


async def loop(udp: socket.socket, target: Address) -> None:
    """Plain trio: receive a datagram, send it on."""
    sock = trio.socket.from_stdlib_socket(udp)
    while True:
        packet, _ = await sock.recvfrom(65_536)
        await sock.sendto(packet, target)


async def protocol(udp: socket.socket, target: Address) -> None:
    """asyncio, and uvloop: an object that is called for each datagram."""

    class Forward(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:  # noqa: ANN401
            self.transport = transport

        def datagram_received(self, data: bytes, addr: object) -> None:
            self.transport.sendto(data, target)

    await asyncio.get_running_loop().create_datagram_endpoint(Forward, sock=udp)
    await asyncio.get_running_loop().create_future()


PUMP = "snaptun_trio pump"
FORWARDERS: dict[str, Callable[[socket.socket, Address], object]] = {
    PUMP: lambda udp, target: trio.run(pump, udp, target),
    "trio.socket": lambda udp, target: trio.run(loop, udp, target),
    "asyncio": lambda udp, target: asyncio.run(protocol(udp, target)),
    "uvloop": lambda udp, target: import_module("uvloop").run(protocol(udp, target)),
}


def main(name: str, port: str) -> None:
    """Forward to this port until the standard input ends."""
    udp = open_end()
    # It receives nothing. What it knows is what the kernel drops from this socket's queue.
    asked = UdpBatchReceiver(udp, gro=name == PUMP)

    def answer() -> None:
        # Not `sys.stdin`, whose lock must be free if the interpreter ends by itself.
        with open(0, closefd=False) as orders:
            for _ in orders:
                told = asked.statistics()
                facts = {
                    "cpu": time.process_time(),
                    "port": udp.getsockname()[1],
                    "buffer": told.receive_buffer_size,
                    "dropped": told.buffers_dropped_by_kernel,
                }
                os.write(1, json.dumps(facts).encode() + b"\n")  # whole: there are two threads
        os._exit(0)  # whatever the loop is doing

    threading.Thread(target=answer, daemon=True).start()
    try:
        FORWARDERS[name](udp, (LOOPBACK, int(port)))
    except (OSError, SendBatchError) as error:
        os.write(1, json.dumps({"error": " ".join(str(error).split())}).encode() + b"\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
