# A pump that forwards between a receiver and a sender of ours takes a shorter way than through its
# channel where it can. Whatever way a batch goes, nothing is lost, doubled or overtaken.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from snaptun_trio import (
    Address,
    BatchPump,
    PacketBatch,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import ends, scripted

if TYPE_CHECKING:
    from snaptun_trio import PumpStatistics
    from snaptun_trio._kernel._pieces import OutgoingMessage

PEER: Address = ("127.0.0.1", 1000)
TARGET: Address = ("127.0.0.2", 9)

REFUSED = b""  # which goes alone: its neighbours are refused with nothing that is theirs


def arrivals(batches: int, each: int = 1) -> list[list[PacketTrain]]:
    """What receive calls bring: numbered datagrams, so many in each call."""
    return [
        [PacketTrain(b"%d.%d" % (number, index), 100, PEER) for index in range(each)]
        for number in range(batches)
    ]


def payloads_of(calls: list[list[PacketTrain]]) -> list[bytes]:
    return [packet for call in calls for train in call for packet in train]


def in_flight(statistics: PumpStatistics) -> int:
    """The datagrams that came in and went nowhere yet."""
    gone = statistics.datagrams_sent + statistics.datagrams_failed
    return statistics.datagrams_received - gone - statistics.datagrams_discarded


def make_pump(udp: ends.MakeSocket, *, batch_size: int = 1, capacity: int = 2) -> BatchPump:
    """A pump that forwards everything. With a batch size of 1 each call fills what it offers."""
    return BatchPump(
        UdpBatchReceiver(udp(), batch_size=batch_size),
        UdpBatchSender(udp()),
        handler=lambda batch: batch.to(TARGET),
        capacity=capacity,
    )


async def run_until_idle(pump: BatchPump, kernel: scripted.ScriptedKernel) -> None:
    """Run a pump until everything that was scripted has come through it."""
    kernel.waits.always_writable = True
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        with trio.fail_after(ends.PATIENCE):
            while kernel.receives or in_flight(pump.statistics()):
                kernel.waits.wake()
                await trio.lowlevel.checkpoint()
            await pump.drain()


@pytest.mark.parametrize("batch_size", [1, 64])
async def test_batch_after_batch_is_forwarded(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, batch_size: int
) -> None:
    calls = arrivals(50)
    kernel.receives += calls
    pump = make_pump(udp, batch_size=batch_size)
    await run_until_idle(pump, kernel)
    assert kernel.payloads == payloads_of(calls)
    assert {address for _, address in kernel.sent} == {TARGET}
    assert pump.statistics().batches_sent == 50
    assert in_flight(pump.statistics()) == 0


@given(
    steps=st.lists(st.sampled_from([1, 2, 3, -errno.EAGAIN]), max_size=40),
    batch_size=st.sampled_from([1, 3, 64]),
    capacity=st.integers(1, 3),
)
def test_a_socket_that_is_full_now_and_then_changes_no_order_and_loses_nothing(
    udp: ends.MakeSocket, steps: list[int], batch_size: int, capacity: int
) -> None:
    calls = arrivals(20, each=3)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kernel = scripted.install(monkeypatch)
        kernel.receives += calls
        kernel.sends += steps
        pump = make_pump(udp, batch_size=batch_size, capacity=capacity)
        trio.run(run_until_idle, pump, kernel)
    assert kernel.payloads == payloads_of(calls)
    statistics = pump.statistics()
    assert statistics.datagrams_sent == statistics.datagrams_received == 60
    assert statistics.batches_sent == 20


async def test_refusals_are_counted_on_the_shorter_way_as_well(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    def refuse(first: OutgoingMessage) -> int:
        data = first.payload
        return -errno.EACCES if data == REFUSED else 1

    calls = arrivals(9, each=2)
    for call in calls[::3]:
        call.insert(1, PacketTrain(REFUSED, 0, PEER))
    kernel.receives += calls
    kernel.sends += [refuse] * 100
    pump = make_pump(udp, batch_size=3)
    await run_until_idle(pump, kernel)
    good = [packet for packet in payloads_of(calls) if packet != REFUSED]
    assert kernel.payloads == good
    statistics = pump.statistics()
    assert statistics.failures == {errno.EACCES: 3}
    assert statistics.datagrams_sent == 18
    assert statistics.batches_sent == 9
    assert in_flight(statistics) == 0


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_what_is_under_way_when_the_pump_ends_is_accounted_for(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, how: str
) -> None:
    kernel.receives += arrivals(10)
    kernel.sends += [1] + [-errno.EAGAIN] * 20
    pump = make_pump(udp, capacity=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        await trio.testing.wait_all_tasks_blocked()
        if how == "close":
            pump.close()
        else:
            nursery.cancel_scope.cancel()
    statistics = pump.statistics()
    assert statistics.batches_sent < 10
    assert in_flight(statistics) == 0
    assert statistics.sender is not None
    assert len(kernel.sent) == statistics.sender.datagrams_sent


@pytest.mark.parametrize("end", ["receiver", "sender"])
async def test_an_end_that_is_closed_between_two_batches_is_noticed(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, end: str
) -> None:
    receiver, sender = UdpBatchReceiver(udp(), batch_size=1), UdpBatchSender(udp())
    seen: list[PacketBatch] = []

    def handler(batch: PacketBatch) -> PacketBatch:
        seen.append(batch)
        if len(seen) == 3:
            (receiver if end == "receiver" else sender).close()
        return batch.to(TARGET)

    kernel.receives += arrivals(10)
    pump = BatchPump(receiver, sender, handler=handler)
    with trio.fail_after(ends.PATIENCE):
        if end == "receiver":
            await pump.run()
            assert kernel.payloads == [b"0.0", b"1.0", b"2.0"]
        else:
            with pytest.raises(trio.ClosedResourceError):
                await pump.run()
            assert kernel.payloads == [b"0.0", b"1.0"]
    assert len(seen) == 3
    assert in_flight(pump.statistics()) == 0


async def test_an_error_of_the_handler_on_the_shorter_way_ends_the_pump(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    seen: list[PacketBatch] = []

    def handler(batch: PacketBatch) -> PacketBatch | None:
        seen.append(batch)
        if len(seen) == 4:
            raise LookupError("the handler's")
        return None if len(seen) == 2 else batch.to(TARGET)

    kernel.receives += arrivals(10)
    pump = BatchPump(UdpBatchReceiver(udp(), batch_size=1), UdpBatchSender(udp()), handler=handler)
    with trio.fail_after(ends.PATIENCE), pytest.raises(LookupError, match="the handler's"):
        await pump.run()
    assert kernel.payloads == [b"0.0", b"2.0"]
    assert pump.statistics().batches_discarded == 2
    assert in_flight(pump.statistics()) == 0


async def test_other_tasks_run_while_batches_keep_coming(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream without end is cut into turns: the pump never keeps the run loop to itself."""
    endless = PacketTrain(b"x", 1, PEER)
    turns = 0

    def keep_coming(io: scripted.ScriptedIO, *arguments: int) -> object:
        kernel.receives.append([endless])
        return real(io, *arguments)

    real = scripted.ScriptedIO.receive
    monkeypatch.setattr(scripted.ScriptedIO, "receive", keep_coming)
    pump = make_pump(udp)
    with trio.fail_after(ends.PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(pump.run)
            while turns < 5:
                await trio.lowlevel.checkpoint()
                turns += 1
            pump.close()
    assert pump.statistics().batches_received > 0
    assert in_flight(pump.statistics()) == 0
