# Where the microseconds of one forwarded batch go, from kernel to kernel.
#
# A full socket is drained by more and more of the library, stage by stage: the first stage makes
# only the system call, the last one is a whole pump. A stage costs what it takes beyond the one
# before. All stages take turns, round by round. This looks behind the public interface, on purpose:
# it is no contender.

from __future__ import annotations

import socket
import statistics
import time
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING

import trio
from trio.testing import wait_all_tasks_blocked

from snaptun_trio import UdpBatchReceiver, UdpBatchSender, open_batch_pump
from snaptun_trio._batch import messages_of

from . import _floor
from ._fact import Fact
from ._shapes import SHAPES
from ._traffic import Sinks, Traffic, open_socket
from ._worker import in_new_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from snaptun_trio import Address, PacketBatch

    from ._shapes import Shape
    from ._traffic import Load

# Messages in a receive call, by shape: what the library offers by itself.
SLOTS = {"50x1200": 17, "1x1200": 256}
WARM_UP_ROUNDS = 3
PUMP = "the pump: its handler, its account, the turns of its tasks"


class Scene:
    """A socket that is filled with a shape of traffic, and a sink for what is sent on."""

    def __init__(self, shape: Shape, stack: ExitStack) -> None:
        self.shape, self.slots = shape, SLOTS[shape.name]
        self.sock = stack.enter_context(open_socket(socket.AF_INET))
        sink = stack.enter_context(open_socket(socket.AF_INET))
        self.sinks = Sinks([sink])
        self.target: Address = sink.getsockname()
        self.traffic = Traffic(shape, self.sock)
        stack.callback(self.traffic.close)

    def batches(self, load: Load) -> float:
        """How many batches a load is."""
        trains = sum(segments for _, segments in self.shape.trains) / len(self.shape.trains)
        return load.datagrams / trains / self.slots


class Stages:
    """Ways to drain a socket that do more and more with each batch."""

    def __init__(self, scene: Scene, stack: ExitStack) -> None:
        self.scene = scene
        self.floor = stack.enter_context(_floor.open_floor(scene.slots))
        self.receiver = UdpBatchReceiver(scene.sock, batch_size=scene.slots)
        self.sender = UdpBatchSender(scene.sock)

    def system_call(self, load: Load) -> None:
        fd = self.scene.sock.fileno()
        _floor.check(_floor.LIBRARY.floor_receive(self.floor, fd, load.nbytes))

    def rows(self, load: Load) -> None:
        io, memory, slots = self.receiver._io, self.receiver._memory, self.scene.slots
        left = load.datagrams
        while left:
            messages = io.receive(memory, slots, slots)
            assert messages is not None
            left -= messages.datagrams
            messages = None  # its memory is for the next one

    def receive(self, load: Load) -> None:
        self._use_each(load, lambda batch: None)

    def lay_out(self, load: Load) -> None:
        io, target = self.sender._io, self.scene.target
        self._use_each(load, lambda batch: io.outgoing(*messages_of(batch.to(target))))

    def send(self, load: Load) -> None:
        io, target = self.sender._io, self.scene.target

        def send(batch: PacketBatch) -> None:
            outgoing = io.outgoing(*messages_of(batch.to(target)))
            while outgoing.more:
                if number := io.send(outgoing, 1 << 20):
                    raise OSError(number, "the sink's buffer is too small for a turn")

        self._use_each(load, send)

    def account(self, load: Load) -> None:
        target = self.scene.target
        self._use_each(load, lambda batch: self.sender.send_nowait(batch.to(target)))

    def _use_each(self, load: Load, use: Callable[[PacketBatch], object]) -> None:
        left = load.datagrams
        while left:
            batch: PacketBatch | None = self.receiver.receive_nowait()
            assert batch is not None
            left -= len(batch)
            use(batch)
            batch = None


STAGES: dict[str, tuple[Callable[[Stages, Load], None], bool]] = {
    "recvmmsg": (Stages.system_call, False),
    "C: memory, rows": (Stages.rows, False),
    "the receiver: what to offer, errors, its account": (Stages.receive, False),
    "batch.to, and the form in which it is sent": (Stages.lay_out, False),
    "sendmmsg, and laying out its headers": (Stages.send, True),
    "the sender: its queue, refusals, its account": (Stages.account, True),
}


def sit(shape_name: str, rounds: int) -> list[tuple[str, float]]:
    """In a child: CPU microseconds of a batch up to each stage, medians of the rounds."""
    us: dict[str, list[float]] = {}
    trio.run(sit_in_trio, next(s for s in SHAPES if s.name == shape_name), rounds, us)
    return [(stage, statistics.median(figures)) for stage, figures in us.items()]


async def sit_in_trio(shape: Shape, rounds: int, us: dict[str, list[float]]) -> None:
    """All stages, round by round, and a pump on a socket of its own."""
    with ExitStack() as stack:
        scene, pumped = Scene(shape, stack), Scene(shape, stack)
        stages = Stages(scene, stack)
        async with open_batch_pump(
            pumped.sock, batch_size=pumped.slots, handler=lambda batch: batch.to(pumped.target)
        ):
            for number in range(WARM_UP_ROUNDS + rounds):
                counted: dict[str, float] = {}
                # Each twice, and the second time counts: what came before it has left the cache.
                for stage, (drain, sends) in [item for item in STAGES.items() for _ in range(2)]:
                    load = scene.traffic.send(shape.round_trains)
                    before = time.process_time_ns()
                    drain(stages, load)
                    counted[stage] = (time.process_time_ns() - before) / scene.batches(load)
                    if sends:
                        scene.sinks.empty(load.nbytes)
                for _ in range(2):
                    load = pumped.traffic.send(shape.round_trains)
                    before = time.process_time_ns()
                    await wait_all_tasks_blocked()
                    counted[PUMP] = (time.process_time_ns() - before) / pumped.batches(load)
                    pumped.sinks.empty(load.nbytes)
                for stage, ns in counted.items() if number >= WARM_UP_ROUNDS else ():
                    us.setdefault(stage, []).append(ns / 1000)


def measure(*, rounds: int) -> list[Fact]:
    """The share of each stage, for long trains and for single datagrams."""
    facts = []
    for shape, slots in SLOTS.items():
        group = f"where the time of a forwarded batch goes, {slots} messages of {shape}"
        stages = in_new_process(sit, shape, rounds)
        whole = stages[-1][1]
        for (_, before), (stage, upto) in pairwise([("", 0.0), *stages]):
            share = upto - before
            facts.append(Fact(group, stage, share, "us", f"{share / whole:.0%}"))
        facts.append(Fact(group, "in all", whole, "us"))
    return facts
