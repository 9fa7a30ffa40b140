# The library as a contender, through its public interface and with its defaults.

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import trio
from trio.testing import wait_all_tasks_blocked

from snaptun_trio import (
    BatchPump,
    PacketBatch,
    PacketTrain,
    QueueFullError,
    UdpBatchReceiver,
    UdpBatchSender,
    open_batch_pump,
)

from ._traffic import payload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ._scene import Scene
    from ._traffic import Load

NAME = "snaptun_trio"


async def receive(scene: Scene) -> None:
    """Batches are received and counted, no datagram is looked at."""
    receiver = UdpBatchReceiver(scene.sock)
    for turn in scene.receiving_turns():
        got = 0
        while got < turn.datagrams:
            got += len(await receiver.receive())


async def look(scene: Scene) -> None:
    """Every datagram becomes a `bytes` and comes with its address."""
    receiver = UdpBatchReceiver(scene.sock)
    for turn in scene.receiving_turns():
        got = 0
        while got < turn.datagrams:
            for _packet, _address in await receiver.receive():
                got += 1


async def send(scene: Scene) -> None:
    """A batch is made of trains that stand ready, and sent."""
    sender = UdpBatchSender(scene.sock)
    pattern = scene.shape.pattern(scene.shape.send_trains)
    trains = [
        PacketTrain(payload(size * segments), size, address)
        for (size, segments), address in zip(pattern, cycle(scene.targets), strict=False)
    ]
    for _ in scene.sending_turns():
        await sender.send(PacketBatch(trains))


async def pump(scene: Scene) -> None:
    """A pump whose handler sends every batch on to the sink."""
    sink = scene.sink_address
    async with open_batch_pump(scene.sock, handler=lambda batch: batch.to(sink)) as running:
        await drain_through(running, scene.forwarding_turns())


async def answer(scene: Scene) -> None:
    """A pump whose handler sends every batch back to where it came from."""
    async with open_batch_pump(scene.sock, handler=lambda batch: batch) as running:
        await drain_through(running, scene.answering_turns())


async def echo(scene: Scene) -> None:
    """The application stands in the middle and answers datagram by datagram."""
    async with open_batch_pump(scene.sock) as running, trio.open_nursery() as nursery:
        nursery.start_soon(answer_each, running)
        await drain_through(running, scene.answering_turns())
        nursery.cancel_scope.cancel()


async def answer_each(running: BatchPump) -> None:
    """Queue every datagram for the peer it came from, and flush whenever the queue is full."""
    sender = sender_of(running)
    async for batch in running.incoming:
        for packet, address in batch:
            try:
                sender.try_queue_packet(packet, address)
            except QueueFullError:
                await sender.flush()
                sender.try_queue_packet(packet, address)
        await sender.flush()


def sender_of(running: BatchPump) -> UdpBatchSender:
    """The sender of a pump that `open_batch_pump` made."""
    sender = running.sender
    assert isinstance(sender, UdpBatchSender)
    return sender


async def drain_through(running: BatchPump, turns: Iterator[Load]) -> None:
    """A turn is over when nothing in the program has anything left to do."""
    expected = 0
    for turn in turns:
        await wait_all_tasks_blocked()
        expected += turn.datagrams
    sent = sender_of(running).statistics().datagrams_sent
    if sent != expected:
        raise RuntimeError(f"the pump sent {sent} datagrams of {expected}")


def in_trio(work: Callable[[Scene], Awaitable[None]]) -> Callable[[Scene], None]:
    """The work as a plain function that runs trio."""
    return lambda scene: trio.run(work, scene)


WORKS = {work.__name__: in_trio(work) for work in (receive, look, send, pump, answer, echo)}
