# trio's rules, for receiver and sender alike: every async call is a checkpoint, a second task is
# turned away, and being cancelled neither loses nor doubles a datagram. Closing has a file of its
# own.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import (
    Address,
    PacketBatch,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import ends, scripted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HERE: Address = ("127.0.0.1", 9)
ONE = PacketBatch([PacketTrain(b"x", 1, HERE)])
EMPTY = PacketBatch([])


@pytest.fixture
def receiver(kernel: scripted.ScriptedKernel, udp: ends.MakeSocket) -> UdpBatchReceiver:
    return UdpBatchReceiver(udp())


@pytest.fixture
def sender(kernel: scripted.ScriptedKernel, udp: ends.MakeSocket) -> UdpBatchSender:
    return UdpBatchSender(udp())


# -- checkpoints


@pytest.mark.core
async def test_every_async_call_is_a_checkpoint(pair: ends.Pair) -> None:
    def send_one() -> None:
        pair.sender.try_queue_packet(b"x", pair.target)
        pair.sender.try_flush_best_effort()
        ends.wait_until_readable(pair.receiver.socket)

    batch = ends.batch_of([b"x"], pair.target)
    with trio.testing.assert_checkpoints():
        await pair.sender.flush()
    pair.sender.try_queue_packet(b"x", pair.target)
    with trio.testing.assert_checkpoints():
        await pair.sender.flush()
    with trio.testing.assert_checkpoints():
        await pair.sender.send(EMPTY)
    pair.sender.try_queue_packet(b"x", pair.target)
    with trio.testing.assert_checkpoints():
        await pair.sender.send(EMPTY)
    with trio.testing.assert_checkpoints():
        await pair.sender.send(batch)
    ends.collect(pair.receiver, 3)
    send_one()
    with trio.testing.assert_checkpoints():
        await pair.receiver.receive()
    send_one()
    with trio.testing.assert_checkpoints():
        await pair.receiver.recv_batch(lambda packet, address: None)
    with trio.testing.assert_checkpoints():
        await pair.receiver.aclose()
    with trio.testing.assert_checkpoints():
        await pair.sender.aclose()


async def test_a_receive_of_what_a_handler_left_over_is_a_checkpoint(
    receiver: UdpBatchReceiver, kernel: scripted.ScriptedKernel
) -> None:
    def fail(packet: bytes, address: Address | None) -> None:
        raise ArithmeticError

    kernel.receives.append([PacketTrain(b"ab", 1, HERE)])
    with pytest.raises(ArithmeticError):
        await receiver.recv_batch(fail)
    with trio.testing.assert_checkpoints():
        assert len(await receiver.receive()) == 1


async def test_a_receive_that_had_to_wait_is_a_checkpoint(
    receiver: UdpBatchReceiver,
    kernel: scripted.ScriptedKernel,
    nursery: trio.Nursery,
) -> None:
    async def receive() -> None:
        with trio.testing.assert_checkpoints():
            await receiver.receive()

    nursery.start_soon(receive)
    await trio.testing.wait_all_tasks_blocked()
    kernel.receives.append([PacketTrain(b"x", 1, HERE)])
    kernel.waits.wake()


async def test_leaving_an_async_with_block_is_a_checkpoint_and_closes(
    receiver: UdpBatchReceiver, sender: UdpBatchSender
) -> None:
    for end in (receiver, sender):
        async with end:
            pass
        with trio.testing.assert_checkpoints():
            await end.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await receiver.receive()
    with pytest.raises(trio.ClosedResourceError):
        await sender.flush()


def test_plain_functions_are_no_checkpoints(pair: ends.Pair) -> None:
    async def main() -> None:
        with trio.testing.assert_no_checkpoints():
            pair.sender.try_queue_packet(b"x", pair.target)
            pair.sender.try_flush_best_effort()
            pair.sender.send_nowait(ONE.to(pair.target))
            ends.collect(pair.receiver, 2)
            pair.receiver.close()
            pair.sender.close()

    trio.run(main)


@pytest.mark.core
@pytest.mark.parametrize("call", ["receive", "recv_batch", "flush", "send", "send nothing"])
async def test_a_call_in_a_cancelled_scope_does_nothing(pair: ends.Pair, call: str) -> None:
    pair.sender.try_queue_packet(b"there", pair.target)
    pair.sender.try_flush_best_effort()
    ends.wait_until_readable(pair.receiver.socket)
    pair.sender.try_queue_packet(b"queued", pair.target)
    called: list[bytes] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        match call:
            case "receive":
                await pair.receiver.receive()
            case "recv_batch":
                await pair.receiver.recv_batch(lambda packet, address: called.append(packet))
            case "flush":
                await pair.sender.flush()
            case "send":
                await pair.sender.send(ONE.to(pair.target))
            case _:
                await pair.sender.send(EMPTY)
    assert scope.cancelled_caught
    assert not called
    assert pair.sender.statistics().datagrams_queued == 1
    ends.expect_only(pair, [b"there"])


