# PeerChannel, without a server: what a handler is given, what is dropped, and that all is counted.

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from snaptun_trio import PacketBatch, PacketTrain, _peer
from snaptun_trio._peer import PeerChannel

from .test_control_c import interrupters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from snaptun_trio import Address, ChannelStatistics

PEER: Address = ("192.0.2.1", 50_000)
MOST = 10


@attrs.define
class Route:
    """A server, as far as a peer knows it, that sends nothing."""

    local_address: Address = ("192.0.2.2", 443)
    _most_waiting: int = MOST
    _sender: Any = None
    forgotten: list[PeerChannel] = attrs.field(factory=list)

    def _forget(self, peer: PeerChannel) -> None:
        self.forgotten.append(peer)


class Source:
    """A peer's datagrams, numbered, each of its own content."""

    def __init__(self, channel: PeerChannel) -> None:
        self.channel = channel
        self.sent = 0

    def put(self, *trains: int) -> None:
        """Trains of so many datagrams."""
        made = []
        for count in trains:
            packets = [b"%04d" % number for number in range(self.sent, self.sent + count)]
            made += PacketTrain.pack(packets, PEER)
            self.sent += count
        batch: Any = PacketBatch(made)
        self.channel.put(batch)


def make() -> tuple[PeerChannel, Source, Route]:
    route = Route()
    channel = PeerChannel(route, PEER, 0.0)
    return channel, Source(channel), route


def numbers(batch: PacketBatch) -> list[int]:
    return [int(packet) for packet, _ in batch]


def check(channel: PeerChannel) -> ChannelStatistics:
    seen = channel.statistics()
    assert min(attrs.astuple(seen)[:6]) >= 0
    assert seen.datagrams_received == (
        seen.datagrams_delivered
        + seen.datagrams_waiting
        + seen.datagrams_dropped
        + seen.datagrams_discarded
    )
    return seen


async def test_what_waits_is_bounded_and_the_newest_is_dropped() -> None:
    channel, source, _ = make()
    source.put(4)
    source.put(3, 2)
    source.put(4)  # one of them fits
    source.put(1)
    seen = check(channel)
    assert (seen.datagrams_waiting, seen.datagrams_dropped) == (10, 4)
    found = [numbers(await channel.receive()) for _ in range(3)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7, 8], [9]]
    source.put(1)
    assert numbers(await channel.receive()) == [14]


async def test_a_train_longer_than_the_queue_is_not_dropped_as_a_whole() -> None:
    channel, source, _ = make()
    source.put(40)
    assert numbers(await channel.receive()) == list(range(MOST))
    assert check(channel).datagrams_dropped == 30


async def test_a_part_of_a_train_keeps_what_the_train_says() -> None:
    channel, _, _ = make()
    batch: Any = PacketBatch([PacketTrain(bytes(40), 2, PEER, ecn=1, timestamp_ns=7)])
    channel.put(batch)
    (train,) = (await channel.receive()).trains
    assert train == PacketTrain(bytes(20), 2, PEER, ecn=1, timestamp_ns=7)


async def test_what_receive_packet_left_takes_room() -> None:
    channel, source, _ = make()
    source.put(10)
    assert await channel.receive_packet() == b"0000"
    source.put(5)
    seen = check(channel)
    assert (seen.datagrams_waiting, seen.datagrams_dropped) == (10, 4)
    assert numbers(await channel.receive()) == list(range(1, 10))
    assert numbers(await channel.receive()) == [10]


async def test_who_waits_is_handed_what_comes_and_the_rest_queues(nursery: trio.Nursery) -> None:
    channel, source, _ = make()
    found: list[list[int]] = []

    async def receive() -> None:
        found.append(numbers(await channel.receive()))

    nursery.start_soon(receive)
    await trio.testing.wait_all_tasks_blocked()
    source.put(30)  # nobody else is there for it: it need not fit
    source.put(3)
    seen = check(channel)
    assert (seen.datagrams_waiting, seen.datagrams_dropped) == (30, 3)
    await trio.testing.wait_all_tasks_blocked()
    assert found == [list(range(30))]
    source.put(2)
    assert numbers(await channel.receive()) == [33, 34]


