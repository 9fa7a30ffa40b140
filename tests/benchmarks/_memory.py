# What the library keeps in memory: under a million datagrams, and in a thousand idle receivers.
#
# Each figure is taken in a process of its own, from what the kernel says is resident.

from __future__ import annotations

import gc
import socket
from contextlib import ExitStack
from pathlib import Path

import trio
from trio.testing import wait_all_tasks_blocked

from snaptun_trio import PacketBufPool, UdpBatchReceiver, open_batch_pump

from ._fact import Fact
from ._shapes import SHAPES, Shape
from ._traffic import Sinks, Traffic, open_socket, payload, raise_file_limit
from ._worker import in_new_process

DATAGRAMS = 1_000_000
FIRST = 100_000
IDLE_RECEIVERS = 1_000
MOST_TURNS = 100_000


def status_kib(field: str) -> int:
    """A size from /proc/self/status. VmHWM is this program's own peak, unlike ru_maxrss."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise LookupError(field)


async def pump_a_million(shape: Shape) -> tuple[int, int, int, int]:
    """Resident KiB before, after the first datagrams, after the last, and at the peak."""
    marks: list[int] = []
    with ExitStack() as stack:
        sock = stack.enter_context(open_socket(socket.AF_INET))
        sink = stack.enter_context(open_socket(socket.AF_INET))
        traffic = Traffic(shape, sock)
        stack.callback(traffic.close)
        sinks, to = Sinks([sink]), sink.getsockname()
        gc.collect()
        before = status_kib("VmRSS")
        async with open_batch_pump(sock, handler=lambda batch: batch.to(to)):
            pumped = 0
            for _ in range(MOST_TURNS):
                load = traffic.send(shape.round_trains)
                await wait_all_tasks_blocked()
                sinks.empty(load.nbytes)
                pumped += load.datagrams
                passed = range(pumped - load.datagrams + 1, pumped + 1)
                if FIRST in passed:
                    marks.append(status_kib("VmRSS"))
                if pumped >= DATAGRAMS:
                    break
        return before, marks[0], status_kib("VmRSS"), status_kib("VmHWM")


def pumping(shape: Shape) -> tuple[int, int, int, int]:
    """In a child: `pump_a_million`."""
    return trio.run(pump_a_million, shape)


async def open_idle_receivers() -> tuple[int, int, int]:
    """Resident bytes for each receiver, for each that has received one datagram and still has the
    batch, and for each with a task that waits in it."""
    raise_file_limit(IDLE_RECEIVERS + 100)
    with ExitStack() as stack:
        sockets = [stack.enter_context(open_socket(socket.AF_INET)) for _ in range(IDLE_RECEIVERS)]
        UdpBatchReceiver(sockets[0], pool := PacketBufPool())  # what only the first one costs
        gc.collect()
        before = status_kib("VmRSS")
        receivers = [UdpBatchReceiver(sock, pool) for sock in sockets]
        gc.collect()
        opened = status_kib("VmRSS")
        batches = []
        for receiver in receivers:
            sockets[0].sendto(payload(100), receiver.socket.getsockname())
            batches.append(await receiver.receive())
        gc.collect()
        received = status_kib("VmRSS")
        del batches
        async with trio.open_nursery() as nursery:
            for receiver in receivers:
                nursery.start_soon(receiver.receive)
            await wait_all_tasks_blocked()
            gc.collect()
            waiting = status_kib("VmRSS")
            nursery.cancel_scope.cancel()
    return each(opened - before), each(received - before), each(waiting - before)


def each(kib: int) -> int:
    """So many bytes for each receiver."""
    return kib * 1024 // IDLE_RECEIVERS


def idling() -> tuple[int, int, int]:
    """In a child: `open_idle_receivers`."""
    return trio.run(open_idle_receivers)


def measure() -> list[Fact]:
    """All memory figures."""
    facts = []
    for shape in (SHAPES[0], SHAPES[3]):
        before, first, last, peak = in_new_process(pumping, shape)
        group = f"memory, {DATAGRAMS:,} datagrams of {shape.name} pumped"
        facts += [
            Fact(group, "peak resident size", peak / 1024, "MiB", f"{before / 1024:.1f} at start"),
            Fact(
                group,
                "growth from the first 100,000 to the last",
                float(last - first),
                "KiB",
                aim="0",
            ),
        ]
    receiver, received, waiting = in_new_process(idling)
    group = f"memory, {IDLE_RECEIVERS:,} idle receivers on one pool"
    note = "with a task that waits in each, the task included"
    return [
        *facts,
        Fact(group, "each receiver", float(receiver), "bytes", aim="2 048"),
        Fact(
            group,
            "each that has received a datagram of 100 bytes",
            float(received),
            "bytes",
            "its batch included",
            "4 096",
        ),
        Fact(group, "each waiting receiver", float(waiting), "bytes", note),
    ]
