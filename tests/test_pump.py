# BatchPump: the application in the middle, a handler, backpressure, draining, closing, counting.
#
# Its two ends are memory channels where no socket matters; what owns a socket is in test_open_pump.

from __future__ import annotations

import errno
import math
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from snaptun_trio import (
    Address,
    BatchPump,
    PacketBatch,
    PacketTrain,
    SendBatchError,
    SendFailure,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import ends

if TYPE_CHECKING:
    from snaptun_trio import PumpStatistics

HERE: Address = ("127.0.0.1", 9)


def batch(*packets: bytes) -> PacketBatch:
    return PacketBatch([PacketTrain(packet, max(len(packet), 1), HERE) for packet in packets])


def names(batches: list[PacketBatch]) -> list[bytes]:
    """The payloads of all batches."""
    return [packet for one in batches for packet, _ in one]


class Sink(trio.abc.SendChannel[PacketBatch]):
    """Takes batches, and refuses or delays what it is told to.

    Attributes:
      taken: the batches that were sent.
      refuse: for a batch's first packet, the errno to refuse it with.
      gate: while it is cleared, sends wait.
    """

    def __init__(self) -> None:
        self.taken: list[PacketBatch] = []
        self.refuse: dict[bytes, int] = {}
        self.gate = trio.Event()
        self.gate.set()

    async def send(self, value: PacketBatch) -> None:
        await self.gate.wait()
        await trio.lowlevel.checkpoint()
        number = self.refuse.get(names([value])[0])
        if number is not None:
            error = OSError(number, os.strerror(number))
            raise SendBatchError([SendFailure(value.trains[0], error)])
        self.taken.append(value)

    async def aclose(self) -> None:
        raise AssertionError("a pump does not close what it borrowed")


class Source(trio.abc.ReceiveChannel[PacketBatch]):
    """Gives the batches that are put into it, then ends or waits."""

    def __init__(self, *batches: PacketBatch, ends: bool = True) -> None:
        self._send, self._receive = trio.open_memory_channel[PacketBatch](math.inf)
        for one in batches:
            self.put(one)
        if ends:
            self.end()

    def put(self, one: PacketBatch) -> None:
        self._send.send_nowait(one)

    def end(self) -> None:
        self._send.close()

    async def receive(self) -> PacketBatch:
        return await self._receive.receive()

    async def aclose(self) -> None:
        raise AssertionError("a pump does not close what it borrowed")


def check_law(statistics: PumpStatistics, *, in_the_middle: int = 0) -> None:
    """Every datagram that came in through a handler's pump went somewhere."""
    assert statistics.datagrams_received == (
        statistics.datagrams_sent
        + statistics.datagrams_failed
        + statistics.datagrams_discarded
        + in_the_middle
    )


# -- the application in the middle


@pytest.mark.core
async def test_the_application_stands_in_the_middle(nursery: trio.Nursery) -> None:
    sink = Sink()
    pump = BatchPump(Source(batch(b"a"), batch(b"b")), sink)
    await nursery.start(pump.run)
    with pump.outgoing:
        async for one in pump.incoming:
            await pump.outgoing.send(one.to(("127.0.0.2", 9)))
    await pump.drain()
    assert names(sink.taken) == [b"a", b"b"]
    assert sink.taken[0].trains[0].address == ("127.0.0.2", 9)
    statistics = pump.statistics()
    assert (statistics.batches_received, statistics.batches_sent) == (2, 2)
    assert (statistics.receiver, statistics.sender) == (None, None)


async def test_a_pump_that_only_sends_goes_on_when_receiving_has_ended(
    nursery: trio.Nursery,
) -> None:
    sink = Sink()
    pump = BatchPump(Source(), sink)
    await nursery.start(pump.run)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.EndOfChannel):
        pump.incoming.receive_nowait()
    await pump.outgoing.send(batch(b"late"))
    await pump.drain()
    assert names(sink.taken) == [b"late"]


async def test_closing_incoming_stops_receiving_and_closing_outgoing_ends_the_pump() -> None:
    source, sink = Source(batch(b"a"), ends=False), Sink()
    pump = BatchPump(source, sink)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        pump.incoming.close()
        source.put(batch(b"b"))
        await trio.testing.wait_all_tasks_blocked()
        await pump.outgoing.send(batch(b"c"))
        pump.outgoing.close()
    assert names(sink.taken) == [b"c"]
    statistics = pump.statistics()
    assert statistics.batches_discarded >= 1


