# How long another task waits while the program is flooded.
#
# A child sends as fast as it can. In this trio loop one task or a pump takes it all, and another
# task does nothing but come round: the time between its turns is what any task would wait. CPU time
# tells what the library did to it, the wall clock adds what the machine did meanwhile.

from __future__ import annotations

import multiprocessing
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from snaptun_trio import PacketBatch, UdpBatchReceiver, open_batch_pump

from ._fact import Fact
from ._traffic import HANG_GUARD, UDP_SEGMENT, open_socket, payload
from ._worker import in_new_process

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    from ._traffic import Address

SEGMENTS = {"trains of 50": 50, "singles": 1}
WARM_UP_BATCHES = 100


def flood(target: Address, segments: int, stop: Event) -> None:
    """In a child: send trains until told to stop, or till the hang guard is over."""
    deadline = time.monotonic() + HANG_GUARD
    control = []
    if segments > 1:
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, (1200).to_bytes(2, "little"))]
    data = payload(1200 * segments)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while not stop.is_set() and time.monotonic() < deadline:
            for _ in range(32):
                sock.sendmsg([data], control, 0, target)


@dataclass
class Gaps:
    """The time between the turns of a task while batches come in."""

    batches: int
    """The turns end with this many."""
    finished: trio.Event = field(default_factory=trio.Event)
    seen: int = 0
    largest: int = 0
    cpu_ns: list[int] = field(default_factory=list)
    wall_ns: list[int] = field(default_factory=list)

    def saw(self, batch: PacketBatch) -> PacketBatch:
        """Count a batch."""
        self.seen += 1
        if self.seen > WARM_UP_BATCHES:
            self.largest = max(self.largest, len(batch))
        if self.seen == self.batches:
            self.finished.set()
        return batch

    async def watch(self) -> None:
        """Come round until the batches are through."""
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        while not self.finished.is_set():
            await trio.lowlevel.checkpoint()
            new_cpu, new_wall = time.thread_time_ns(), time.perf_counter_ns()
            if self.seen >= WARM_UP_BATCHES:
                self.cpu_ns.append(new_cpu - cpu)
                self.wall_ns.append(new_wall - wall)
            cpu, wall = new_cpu, new_wall


async def receive(sock: socket.socket, gaps: Gaps) -> None:
    """One task receives."""
    receiver = UdpBatchReceiver(sock)
    while not gaps.finished.is_set():
        gaps.saw(await receiver.receive())


async def pump(sock: socket.socket, gaps: Gaps) -> None:
    """A pump forwards to a socket that nobody reads."""
    with open_socket(socket.AF_INET) as sink:
        to: Address = sink.getsockname()
        async with open_batch_pump(sock, handler=lambda batch: gaps.saw(batch).to(to)):
            await gaps.finished.wait()


WORKS = {"receive": receive, "pump": pump}


async def run_flooded(work: str, segments: int, batches: int) -> Gaps:
    """The work and the watching task, with a flood from a child."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    gaps = Gaps(batches)
    with open_socket(socket.AF_INET) as sock:
        child = context.Process(target=flood, args=(sock.getsockname(), segments, stop))
        child.start()
        try:
            with trio.fail_after(HANG_GUARD):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(WORKS[work], sock, gaps)
                    nursery.start_soon(gaps.watch)
        finally:
            stop.set()
            child.join(HANG_GUARD)
    return gaps


def under_flood(work: str, segments: int, batches: int) -> tuple[list[int], list[int], int]:
    """In a child: CPU and wall gaps, sorted, and the largest batch."""
    gaps = trio.run(run_flooded, work, segments, batches)
    return sorted(gaps.cpu_ns), sorted(gaps.wall_ns), gaps.largest


def measure(*, batches: int) -> list[Fact]:
    """The longest gaps, for each work and kind of flood."""
    facts = []
    for work in WORKS:
        for name, segments in SEGMENTS.items():
            cpu, wall, largest = in_new_process(under_flood, work, segments, batches)
            facts.append(
                Fact(
                    "another task's longest wait under a flood",
                    f"{work}, {name}",
                    cpu[-1] / 1e6,
                    "ms CPU",
                    f"99 of 100 under {cpu[len(cpu) * 99 // 100] / 1e6:.2f}; by the wall clock "
                    f"{wall[len(wall) * 99 // 100] / 1e6:.2f}, longest {wall[-1] / 1e6:.2f}; "
                    f"the largest batch had {largest} datagrams",
                    "one batch",
                )
            )
    return facts
