# One datagram there and back: what a program pays that waits for each.
#
# The server, which is measured, has a process of its own and greets the client with a first
# datagram; so the client learns its address. The client is a plain blocking socket in the parent.
# CPU time is the server's, round trips a second are by the wall clock and hold for both. Both share
# one processor: waking a second one up costs ten times the floor's round trip, and would be in
# every figure or in none as the scheduler pleases.

from __future__ import annotations

import os
import socket
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from snaptun_trio import PacketBatch, UdpBatchReceiver, UdpBatchSender, open_batch_pump

from ._fact import Fact
from ._traffic import HANG_GUARD, open_socket
from ._worker import new_process

if TYPE_CHECKING:
    from ._traffic import Address

WARM_UP = 500
GREETING = b"here"


@dataclass
class Stopwatch:
    """Starts after the warm-up and stops with the last round trip."""

    count: int
    done: int = -WARM_UP
    cpu_ns: int = 0
    wall_ns: int = 0

    def tick(self) -> bool:
        """One round trip more. Whether it was the last."""
        self.done += 1
        if self.done in (0, self.count):
            self.cpu_ns = time.process_time_ns() - self.cpu_ns
            self.wall_ns = time.perf_counter_ns() - self.wall_ns
        return self.done == self.count


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
    "trio.socket": serve_with_trio_socket,
    "receiver and sender": serve_directly,
    "receiver and sender, by packet": serve_by_packets,
    "pump": serve_with_pump,
}


async def serve_guarded(kind: str, sock: socket.socket, watch: Stopwatch) -> None:
    """A server that does not wait for ever for a client that is gone."""
    with trio.fail_after(HANG_GUARD):
        await SERVERS[kind](sock, watch)


def serve(kind: str, client: Address, count: int) -> tuple[int, int]:
    """In the child: echo so many times. CPU and wall nanoseconds of all round trips."""
    with open_socket(socket.AF_INET) as sock:
        sock.sendto(GREETING, client)
        watch = Stopwatch(count)
        trio.run(serve_guarded, kind, sock, watch)
        return watch.cpu_ns, watch.wall_ns


def serve_floor(client: Address, count: int) -> tuple[int, int]:
    """In the child: the same with nothing but the system calls."""
    from . import _floor

    with open_socket(socket.AF_INET) as sock, _floor.open_floor(1) as floor:
        sock.sendto(GREETING, client)
        _floor.check(_floor.LIBRARY.floor_echo_one(floor, sock.fileno(), WARM_UP))
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        _floor.check(_floor.LIBRARY.floor_echo_one(floor, sock.fileno(), count))
        return time.process_time_ns() - cpu, time.perf_counter_ns() - wall


def play(client: socket.socket, count: int) -> None:
    """Wait for the greeting, then send a datagram and wait for it, so many times."""
    greeting, server = client.recvfrom(64)
    if greeting != GREETING:
        raise RuntimeError("a datagram from elsewhere")
    ball = bytes(100)
    for _ in range(count):
        client.sendto(ball, server)
        client.recv(200)


def measure(*, rounds: int, count: int, floor: bool) -> list[Fact]:
    """Round trips of every kind, in turn, several rounds."""
    kinds = [*(["floor"] if floor else []), *SERVERS]
    cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
    rate: dict[str, list[float]] = {kind: [] for kind in kinds}
    processes = {kind: new_process() for kind in kinds}
    processors = os.sched_getaffinity(0)
    try:
        for process in processes.values():
            process.submit(os.sched_setaffinity, 0, {min(processors)}).result()
        os.sched_setaffinity(0, {min(processors)})
        for _ in range(rounds):
            for kind, process in processes.items():
                with open_socket(socket.AF_INET) as client:
                    client.settimeout(HANG_GUARD)
                    address = client.getsockname()
                    if kind == "floor":
                        served = process.submit(serve_floor, address, count)
                    else:
                        served = process.submit(serve, kind, address, count)
                    try:
                        play(client, WARM_UP + count)
                    except TimeoutError:
                        served.result(HANG_GUARD)  # the server's own error says more
                        raise
                    cpu_ns, wall_ns = served.result(HANG_GUARD)
                    cpu[kind].append(cpu_ns / count)
                    rate[kind].append(count * 1e9 / wall_ns)
    finally:
        os.sched_setaffinity(0, processors)
        for process in processes.values():
            process.shutdown()
    base = statistics.median(cpu["trio.socket"])
    aims = {"receiver and sender": "1.00", "pump": "1.50"}
    return [
        Fact(
            "ping-pong, one datagram",
            kind,
            statistics.median(cpu[kind]) / 1000,
            "us CPU a round trip",
            f"{statistics.median(cpu[kind]) / base:.2f} x trio.socket "
            f"[{min(cpu[kind]) / base:.2f}-{max(cpu[kind]) / base:.2f}], "
            f"{statistics.median(rate[kind]):,.0f} round trips a second",
            aims.get(kind, ""),
        )
        for kind in kinds
    ]