@pytest.mark.parametrize("how", ["receive", "receive_packet"])
async def test_a_second_reader_is_told_so(how: str, nursery: trio.Nursery) -> None:
    channel, source, _ = make()
    nursery.start_soon(channel.receive)
    await trio.testing.wait_all_tasks_blocked()
    for attempt in (channel.receive, channel.receive_packet):
        with pytest.raises(trio.BusyResourceError):
            await attempt()
    source.put(1)  # the first one goes on


@pytest.mark.parametrize("first", ["receive", "receive_packet"])
@pytest.mark.parametrize("second", ["receive", "receive_packet"])
async def test_nor_may_it_while_the_first_is_about_to_return(first: str, second: str) -> None:
    """Two that both took a batch would mix up what is left of them."""
    channel, source, _ = make()
    source.put(3)
    source.put(4)
    busy = 0

    async def receive(how: str) -> None:
        nonlocal busy
        try:
            await getattr(channel, how)()
        except trio.BusyResourceError:
            busy += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive, first)
        nursery.start_soon(receive, second)
    assert busy == 1
    assert check(channel).datagrams_waiting in {4, 6}


async def raises(error: type[Exception], call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(error):
        await call()


@pytest.mark.parametrize("how", ["receive", "receive_packet", "__anext__"])
@pytest.mark.parametrize("happens", ["close", "end"])
async def test_close_and_end_wake_who_waits(how: str, happens: str, nursery: trio.Nursery) -> None:
    channel, source, route = make()
    ended = StopAsyncIteration if how == "__anext__" else trio.EndOfChannel
    error = trio.ClosedResourceError if happens == "close" else ended
    nursery.start_soon(raises, error, getattr(channel, how))
    await trio.testing.wait_all_tasks_blocked()
    getattr(channel, happens)()
    await trio.testing.wait_all_tasks_blocked()
    assert len(route.forgotten) == (happens == "close")
    with pytest.raises(error):
        await getattr(channel, how)()
    assert source.sent == 0


async def test_what_waits_comes_before_the_end() -> None:
    channel, source, _ = make()
    source.put(2)
    source.put(3)
    channel.end()
    assert [numbers(batch) async for batch in channel] == [[0, 1], [2, 3, 4]]
    with pytest.raises(trio.EndOfChannel):
        await channel.receive_packet()


async def test_what_was_handed_to_who_waits_is_discarded_by_a_close(
    nursery: trio.Nursery,
) -> None:
    channel, source, route = make()
    nursery.start_soon(raises, trio.ClosedResourceError, channel.receive)
    await trio.testing.wait_all_tasks_blocked()
    source.put(2)
    source.put(3)
    channel.close()
    channel.close()
    assert route.forgotten == [channel]
    source.put(1)
    seen = check(channel)
    assert (seen.datagrams_discarded, seen.datagrams_waiting) == (6, 0)
    await trio.testing.wait_all_tasks_blocked()
    assert check(channel) == seen


@pytest.mark.parametrize("how", ["receive", "receive_packet"])
@pytest.mark.parametrize("left", [False, True])
async def test_closed_while_a_receive_is_about_to_return(
    how: str, left: bool, nursery: trio.Nursery
) -> None:
    """Nothing is left over, and nothing empty comes out."""
    channel, source, _ = make()
    source.put(3)
    if left:
        await channel.receive_packet()
    found: list[object] = []

    async def receive() -> None:
        try:
            found.append(await getattr(channel, how)())
        except trio.ClosedResourceError:
            found.append(None)

    nursery.start_soon(receive)
    nursery.start_soon(channel.aclose)
    await trio.testing.wait_all_tasks_blocked()
    assert found[0] is None or found[0]
    seen = check(channel)
    assert seen.datagrams_waiting == 0
    for attempt in (channel.receive, channel.receive_packet):
        with pytest.raises(trio.ClosedResourceError):
            await attempt()


@pytest.mark.parametrize("how", ["receive", "receive_packet"])
async def test_a_cancelled_receive_has_received_nothing(how: str) -> None:
    channel, source, _ = make()
    with trio.CancelScope() as scope:
        scope.cancel()
        await getattr(channel, how)()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(getattr(channel, how))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    source.put(3)
    for _ in range(2):
        with trio.CancelScope() as scope:
            scope.cancel()
            await getattr(channel, how)()
        assert scope.cancelled_caught
        assert check(channel).datagrams_delivered == 0
    assert await channel.receive_packet() == b"0000"
    with trio.CancelScope() as scope:  # of what is left as well
        scope.cancel()
        await getattr(channel, how)()
    assert numbers(await channel.receive()) == [1, 2]


async def test_handed_over_and_cancelled_in_one_turn_is_received() -> None:
    channel, source, _ = make()
    found: list[int] = []

    async def receive() -> None:
        found.extend(numbers(await channel.receive()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        source.put(2)
        nursery.cancel_scope.cancel()
    assert found == [0, 1]
    assert check(channel).datagrams_delivered == 2


@pytest.mark.parametrize("how", ["receive", "receive_packet"])
async def test_what_waited_and_was_taken_is_received_though_it_is_cancelled_then(how: str) -> None:
    for _ in range(20):  # whichever of the tasks comes first in its turn
        channel, source, _route = make()
        source.put(1)
        got: list[object] = []
        scope = trio.CancelScope()

        async def take() -> None:
            with scope:  # noqa: B023
                got.append(await getattr(channel, how)())  # noqa: B023

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.lowlevel.checkpoint()
            scope.cancel()
        seen = check(channel)
        assert (seen.datagrams_delivered, seen.datagrams_waiting) in [(1, 0), (0, 1)]
        assert len(got) == seen.datagrams_delivered


@pytest.mark.parametrize("where", ["part_of", "wake"])
async def test_what_there_is_no_memory_to_hand_over_is_in_no_count_of_the_peers(
    where: str, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """The server, which has the batch still, counts it."""

    def no_memory(*_: object) -> NoReturn:
        raise MemoryError

    channel, source, _ = make()
    if where == "wake":
        nursery.start_soon(channel.receive)
        await trio.testing.wait_all_tasks_blocked()
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(_peer, where, no_memory)
        source.put(MOST + 1)
    assert check(channel).datagrams_received == 0
    source.put(2)
    assert check(channel).datagrams_received == 2
    nursery.cancel_scope.cancel()


async def test_every_call_is_a_checkpoint() -> None:
    channel, source, _ = make()
    source.put(3)
    for call in (channel.receive_packet, channel.receive_packet, channel.receive):
        with trio.testing.assert_checkpoints():
            await call()
    source.put(3)
    with trio.testing.assert_checkpoints():
        await channel.receive()
    with trio.testing.assert_checkpoints():
        await channel.aclose()


async def test_only_batches_and_packets_are_sent() -> None:
    channel, _, _ = make()
    wrong: Any
    for wrong in (b"bytes", None, [b"x"]):
        with pytest.raises(TypeError, match="PacketBatch"):
            await channel.send(wrong)
    channel.close()
    with pytest.raises(trio.ClosedResourceError):
        await channel.send(PacketBatch([]))
    with pytest.raises(trio.ClosedResourceError):
        await channel.send_packet(b"x")


STEPS = st.one_of(
    st.lists(st.integers(1, 7), min_size=1, max_size=3),
    st.sampled_from(["receive", "receive_packet", "cancel", "turn", "wait", "end", "close"]),
)


@given(steps=st.lists(STEPS, max_size=40))
def test_whatever_happens_all_is_counted_and_order_is_kept(steps: list[Any]) -> None:
    """What is delivered is in order, once; the law holds after each step."""

    async def main() -> None:
        channel, source, _ = make()
        found: list[int] = []
        ended = False

        async def take(how: str) -> None:
            try:
                got = await getattr(channel, how)()
            except (trio.ClosedResourceError, trio.EndOfChannel, trio.BusyResourceError):
                return
            assert got
            found.extend([int(got)] if isinstance(got, bytes) else numbers(got))

        async with trio.open_nursery() as nursery:
            for step in steps:
                match step:
                    case list():
                        if not ended:  # the server has forgotten it
                            source.put(*step)
                    case "wait":
                        nursery.start_soon(take, "receive_packet")
                        await trio.testing.wait_all_tasks_blocked()
                    case "receive" | "receive_packet":
                        nursery.start_soon(take, step)
                    case "cancel":
                        with trio.CancelScope() as scope:
                            scope.cancel()
                            await take("receive")
                    case "turn":
                        await trio.testing.wait_all_tasks_blocked()
                    case _:
                        ended = True
                        getattr(channel, step)()
                seen = check(channel)
                assert seen.datagrams_received == source.sent
                assert seen.datagrams_waiting <= MOST + 21  # and what was handed over
            await trio.testing.wait_all_tasks_blocked()
            if not channel._closed:
                channel.end()
                while channel.statistics().datagrams_waiting:
                    await take("receive")
            nursery.cancel_scope.cancel()
        seen = check(channel)
        assert len(found) == seen.datagrams_delivered
        assert found == sorted(set(found))
        assert seen.datagrams_waiting == 0

    trio.run(main)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="see test_control_c")
@pytest.mark.parametrize("how", ["receive", "receive_packet", "__anext__"])
@pytest.mark.parametrize("left", [False, True])
def test_f54_control_c_anywhere_in_a_receive_loses_no_datagram(how: str, left: bool) -> None:
    for interrupter in interrupters():
        channel, source, _ = make()
        source.put(3)
        source.put(2)
        found: list[int] = []

        async def take(how: str, channel: PeerChannel = channel, found: list[int] = found) -> None:
            interrupted = sys.gettrace() == interrupter._call  # noqa: B023
            got = await getattr(channel, how)()
            if interrupted:
                sys.settrace(None)  # from here on it is the program's; and not if it is coverage's
            found.extend([int(got)] if isinstance(got, bytes) else numbers(got))

        async def drain(channel: PeerChannel = channel, take: Any = take) -> None:  # noqa: ANN401
            while channel.statistics().datagrams_waiting:
                await take("receive")

        if left:
            trio.run(take, "receive_packet")
        interrupter.run(trio.run, take, how)
        trio.run(drain)
        assert found == [0, 1, 2, 3, 4]
        assert check(channel).datagrams_delivered == 5


def test_f54_control_c_anywhere_in_a_close_still_closes_it() -> None:
    for interrupter in interrupters():
        channel, source, route = make()
        source.put(3)

        async def main(channel: PeerChannel = channel) -> None:
            channel.close()

        interrupter.run(trio.run, main)
        assert check(channel).datagrams_discarded == 3
        assert route.forgotten == [channel]


def _no_memory(*_: object) -> NoReturn:
    raise MemoryError


async def test_what_receive_packet_left_and_there_is_no_memory_to_pack_is_still_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    channel, source, _ = make()
    source.put(3)
    assert await channel.receive_packet() == b"0000"
    with monkeypatch.context() as patch:
        patch.setattr("snaptun_trio._channel.packed_for", _no_memory)
        with pytest.raises(MemoryError):
            await channel.receive()
    assert channel.statistics().datagrams_waiting == 2
    assert list(await channel.receive()) == [(b"0001", PEER), (b"0002", PEER)]


async def test_what_there_is_no_memory_to_take_apart_is_counted_as_discarded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    channel, source, _ = make()
    source.put(3)
    with monkeypatch.context() as patch:
        patch.setattr(PacketBatch, "packets", _no_memory)
        with pytest.raises(MemoryError):
            await channel.receive_packet()
    statistics = channel.statistics()
    assert (statistics.datagrams_discarded, statistics.datagrams_delivered) == (3, 0)
    source.put(1)
    assert await channel.receive_packet() == b"0003"
