# check_batch_channel: what anything that sends or receives batches has to hold.
#
# trio has such checks for streams and none for channels. No clock and no timeout: a channel that
# hangs hangs the check, and whoever runs it bounds it.

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import trio
import trio.testing

from .._batch import PacketBatch
from .._train import PacketTrain

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Awaitable, Callable

    Sender: TypeAlias = trio.abc.SendChannel[PacketBatch]
    Receiver: TypeAlias = trio.abc.ReceiveChannel[PacketBatch]

PACKETS = [b"one", b"", b"three", bytes(1200), bytes(1200), b"a tail", b""]


async def check_batch_channel(
    make_pair: Callable[
        [],
        contextlib.AbstractAsyncContextManager[
            tuple[trio.abc.SendChannel[PacketBatch], trio.abc.ReceiveChannel[PacketBatch]]
        ],
    ],
) -> None:
    """Check that a sending and a receiving channel of batches behave as trio's users expect.

    What is sent arrives once and in order, datagrams of no length included; every call is a
    checkpoint; a cancelled one has done nothing; each of several receiving tasks gets datagrams or
    `trio.BusyResourceError`; a closed end raises `trio.ClosedResourceError`, also where a task
    waits; closing twice, or in a cancelled scope, closes.

    Args:
      make_pair: called several times for a fresh pair, as an async context manager. What the one
        end sends to `None`, the connected peer, arrives at the other and is not lost.

    Raises:
      AssertionError: one of these does not hold.
    """
    for check in (_order, _checkpoints, _cancelling, _several_tasks, _closing):
        async with make_pair() as (sender, receiver):
            await check(sender, receiver)


def _batch(*packets: bytes) -> PacketBatch:
    return PacketBatch(PacketTrain.pack(packets, None))


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


async def _collect(receiver: Receiver, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        batch = await receiver.receive()
        _expect(len(batch) > 0, "a received batch is not empty")
        found += [packet for packet, _ in batch]
    return found  # noqa: ASYNC910


async def _raises(error: type[Exception], call: Callable[[], Awaitable[object]]) -> None:
    try:
        await call()
    except error:
        return  # noqa: ASYNC910
    raise AssertionError(f"{call} did not raise {error.__name__}")


async def _order(sender: Sender, receiver: Receiver) -> None:
    for packets in (PACKETS, [], PACKETS[::-1]):
        await sender.send(_batch(*packets))
    found = await _collect(receiver, 2 * len(PACKETS))
    _expect(found == PACKETS + PACKETS[::-1], "what was sent arrives once and in order")


async def _checkpoints(sender: Sender, receiver: Receiver) -> None:
    for packets in ([b"x"], []):
        with trio.testing.assert_checkpoints():
            await sender.send(_batch(*packets))
    with trio.testing.assert_checkpoints():
        await receiver.receive()
    for end in (sender, receiver):
        with trio.testing.assert_checkpoints():
            await end.aclose()


async def _cancelling(sender: Sender, receiver: Receiver) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.receive)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="a check of cancelled receives")
    await sender.send(_batch(b"first"))
    for call in (receiver.receive, lambda: sender.send(_batch(b"cancelled"))):
        with trio.CancelScope() as scope:
            scope.cancel(reason="a check of calls in a cancelled scope")
            await call()
        _expect(scope.cancelled_caught, f"{call} is a checkpoint")
    await sender.send(_batch(b"last"))
    found = await _collect(receiver, 2)
    _expect(found == [b"first", b"last"], "a cancelled call has done nothing")


async def _several_tasks(sender: Sender, receiver: Receiver) -> None:
    found: list[bytes] = []

    async def receive() -> None:  # noqa: ASYNC910
        try:
            found.extend([packet for packet, _ in await receiver.receive()])
        except trio.BusyResourceError:
            found.append(b"busy")

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        for packet in [b"one", b"two"][len(found) :]:
            await sender.send(_batch(packet))
            await trio.testing.wait_all_tasks_blocked()
    expected = [b"busy", b"two"] if b"busy" in found else [b"one", b"two"]
    _expect(
        sorted(found) == expected, "each of several tasks gets a batch, or hears that it is busy"
    )


async def _closing(sender: Sender, receiver: Receiver) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_raises, trio.ClosedResourceError, receiver.receive)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel(reason="a check of closing in a cancelled scope")
            await receiver.aclose()
    await receiver.aclose()
    await _raises(trio.ClosedResourceError, receiver.receive)
    await sender.aclose()
    await sender.aclose()
    for packets in ([b"x"], []):
        batch = _batch(*packets)
        await _raises(trio.ClosedResourceError, lambda: sender.send(batch))  # noqa: B023
