# 64 tasks that each send single packets, to a peer each, through one socket.
#
# A task sends a packet and lets the others run, again and again. With the library that is what
# `send_packet` does, and what the tasks send in one turn leaves together.

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, TypeAlias

import trio

from snaptun_trio import UdpBatchSender

from ._loops import run_in_trio, run_on_loop
from ._scene import open_scene
from ._shapes import Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._scene import Scene
    from ._traffic import Address
    from ._worker import Contender

    Packets: TypeAlias = Sequence[tuple[bytes, Address]]

TASKS, PACKETS_EACH = 64, 64
SHAPE = Shape(
    "64 tasks",
    ((100, 1),),
    floor_slots=128,
    round_trains=1,
    send_trains=TASKS * PACKETS_EACH,
    peers=TASKS,
)
BUDGET_NS, QUICK_BUDGET_NS = 60_000_000, 15_000_000
ONE_SENDER = "send_packet of one sender"


def shares(scene: Scene) -> list[Packets]:
    """Each task's packets of a turn, which all go to one peer."""
    packets = scene.packets()
    return [packets[task::TASKS] for task in range(TASKS)]


async def send_with_one_sender(scene: Scene) -> None:
    """The library: one sender, and nothing that the tasks would have to agree upon."""
    sender = UdpBatchSender(scene.sock)

    async def send_all(packets: Packets) -> None:
        for packet, address in packets:
            await sender.send_packet(packet, address)

    each = shares(scene)
    for _ in scene.sending_turns():
        async with trio.open_nursery() as nursery:
            for packets in each:
                nursery.start_soon(send_all, packets)


async def send_with_trio_socket(scene: Scene) -> None:
    """`trio.socket`, whose `sendto` lets the others run by itself."""
    sock = trio.socket.from_stdlib_socket(scene.sock)

    async def send_all(packets: Packets) -> None:
        for packet, address in packets:
            await sock.sendto(packet, address)

    each = shares(scene)
    for _ in scene.sending_turns():
        async with trio.open_nursery() as nursery:
            for packets in each:
                nursery.start_soon(send_all, packets)


async def send_with_protocol(scene: Scene) -> None:
    """asyncio, uvloop, aiofastnet."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=scene.sock)

    async def send_all(packets: Packets) -> None:
        for packet, address in packets:
            transport.sendto(packet, address)
            await asyncio.sleep(0)

    each = shares(scene)
    for _ in scene.sending_turns():
        async with asyncio.TaskGroup() as group:
            for packets in each:
                group.create_task(send_all(packets))
    transport.close()


IN_TRIO = {ONE_SENDER: send_with_one_sender, "trio.socket": send_with_trio_socket}


def work(variant: str, budget_ns: int) -> float:
    """In the child: one sitting. CPU nanoseconds a packet."""
    with open_scene(SHAPE, socket.AF_INET, budget_ns) as scene:
        if variant in IN_TRIO:
            run_in_trio(lambda: IN_TRIO[variant](scene))
        else:
            run_on_loop(variant, lambda: send_with_protocol(scene))
        return scene.ns_each


def sit(contender: Contender, variant: str, *, quick: bool) -> float:
    """CPU nanoseconds a packet."""
    return contender.submit(work, variant, QUICK_BUDGET_NS if quick else BUDGET_NS).result()