# -- a second task


@pytest.mark.core
async def test_a_second_reader_is_turned_away_and_the_first_is_not_disturbed(
    receiver: UdpBatchReceiver,
    kernel: scripted.ScriptedKernel,
) -> None:
    received: list[PacketBatch] = []

    async def receive() -> None:
        received.append(await receiver.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        calls: list[Callable[[], Awaitable[object]]] = [
            receiver.receive,
            lambda: receiver.recv_batch(lambda packet, address: None),
        ]
        for call in calls:
            with pytest.raises(trio.BusyResourceError, match="another task"):
                await call()
        kernel.receives.append([PacketTrain(b"y", 1, HERE)])
        kernel.waits.wake()
    assert list(received[0]) == [(b"y", HERE)]
    kernel.receives.append([PacketTrain(b"z", 1, HERE)])
    assert list(await receiver.receive()) == [(b"z", HERE)]


# -- cancellation


@pytest.mark.core
async def test_a_cancelled_receive_loses_nothing(pair: ends.Pair) -> None:
    """Many receives, each cancelled at some moment while datagrams come in."""
    rounds = 300
    packets = ends.numbered(rounds, 20)
    found: list[bytes] = []

    async def receive() -> None:
        found.extend([packet for packet, _ in await pair.receiver.receive()])

    for number, packet in enumerate(packets):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for _ in range(number % 4):
                await trio.lowlevel.checkpoint()
            pair.sender.try_queue_packet(packet, pair.target)
            pair.sender.try_flush_best_effort()
            for _ in range(number % 3):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    if len(found) < rounds:
        found += ends.payloads(pair.receiver, rounds - len(found))
    assert found == packets


async def test_a_receive_that_is_cancelled_after_the_system_call_still_delivers(
    receiver: UdpBatchReceiver, kernel: scripted.ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = None
    real = scripted.ScriptedIO.receive
    with trio.CancelScope() as scope:

        def receive_and_cancel(io: scripted.ScriptedIO, *arguments: int) -> object:
            scope.cancel()
            return real(io, *arguments)

        monkeypatch.setattr(scripted.ScriptedIO, "receive", receive_and_cancel)
        kernel.receives.append([PacketTrain(b"x", 1, HERE)])
        batch = await receiver.receive()
    assert batch is not None
    assert list(batch) == [(b"x", HERE)]


@pytest.mark.core
@pytest.mark.parametrize("gso", [True, False])
async def test_a_flush_cancelled_half_way_leaves_exactly_the_unsent_rest(
    kernel: scripted.ScriptedKernel,
    udp: ends.MakeSocket,
    gso: bool,
) -> None:
    sender = UdpBatchSender(udp(), gso=gso)
    packets = [*ends.numbered(20, 100), *ends.numbered(20, 50, start=20)]
    for packet in packets:
        sender.try_queue_packet(packet, HERE)
    kernel.sends += [1, -errno.EAGAIN, -errno.EAGAIN]
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.flush)
            await trio.testing.wait_all_tasks_blocked()
            assert kernel.waits.waiting == 1
            scope.cancel()
    sent = len(kernel.sent)
    assert 0 < sent < 40
    assert sender.statistics().datagrams_queued == 40 - sent
    assert sender.statistics().datagrams_sent == sent
    await sender.flush()
    assert kernel.payloads == packets


@pytest.mark.parametrize("cancelled", ["before a full queue", "half-way"])
async def test_a_cancelled_send_is_accepted_when_there_was_room_in_the_queue(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, cancelled: str
) -> None:
    full = cancelled == "before a full queue"
    sender = UdpBatchSender(udp(), batch_size=1 if full else 2, gso=False)
    batch = PacketBatch([PacketTrain(b"1", 1, ("127.0.0.2", 9)), PacketTrain(b"2", 1, HERE)])
    sender.try_queue_packet(b"0", HERE)
    kernel.sends += [-errno.EAGAIN] if full else [1, 1, -errno.EAGAIN]
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send, batch)
            await trio.testing.wait_all_tasks_blocked()
            assert kernel.waits.waiting == 1
            scope.cancel()
    assert sender.statistics().datagrams_queued == 1
    await sender.flush()
    everything = [b"0", b"2", b"1"]  # what is for one peer is brought together
    assert kernel.payloads == (everything[:1] if full else everything)
