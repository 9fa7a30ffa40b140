# One datagram there and back: what a program pays that waits for each.
#
# Client and server share one processor: waking a second one up costs ten times the floor's round
# trip, and would be in every figure or in none as the scheduler pleases.

from __future__ import annotations

import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

import trio

from snaptun_trio import PacketBatch, UdpBatchReceiver, UdpBatchSender, open_batch_pump

from ._client import beside, greet, greeted, open_client
from ._loops import run_in_trio
from ._stopwatch import Stopwatch
from ._traffic import open_socket

if TYPE_CHECKING:
    from ._traffic import Address
    from ._worker import Contender

WARM_UP = 500
COUNT, QUICK_COUNT = 3_000, 1_000
TRIO_SOCKET = "trio.socket"


async def serve_directly(sock: socket.socket, watch: Stopwatch) -> None:
    """Receiver and sender, batch by batch."""
    receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
    while True:
        await sender.send(await receiver.receive())
        if watch.tick():
            return


async def serve_by_packets(sock: socket.socket, watch: Stopwatch) -> None:
    """Receiver and sender, packet by packet."""
    receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
    while True:
        for packet, address in await receiver.receive():
            sender.try_queue_packet(packet, address)
        await sender.flush()
        if watch.tick():
            return


async def serve_with_pump(sock: socket.socket, watch: Stopwatch) -> None:
    """A pump whose handler sends everything back."""
    finished = trio.Event()

    def echo(batch: PacketBatch) -> PacketBatch:
        if watch.tick():
            finished.set()
        return batch

    async with open_batch_pump(sock, handler=echo):
        await finished.wait()


async def serve_with_trio_socket(sock: socket.socket, watch: Stopwatch) -> None:
    """`trio.socket`."""
    server = trio.socket.from_stdlib_socket(sock)
    while True:
        await server.sendto(*await server.recvfrom(65_536))
        if watch.tick():
            return


SERVERS = {
    TRIO_SOCKET: serve_with_trio_socket,
    "receiver and sender": serve_directly,
    "receiver and sender, by packet": serve_by_packets,
    "handler pump": serve_with_pump,
}


def serve(variant: str, client: Address, count: int) -> float:
    """In the child: echo so many times. CPU nanoseconds of a round trip."""
    with open_socket(socket.AF_INET) as sock:
        greet(sock, client)
        watch = Stopwatch(WARM_UP, count)
        with watch.counting():
            run_in_trio(lambda: SERVERS[variant](sock, watch))
        return watch.ns_each


def serve_floor(client: Address, count: int) -> float:
    """In the child: the same with nothing but the system calls."""
    from . import _floor

    with open_socket(socket.AF_INET) as sock, _floor.open_floor(1) as floor:
        greet(sock, client)
        _floor.check(_floor.LIBRARY.floor_echo_one(floor, sock.fileno(), WARM_UP))
        before = time.process_time_ns()
        _floor.check(_floor.LIBRARY.floor_echo_one(floor, sock.fileno(), count))
        return (time.process_time_ns() - before) / count


def play(client: socket.socket, count: int) -> None:
    """Send a datagram and wait for it, so many times."""
    _, server = greeted(client)
    client.connect(server)
    ball = bytes(100)
    for _ in range(count):
        client.send(ball)
        client.recv(200)


def sit(contender: Contender, variant: str, *, quick: bool) -> float:
    """CPU nanoseconds of a round trip."""
    count = QUICK_COUNT if quick else COUNT
    with open_client() as client:
        address = client.getsockname()
        function = serve_floor if contender.name == "floor" else partial(serve, variant)
        served = contender.submit(function, address, count)
        with beside(served, max(os.sched_getaffinity(0))):
            play(client, WARM_UP + count)
        return served.result()
