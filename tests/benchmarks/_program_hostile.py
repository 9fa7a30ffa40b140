# A pump under hostile traffic, beside the normal cost of the same number of datagrams.
#
# Normal are datagrams of three sizes from one peer. Both are filled in before the clock runs, and
# in both every datagram is accounted for: sent on and arrived, or refused and counted as that.

from __future__ import annotations

import gc
import logging
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import trio
from trio.testing import wait_all_tasks_blocked

from snaptun_trio import open_batch_pump

from . import _private_loopback
from ._mob import ROUND, Mob
from ._scene import Scene
from ._shapes import SHAPES
from ._traffic import Traffic, open_socket

if TYPE_CHECKING:
    from snaptun_trio import PacketBatch

    from ._worker import Contender

HOSTILE, NORMAL = "hostile", "normal traffic"
FORWARDING, ANSWERING = "forwarding", "answering"
BUDGET_NS, QUICK_BUDGET_NS = 30_000_000, 10_000_000
MIX = SHAPES[5]


async def pump(scene: Scene, answering: bool) -> None:
    """A pump with a handler that sends everything on, or back."""
    to = scene.sink_address

    def handler(batch: PacketBatch) -> PacketBatch:
        return batch if answering else batch.to(to)

    normal = 0
    turns = scene.answering_turns() if answering else scene.forwarding_turns()
    async with open_batch_pump(scene.sock, handler=handler) as running:
        for load in turns:
            await wait_all_tasks_blocked()
            normal += load.datagrams
        counted = running.statistics()
    traffic = scene.traffic
    expected = (traffic.sent_on, traffic.refused) if isinstance(traffic, Mob) else (normal, 0)
    if (counted.datagrams_sent, counted.datagrams_failed) != expected:
        raise RuntimeError(
            f"{counted.datagrams_sent} were sent and {counted.datagrams_failed} refused, "
            f"not {expected[0]} and {expected[1]}"
        )


def work(traffic: str, answering: bool, budget_ns: int) -> tuple[float, list[str]]:
    """In the child: one sitting. CPU nanoseconds a datagram, and what was in the traffic."""

    # The library logs what was refused, once a pump; that is to be expected here.
    logging.getLogger("snaptun_trio").addHandler(logging.NullHandler())

    def sitting(inside: bool) -> tuple[float, list[str]]:
        with ExitStack() as stack:
            sock = stack.enter_context(open_socket(socket.AF_INET))
            sink = stack.enter_context(open_socket(socket.AF_INET))
            filled: Traffic
            if traffic == HOSTILE:
                filled = mob = Mob(sock, oversize=inside, answered=answering)
                parts = mob.parts
            else:
                filled, parts = Traffic(MIX, sock), []
            stack.callback(filled.close)
            gc.collect()
            scene = Scene(MIX, sock, filled, sink, budget_ns, ROUND)
            trio.run(pump, scene, answering)
            return scene.ns_each, parts

    return _private_loopback.call(sitting)


def sit(contender: Contender, variant: str, *, quick: bool, traffic: str) -> float:
    """CPU nanoseconds a datagram."""
    budget_ns = QUICK_BUDGET_NS if quick else BUDGET_NS
    return contender.submit(work, traffic, variant == ANSWERING, budget_ns).result()[0]


def parts_of(contender: Contender) -> str:
    """What this machine lets the hostile traffic have in it."""
    return ", ".join(contender.submit(work, HOSTILE, False, 1).result()[1])
