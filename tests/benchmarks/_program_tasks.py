# 64 tasks that each send single packets, to a peer each, through one socket.
#
# A task sends a packet and lets the others run, again and again. With the library the tasks queue,
# and one more task flushes what they queued since it last came round.

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, TypeAlias

import trio

from snaptun_trio import QueueFullError, UdpBatchSender

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
QUEUEING = "queue and a flushing task"


def shares(scene: Scene) -> list[Packets]:
    """Each task's packets of a turn, which all go to one peer."""
    packets = scene.packets()
    return [packets[task::TASKS] for task in range(TASKS)]


class Outlet:
    """What the tasks share: the queue, and the task that flushes it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sender = UdpBatchSender(sock)
        self._waiting_for_room = trio.lowlevel.ParkingLot()
        self._something = trio.Event()

    async def send_all(self, packets: Packets) -> None:
        """One task: queue each packet, and let the others run after it."""
        for packet, address in packets:
            while True:
                try:
                    self._sender.try_queue_packet(packet, address)
                    break
                except QueueFullError:
                    await self._waiting_for_room.park()
            self._something.set()
            await trio.lowlevel.checkpoint()

    async def flush(self) -> None:
        """The other task: send what is there, whenever there is something."""
        while True:
            await self._something.wait()
            self._something = trio.Event()
            await self._sender.flush()
            self._waiting_for_room.unpark_all()

    async def finish(self) -> None:
        """Send what the flushing task has not come to."""
        if not self._sender.is_empty:
            await self._sender.flush()


async def send_through_a_queue(scene: Scene) -> None:
    """The library."""
    outlet = Outlet(scene.sock)
    async with trio.open_nursery() as flushing:
        flushing.start_soon(outlet.flush)
        each = shares(scene)
        for _ in scene.sending_turns():
            async with trio.open_nursery() as nursery:
                for packets in each:
                    nursery.start_soon(outlet.send_all, packets)
            await outlet.finish()
        flushing.cancel_scope.cancel()


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


IN_TRIO = {QUEUEING: send_through_a_queue, "trio.socket": send_with_trio_socket}


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
