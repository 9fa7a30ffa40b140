# What a pump's receiving task holds on to, and what closing its receiver does to it.

from __future__ import annotations

import pytest
import trio
import trio.testing

from snaptun_trio import (
    Address,
    BatchPump,
    PacketBatch,
    PacketBufPool,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
    open_batch_pump,
)

from . import ends, scripted

PEER: Address = ("127.0.0.1", 9)


@pytest.mark.usefixtures("linux_backend")
async def test_no_batch_is_kept_while_the_next_is_received(udp: ends.MakeSocket) -> None:
    """Two slabs in turn would not fit the cache that one fits into."""
    sink, source, pool = udp(), udp(), PacketBufPool()
    target = ends.address_of(sink)
    sock = udp()
    for _ in range(20):
        source.sendto(bytes(6000), ends.address_of(sock))
    options = {"batch_size": 1, "pool": pool, "gro": False}
    async with open_batch_pump(sock, handler=lambda batch: batch.to(target), **options) as pump:  # type: ignore[arg-type]
        with trio.fail_after(ends.PATIENCE):
            while pump.statistics().datagrams_sent < 20:
                await trio.lowlevel.checkpoint()
        assert pump.statistics().batches_received == 20
        assert pool.statistics().most_in_use == 1


@pytest.mark.parametrize("handler", [None, lambda batch: batch])
async def test_closing_the_receiver_ends_a_pump_that_waits_for_it(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, handler: object, nursery: trio.Nursery
) -> None:
    pump = BatchPump(UdpBatchReceiver(udp()), UdpBatchSender(udp()), handler=handler)  # type: ignore[arg-type]
    await nursery.start(pump.run)
    while not kernel.waits.waiting:
        await trio.lowlevel.checkpoint()
    pump.receiver.close()
    if handler is None:
        with pytest.raises(trio.EndOfChannel):
            await pump.incoming.receive()
        pump.outgoing.close()
    await pump.drain()


async def test_closing_the_receiver_takes_nothing_from_a_pump_whose_program_is_behind(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    """The receiving task waits for room in the channel, with a batch in its hands."""
    kernel.receives += [[PacketTrain(b"%d" % number, 1, PEER)] for number in range(3)]
    receiver = UdpBatchReceiver(udp(), batch_size=1)
    pump = BatchPump(receiver, UdpBatchSender(udp()), capacity=2)
    await nursery.start(pump.run)
    await trio.testing.wait_all_tasks_blocked()
    receiver.close()
    await trio.testing.wait_all_tasks_blocked()
    batches: list[PacketBatch] = [batch async for batch in pump.incoming]
    assert [packet for batch in batches for packet, _ in batch] == [b"0", b"1", b"2"]
    assert pump.statistics().datagrams_discarded == 0
    pump.outgoing.close()


async def test_a_receiver_that_a_pump_has_used_is_woken_by_close_as_before(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    receiver = UdpBatchReceiver(udp())
    pump = BatchPump(receiver, UdpBatchSender(udp()), handler=lambda batch: batch)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        await trio.testing.wait_all_tasks_blocked()
        pump.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, receiver)
        while not kernel.waits.waiting:
            await trio.lowlevel.checkpoint()
        receiver.close()


async def test_closing_a_receiver_wakes_a_program_that_waits_while_the_pump_does_not(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    """The pump's task waits for room; the program, which cannot know that, waits for datagrams."""
    kernel.receives += [[PacketTrain(b"%d" % number, 1, PEER)] for number in range(2)]
    receiver = UdpBatchReceiver(udp(), batch_size=1)
    pump = BatchPump(receiver, UdpBatchSender(udp()), capacity=1)
    await nursery.start(pump.run)
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(ends.PATIENCE):
        async with trio.open_nursery() as program:
            program.start_soon(expect_closed, receiver)
            while not kernel.waits.waiting:
                await trio.lowlevel.checkpoint()
            receiver.close()
    batches: list[PacketBatch] = [batch async for batch in pump.incoming]
    assert [packet for batch in batches for packet, _ in batch] == [b"0", b"1"]
    assert pump.statistics().datagrams_discarded == 0
    pump.outgoing.close()


async def test_of_two_pumps_on_one_receiver_closing_it_ends_both(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    """One waits for datagrams, the other, which began later, for room in its channel."""
    receiver = UdpBatchReceiver(udp(), batch_size=1)
    one, two = (BatchPump(receiver, UdpBatchSender(udp()), capacity=1) for _ in range(2))
    with trio.fail_after(ends.PATIENCE):
        async with trio.open_nursery() as nursery:
            kernel.receives += [[PacketTrain(b"%d" % number, 1, PEER)] for number in range(4)]
            await nursery.start(one.run)
            await trio.testing.wait_all_tasks_blocked()
            await nursery.start(two.run)
            await trio.testing.wait_all_tasks_blocked()
            for pump in (one, two):
                assert pump.statistics().datagrams_waiting == 2
            for _ in range(2):
                await one.incoming.receive()
            while not kernel.waits.waiting:
                await trio.lowlevel.checkpoint()
            receiver.close()
            for pump in (one, two):
                pump.outgoing.close()
                async for _ in pump.incoming:
                    pass
    assert one.statistics().datagrams_discarded == two.statistics().datagrams_discarded == 0


async def expect_closed(receiver: UdpBatchReceiver) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await receiver.receive()


def test_a_call_is_offered_what_brings_about_so_many_datagrams(
    udp: ends.MakeSocket, linux_backend: None
) -> None:
    """Small ones in long trains: the objects that a program looks at take up more than they do."""
    receiver = UdpBatchReceiver(udp(), batch_size=1024)
    sender = UdpBatchSender(udp())
    if not (sender.gso and receiver.statistics().gro):
        pytest.skip("this kernel has no trains")
    target = ends.address_of(receiver.socket)
    for _ in range(40):
        sender.send_nowait(PacketBatch([PacketTrain(bytes(64), 1, target)]))
    sizes = [len(batch) for batch in ends.collect_batches(receiver, 40 * 64)]
    assert sum(sizes) == 40 * 64
    assert max(sizes[1:]) <= 2048
