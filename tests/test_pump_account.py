# The pump's account: whatever happens, every datagram that went into a pump is sent, refused,
# discarded, taken by the application, or still waits, and is counted once.

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from snaptun_trio import (
    Address,
    BatchPump,
    PacketBatch,
    PacketTrain,
    PumpStatistics,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import ends, scripted
from .test_pump import Sink, Source, batch, names

if TYPE_CHECKING:
    from snaptun_trio._kernel._pieces import OutgoingMessage

TARGET: Address = ("127.0.0.2", 9)
DEAD: Address = ("127.0.0.3", 9)


def check_law(statistics: PumpStatistics) -> None:
    """Holds at any time, and no part of it is ever less than nothing."""
    parts = (
        statistics.datagrams_sent,
        statistics.datagrams_failed,
        statistics.datagrams_discarded,
        statistics.datagrams_waiting,
        statistics.datagrams_taken,
    )
    assert min(parts) >= 0
    assert statistics.datagrams_received + statistics.datagrams_added == sum(parts)
    assert statistics.datagrams_failed == sum(statistics.failures.values())


def numbered(count: int, address: Address = TARGET) -> list[PacketTrain]:
    """Datagrams that make no trains: each is longer than the one before."""
    return [PacketTrain(bytes(number + 1), number + 1, address) for number in range(count)]


def forwarder(udp: ends.MakeSocket) -> BatchPump:
    return BatchPump(UdpBatchReceiver(udp()), UdpBatchSender(udp()), handler=lambda one: one)


async def until_idle(pump: BatchPump, kernel: scripted.ScriptedKernel) -> PumpStatistics:
    """Run a pump until all that was scripted has gone through it, the law holding all the while."""
    kernel.waits.always_writable = True
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        with trio.fail_after(ends.PATIENCE):
            while kernel.receives or pump.statistics().datagrams_waiting:
                check_law(pump.statistics())
                kernel.waits.wake()
                await trio.lowlevel.checkpoint()
            await pump.drain()
    check_law(pump.statistics())
    return pump.statistics()


# -- a socket that is full, and refusals


async def test_a_socket_that_is_full_after_a_part_and_then_refuses_the_rest(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    kernel.receives.append(numbered(6))
    kernel.sends += [2, -errno.EAGAIN, *[-errno.EACCES] * 8]
    statistics = await until_idle(forwarder(udp), kernel)
    assert (statistics.datagrams_received, statistics.datagrams_sent) == (6, 2)
    assert statistics.failures == {errno.EACCES: 4}
    assert statistics.datagrams_discarded == 0


async def test_what_the_program_queues_in_the_sender_is_not_the_pumps(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    """Nor are its refusals, though the pump's flush meets them."""

    def refuse(first: OutgoingMessage) -> int:
        return -errno.EACCES if first.address == DEAD else 1

    kernel.receives.append(numbered(3))
    kernel.sends += [refuse] * 100
    pump = forwarder(udp)
    for train in numbered(12, DEAD):
        pump.sender.try_queue_train(train)
    statistics = await until_idle(pump, kernel)
    assert (statistics.datagrams_received, statistics.datagrams_sent) == (3, 3)
    assert statistics.datagrams_failed == 0
    assert statistics.sender is not None
    assert statistics.sender.datagrams_failed == 12


@pytest.mark.parametrize("end", ["close", "cancel"])
async def test_what_the_full_socket_did_not_take_is_discarded_when_the_pump_ends(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, end: str
) -> None:
    """It is out of the borrowed sender as well: nobody sends it later."""
    kernel.receives.append(numbered(6))
    kernel.sends += [2, *[-errno.EAGAIN] * 3]
    pump = forwarder(udp)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        await trio.testing.wait_all_tasks_blocked()
        assert pump.statistics().datagrams_waiting == 4
        check_law(pump.statistics())
        if end == "close":
            pump.close()
        else:
            nursery.cancel_scope.cancel()
    statistics = pump.statistics()
    check_law(statistics)
    assert (statistics.datagrams_sent, statistics.datagrams_discarded) == (2, 4)
    assert (statistics.batches_sent, statistics.batches_discarded) == (0, 1)
    assert pump.sender.is_empty
    assert pump.sender.statistics().datagrams_discarded == 4


async def test_a_channel_of_others_that_names_more_refusals_than_it_was_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Sink()
    sink.refuse = {b"bad": errno.EACCES}
    pump = BatchPump(Source(batch(b"bad"), batch(b"good")), sink, handler=lambda one: one)
    await pump.run()
    check_law(pump.statistics())
    assert (pump.statistics().datagrams_failed, pump.statistics().datagrams_sent) == (1, 1)


# -- what a handler answers with


@pytest.mark.parametrize("answer", [None, PacketBatch(())])
async def test_an_answer_of_nothing_discards(answer: PacketBatch | None) -> None:
    pump = BatchPump(Source(batch(*[b"x"] * 5)), Sink(), handler=lambda one: answer)
    await pump.run()
    statistics = pump.statistics()
    check_law(statistics)
    assert (statistics.datagrams_received, statistics.datagrams_discarded) == (5, 5)
    assert (statistics.batches_discarded, statistics.batches_sent) == (1, 0)


@pytest.mark.parametrize("count", [1, 4, 5, 7])
async def test_an_answer_of_another_length_adds_up(count: int) -> None:
    sink = Sink()
    answer = batch(*[b"answer"] * count)
    pump = BatchPump(Source(batch(*[b"x"] * 5)), sink, handler=lambda one: answer)
    await pump.run()
    statistics = pump.statistics()
    check_law(statistics)
    assert names(sink.taken) == [b"answer"] * count
    assert statistics.datagrams_sent == count
    assert statistics.datagrams_discarded == max(0, 5 - count)
    assert statistics.datagrams_added == max(0, count - 5)


@pytest.mark.parametrize("answer", [5, b"abc", [PacketTrain(b"x", 1, TARGET)], (), 0])
async def test_an_answer_that_is_no_batch_is_named(answer: Any) -> None:  # noqa: ANN401
    pump = BatchPump(Source(batch(b"a", b"b")), Sink(), handler=lambda one: answer)
    with pytest.raises(TypeError) as info:
        await pump.run()
    assert "a handler returns a PacketBatch or None" in str(info.value)
    assert repr(answer)[:20] in str(info.value)
    check_law(pump.statistics())
    assert pump.statistics().datagrams_discarded == 2


async def test_an_async_handler_is_refused_when_the_pump_is_made() -> None:
    async def handler(one: PacketBatch) -> PacketBatch:
        await trio.lowlevel.checkpoint()
        return one

    with pytest.raises(TypeError, match="async"):
        BatchPump(Source(), Sink(), handler=handler)  # type: ignore[arg-type]


async def test_a_handler_that_turns_out_to_be_async_is_named() -> None:
    async def handler(one: PacketBatch) -> PacketBatch:
        await trio.lowlevel.checkpoint()
        return one

    hidden: Any = lambda one: handler(one)  # noqa: E731
    pump = BatchPump(Source(batch(b"a")), Sink(), handler=hidden)
    with pytest.raises(TypeError, match="async"):
        await pump.run()
    check_law(pump.statistics())
    assert pump.statistics().datagrams_discarded == 1


# -- the application in the middle


@pytest.mark.parametrize("clones", [0, 2])
async def test_what_waits_in_incoming_when_it_is_closed_is_counted(clones: int) -> None:
    source = Source(*[batch(b"%d" % number) for number in range(8)], ends=False)
    pump = BatchPump(source, Sink(), capacity=5)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        await trio.testing.wait_all_tasks_blocked()
        assert pump.statistics().batches_incoming == 5
        assert pump.statistics().datagrams_waiting == 6, "and one more waits to be put in"
        others = [pump.incoming.clone() for _ in range(clones)]
        assert names([await pump.incoming.receive()]) == [b"0"]
        pump.incoming.close()
        if others:
            assert pump.statistics().datagrams_discarded == 0
            for other in others:
                other.close()
        await trio.testing.wait_all_tasks_blocked()
        pump.outgoing.close()
    statistics = pump.statistics()
    check_law(statistics)
    assert statistics.datagrams_taken == 1
    assert statistics.datagrams_discarded == statistics.datagrams_received - 1 >= 5
    assert statistics.datagrams_waiting == 0


async def test_closing_incoming_twice_counts_once() -> None:
    pump = BatchPump(Source(batch(b"a"), ends=False), Sink())
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        await trio.testing.wait_all_tasks_blocked()
        with pump.incoming:
            pass
        await pump.incoming.aclose()
        assert pump.statistics().datagrams_discarded == 1
        with pytest.raises(trio.ClosedResourceError):
            pump.incoming.receive_nowait()
        with pytest.raises(trio.ClosedResourceError):
            pump.incoming.clone()
        pump.close()
    check_law(pump.statistics())


async def test_a_receive_that_is_cancelled_takes_nothing_from_incoming() -> None:
    pump = BatchPump(Source(ends=False), Sink())
    with trio.CancelScope() as scope:
        scope.cancel()
        await pump.incoming.receive()
    assert scope.cancelled_caught
    assert pump.statistics().datagrams_taken == 0


async def test_what_the_application_sends_is_added() -> None:
    sink = Sink()
    pump = BatchPump(Source(batch(b"a", b"b")), sink)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        with pump.outgoing:
            async for one in pump.incoming:
                check_law(pump.statistics())
                await pump.outgoing.send(one)
                await pump.outgoing.send(batch(b"c"))
        await pump.drain()
    statistics = pump.statistics()
    check_law(statistics)
    assert (statistics.datagrams_taken, statistics.datagrams_added) == (2, 3)
    assert statistics.datagrams_sent == 3


# -- any life of a pump


_steps = st.one_of(
    st.integers(1, 5),
    st.sampled_from([-errno.EAGAIN, -errno.EACCES, -errno.EMSGSIZE, -errno.ECONNREFUSED]),
)


@given(
    calls=st.lists(st.integers(1, 6), max_size=8),
    steps=st.lists(_steps, max_size=40),
    answers=st.lists(st.sampled_from(["all", "none", "nothing", "less", "more"]), max_size=8),
    capacity=st.integers(1, 3),
    batch_size=st.sampled_from([1, 3, 64]),
    queued=st.integers(0, 3),
    rounds=st.integers(0, 30),
)
def test_any_life_of_a_forwarding_pump_adds_up(
    udp: ends.MakeSocket,
    calls: list[int],
    steps: list[int],
    answers: list[str],
    capacity: int,
    batch_size: int,
    queued: int,
    rounds: int,
) -> None:
    """Cut off after any number of rounds, with the socket full, refusing, or neither."""
    script = iter(answers)

    def handler(one: PacketBatch) -> PacketBatch | None:
        match next(script, "all"):
            case "none":
                return None
            case "nothing":
                return PacketBatch(())
            case "less":
                return PacketBatch(one.trains[1:])
            case "more":
                return PacketBatch([*one.trains, *one.trains])
            case _:
                return one

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(pump.run)
                for number in range(rounds):
                    if number < queued:
                        pump.sender.try_queue_packet(b"the program's own", DEAD)
                    kernel.waits.wake()
                    await trio.lowlevel.checkpoint()
                    check_law(pump.statistics())
                scope.cancel()

    with pytest.MonkeyPatch.context() as monkeypatch:
        kernel = scripted.install(monkeypatch)
        kernel.receives += [numbered(count) for count in calls]
        kernel.sends += steps
        pump = BatchPump(
            UdpBatchReceiver(udp(), batch_size=batch_size),
            UdpBatchSender(udp()),
            handler=handler,
            capacity=capacity,
        )
        trio.run(main)
    statistics = pump.statistics()
    check_law(statistics)
    assert statistics.datagrams_waiting == 0
    sent = [payload for payload, address in kernel.sent if address == TARGET]
    assert statistics.datagrams_sent == len(sent)
    assert statistics.sender is not None
    assert statistics.sender.datagrams_sent == len(kernel.sent)


@given(
    actions=st.lists(
        st.sampled_from(["put", "take", "send", "wait", "shut", "open", "close", "clone"]),
        max_size=40,
    ),
    capacity=st.integers(1, 3),
    end=st.sampled_from(["drain", "close", "cancel"]),
)
def test_any_life_of_a_pump_with_the_application_in_the_middle_adds_up(
    actions: list[str], capacity: int, end: str
) -> None:
    source, sink = Source(ends=False), Sink()
    pump = BatchPump(source, sink, capacity=capacity)
    taken = sent = 0

    async def act(action: str) -> None:
        nonlocal taken, sent
        match action:
            case "put":
                source.put(batch(b"a", b"b"))
            case "take":
                taken += len(pump.incoming.receive_nowait())
            case "send":
                pump.outgoing.send_nowait(batch(b"c"))
                sent += 1
            case "wait":
                await trio.testing.wait_all_tasks_blocked()
            case "shut" if sink.gate.is_set():  # or who waits at the old one would wait for ever
                sink.gate = trio.Event()
            case "open":
                sink.gate.set()
            case "close":
                pump.incoming.close()
            case "clone":
                clones.append(pump.incoming.clone())

    clones: list[Any] = []
    gone = (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError)

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(pump.run)
                for action in actions:
                    with contextlib.suppress(*gone):
                        await act(action)
                    check_law(pump.statistics())
                if end == "drain":
                    sink.gate.set()
                    await pump.drain()
                elif end == "close":
                    pump.close()
                else:
                    scope.cancel()

    trio.run(main)
    statistics = pump.statistics()
    check_law(statistics)
    assert statistics.datagrams_taken == taken
    assert statistics.datagrams_added == sent
    assert statistics.datagrams_sent == len(names(sink.taken))
    waiting = 0
    for channel in (pump.incoming, *clones):
        with contextlib.suppress(*gone):
            while True:
                waiting += len(channel.receive_nowait())
    check_law(pump.statistics())
    assert waiting == statistics.datagrams_waiting