def test_a_pump_with_a_handler_has_no_middle() -> None:
    pump = BatchPump(Source(), Sink(), handler=lambda one: one)
    for end in ("incoming", "outgoing"):
        with pytest.raises(RuntimeError, match="neither incoming nor outgoing"):
            getattr(pump, end)
    assert isinstance(pump.receiver, Source)
    assert isinstance(pump.sender, Sink)


# -- a handler


@pytest.mark.core
async def test_a_handler_forwards_answers_or_drops() -> None:
    sink = Sink()

    def handler(one: PacketBatch) -> PacketBatch | None:
        return None if names([one]) == [b"drop"] else one.to(("127.0.0.2", 9))

    source = Source(batch(b"a"), batch(b"drop"), batch(b"b", b"c"))
    pump = BatchPump(source, sink, handler=handler)
    with trio.fail_after(ends.PATIENCE):
        await pump.run()
    assert names(sink.taken) == [b"a", b"b", b"c"]
    statistics = pump.statistics()
    assert (statistics.batches_discarded, statistics.datagrams_discarded) == (1, 1)
    assert (statistics.batches_sent, statistics.datagrams_sent) == (2, 3)
    check_law(statistics)


@pytest.mark.core
async def test_an_exception_of_the_handler_ends_the_pump_and_is_not_wrapped() -> None:
    def handler(one: PacketBatch) -> PacketBatch:
        raise LookupError("the handler's")

    pump = BatchPump(Source(batch(b"a"), batch(b"b"), ends=False), Sink(), handler=handler)
    with trio.fail_after(ends.PATIENCE), pytest.raises(LookupError, match="the handler's") as info:
        await pump.run()
    assert info.value.__context__ is None
    check_law(pump.statistics())


async def test_two_errors_at_once_are_a_group() -> None:
    class Failing(Source):
        async def receive(self) -> PacketBatch:
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("second")

    class FailingSink(Sink):
        async def send(self, value: PacketBatch) -> None:
            await trio.lowlevel.checkpoint()
            raise LookupError("first")

    pump = BatchPump(Failing(ends=False), FailingSink())
    pump.outgoing.send_nowait(batch(b"x"))
    with pytest.RaisesGroup(KeyError, LookupError):
        await pump.run()


# -- starting, and running once


async def test_a_pump_runs_once(nursery: trio.Nursery) -> None:
    pump = BatchPump(Source(), Sink())
    await nursery.start(pump.run)
    with pytest.raises(RuntimeError, match="once"):
        await pump.run()
    await pump.drain()
    with pytest.raises(RuntimeError, match="once"):
        await pump.run()


async def test_what_is_put_into_outgoing_before_the_start_is_sent(nursery: trio.Nursery) -> None:
    sink = Sink()
    pump = BatchPump(Source(ends=False), sink)
    pump.outgoing.send_nowait(batch(b"early"))
    await nursery.start(pump.run)
    await pump.drain()
    assert names(sink.taken) == [b"early"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"receiver": None}, TypeError),
        ({"sender": "sender"}, TypeError),
        ({"handler": 5}, TypeError),
        ({"capacity": 1.5}, TypeError),
        ({"capacity": 0}, ValueError),
    ],
)
async def test_wrong_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    right: dict[str, Any] = {"receiver": Source(), "sender": Sink()}
    with pytest.raises(error):
        BatchPump(**(right | arguments))


# -- draining and closing


async def test_drain_sends_what_is_in_outgoing_and_stops_receiving(nursery: trio.Nursery) -> None:
    source, sink = Source(ends=False), Sink()
    pump = BatchPump(source, sink, capacity=5)
    await nursery.start(pump.run)
    sink.gate = trio.Event()
    for number in range(5):
        await pump.outgoing.send(batch(b"%d" % number))
    async with trio.open_nursery() as draining:
        draining.start_soon(pump.drain)
        await trio.testing.wait_all_tasks_blocked()
        source.put(batch(b"too late"))
        sink.gate.set()
    assert names(sink.taken) == [b"0", b"1", b"2", b"3", b"4"]
    assert pump.statistics().batches_received == 0
    with pytest.raises(trio.ClosedResourceError):
        await pump.outgoing.send(batch(b"after"))


async def test_drain_of_a_forwarding_pump_sends_what_the_handler_returned(
    nursery: trio.Nursery,
) -> None:
    source, sink = Source(ends=False), Sink()
    pump = BatchPump(source, sink, handler=lambda one: one, capacity=3)
    await nursery.start(pump.run)
    sink.gate = trio.Event()
    for number in range(3):
        source.put(batch(b"%d" % number))
    await trio.testing.wait_all_tasks_blocked()
    sink.gate.set()
    await pump.drain()
    assert names(sink.taken) == [b"0", b"1", b"2"]
    check_law(pump.statistics())


async def test_a_drain_that_is_cancelled_goes_on(nursery: trio.Nursery) -> None:
    sink = Sink()
    pump = BatchPump(Source(ends=False), sink)
    await nursery.start(pump.run)
    sink.gate = trio.Event()
    await pump.outgoing.send(batch(b"x"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await pump.drain()
    assert scope.cancelled_caught
    sink.gate.set()
    await pump.drain()
    assert names(sink.taken) == [b"x"]


async def test_drain_of_a_pump_that_never_ran_returns() -> None:
    pump = BatchPump(Source(), Sink())
    pump.outgoing.send_nowait(batch(b"x"))
    with trio.fail_after(ends.PATIENCE), trio.testing.assert_checkpoints():
        await pump.drain()
    assert pump.statistics().batches_discarded == 1
    with pytest.raises(trio.ClosedResourceError):
        await pump.run()


async def test_close_ends_a_pump_at_once_and_counts_what_it_discards() -> None:
    source, sink = Source(batch(b"a"), batch(b"b"), batch(b"c"), ends=False), Sink()
    sink.gate = trio.Event()
    pump = BatchPump(source, sink, handler=lambda one: one, capacity=1)
    with trio.fail_after(ends.PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(pump.run)
            await trio.testing.wait_all_tasks_blocked()
            with trio.testing.assert_checkpoints():
                await pump.aclose()
            pump.close()
    assert sink.taken == []
    statistics = pump.statistics()
    assert statistics.batches_received == statistics.batches_discarded == 3
    check_law(statistics)


async def test_a_cancelled_pump_counts_what_it_discards() -> None:
    source, sink = Source(batch(b"a"), batch(b"b"), batch(b"c"), ends=False), Sink()
    sink.gate = trio.Event()
    pump = BatchPump(source, sink, handler=lambda one: one, capacity=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    statistics = pump.statistics()
    assert statistics.batches_discarded == statistics.batches_received
    check_law(statistics)


async def test_the_end_of_the_receiver_is_no_error(udp: ends.MakeSocket) -> None:
    receiver = UdpBatchReceiver(udp())
    pump = BatchPump(receiver, Sink(), handler=lambda one: one)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        receiver.close()
    assert pump.statistics().receiver == receiver.statistics()


async def test_a_closed_sender_is_an_error(udp: ends.MakeSocket) -> None:
    sender = UdpBatchSender(udp())
    sender.close()
    pump = BatchPump(Source(batch(b"x"), ends=False), sender, handler=lambda one: one)
    with trio.fail_after(ends.PATIENCE), pytest.raises(trio.ClosedResourceError):
        await pump.run()
    assert pump.statistics().sender == sender.statistics()
    check_law(pump.statistics())


# -- refusals


async def test_what_the_sender_refuses_is_counted_and_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Sink()
    sink.refuse = {b"bad": errno.EACCES, b"far": errno.ENETUNREACH}
    source = Source(batch(b"a"), batch(b"bad", b"x"), batch(b"far"), batch(b"bad"), batch(b"b"))
    pump = BatchPump(source, sink, handler=lambda one: one)
    await pump.run()
    assert names(sink.taken) == [b"a", b"b"]
    statistics = pump.statistics()
    assert statistics.datagrams_failed == 3
    assert statistics.failures == {errno.EACCES: 2, errno.ENETUNREACH: 1}
    assert statistics.batches_sent == 5
    check_law(statistics)
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 2
    assert "Permission denied" in logged[0]
    (peer,) = {train.address for train in batch(b"bad").trains}
    assert str(peer) in logged[0], "an operator can look for the target"


async def test_a_refusal_is_logged_once_a_minute_for_each_errno(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    sink, source = Sink(), Source(ends=False)
    sink.refuse = {b"bad": errno.EACCES}
    pump = BatchPump(source, sink, handler=lambda one: one)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        for _ in range(10):
            source.put(batch(b"bad"))
            await trio.sleep(13)  # seconds of a clock that does not wait
        await pump.drain()
    assert len(caplog.records) == 2, "one at the start and one after 65 seconds"
    assert pump.statistics().datagrams_failed == 10
