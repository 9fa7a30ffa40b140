# Memory channels, and the checks for any channel of batches: of snaptun_trio.testing.

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from snaptun_trio import (
    BatchPump,
    ChannelStatistics,
    PacketBatch,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
    UdpChannel,
)
from snaptun_trio.testing import (
    MemoryChannel,
    check_batch_channel,
    impair,
    memory_channel_pair,
)

from . import ends, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from snaptun_trio import Address

Pair = tuple[trio.abc.SendChannel[PacketBatch], trio.abc.ReceiveChannel[PacketBatch]]
PEER: Address = ("192.0.2.9", 9)


def payloads(batch: PacketBatch) -> list[bytes]:
    return [packet for packet, _ in batch]


@contextlib.asynccontextmanager
async def in_memory() -> AsyncIterator[Pair]:
    yield memory_channel_pair()


@contextlib.asynccontextmanager
async def impaired() -> AsyncIterator[Pair]:
    one, other = memory_channel_pair()
    yield impair(one), other


@contextlib.asynccontextmanager
async def impaired_receiver() -> AsyncIterator[Pair]:
    one, other = memory_channel_pair()
    yield one, impair(other)


@contextlib.asynccontextmanager
async def on_loopback() -> AsyncIterator[Pair]:
    with ends.bound_socket() as outgoing, ends.bound_socket() as incoming:
        outgoing.connect(incoming.getsockname())
        yield UdpBatchSender(outgoing), UdpBatchReceiver(incoming)


@pytest.mark.core
@pytest.mark.parametrize("make", [in_memory, impaired, impaired_receiver])
async def test_channels_in_memory_conform(
    make: Callable[[], contextlib.AbstractAsyncContextManager[Pair]],
) -> None:
    await check_batch_channel(make)


@contextlib.asynccontextmanager
async def with_a_server(*, towards: str) -> AsyncIterator[Pair]:
    async with serving.both_ends() as (client, peer):
        yield (client, peer) if towards == "the server" else (peer, client)


@pytest.mark.core
async def test_receiver_and_sender_conform(backend: str) -> None:
    await check_batch_channel(on_loopback)


@pytest.mark.core
@pytest.mark.parametrize("towards", ["the server", "the client"])
async def test_the_channels_of_server_and_client_conform(backend: str, towards: str) -> None:
    await check_batch_channel(functools.partial(with_a_server, towards=towards))


class Wrong(trio.abc.Channel[PacketBatch]):
    """An end of a pair, with one mistake."""

    def __init__(self, end: MemoryChannel, mistake: str) -> None:
        self.end, self.mistake = end, mistake
        self.closed = False

    async def send(self, value: PacketBatch) -> None:
        if self.mistake == "sends after close" and self.closed:
            await trio.lowlevel.checkpoint()
            return
        if self.mistake == "reverses":
            value = PacketBatch(value.trains[::-1])
        if self.mistake == "sends although cancelled":
            self.end._post(value)
            await trio.lowlevel.checkpoint()
            return
        if self.mistake == "no checkpoint for nothing" and not value:
            return  # noqa: ASYNC910
        if self.mistake == "loses what is empty":
            value = PacketBatch([train for train in value.trains if train.nbytes])
        await self.end.send(value)

    async def receive(self) -> PacketBatch[Address]:
        if self.mistake == "takes although cancelled":
            with trio.CancelScope(shield=True):
                await self.end.receive()
        batch = await self.end.receive()
        if self.mistake == "hands out what is empty":
            return PacketBatch([])
        return batch

    async def aclose(self) -> None:
        if self.mistake == "closes late":
            await trio.lowlevel.checkpoint()
        if not (self.mistake == "does not wake" and self.end.statistics().datagrams_sent == 0):
            self.end.close()
        self.closed = True
        if self.mistake != "no checkpoint in aclose":
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "mistake",
    [
        "reverses",
        "loses what is empty",
        "sends although cancelled",
        "no checkpoint for nothing",
        "sends after close",
        "takes although cancelled",
        "hands out what is empty",
        "does not wake",
        "closes late",
        "no checkpoint in aclose",
        "none",
    ],
)
async def test_a_channel_with_a_mistake_does_not_conform(
    mistake: str, autojump_clock: trio.testing.MockClock
) -> None:
    @contextlib.asynccontextmanager
    async def make() -> AsyncIterator[Pair]:
        one, other = memory_channel_pair()
        yield Wrong(one, mistake), Wrong(other, mistake)

    found: list[BaseException] = []
    try:
        with trio.fail_after(1):  # what hangs is a finding as well
            await check_batch_channel(make)
    except Exception as error:
        found.append(error)
    assert any(map(contains_a_finding, found)) == (mistake != "none"), found


def contains_a_finding(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(contains_a_finding, error.exceptions))
    return isinstance(error, AssertionError | trio.TooSlowError)


async def test_what_arrives_is_as_from_a_socket() -> None:
    one, other = memory_channel_pair(addresses=(PEER, ("2001:db8::1", 443, 0, 0)))
    trains = PacketTrain.pack([b"aa", b"bb", b"c"], None)
    await one.send(PacketBatch([*trains, PacketTrain(b"dd", 2, ("2001:db8::1", 443), ecn=1)]))
    batch = await other.receive()
    assert batch.trains == (PacketTrain(b"aabbc", 2, PEER), PacketTrain(b"dd", 2, PEER, ecn=1))
    assert (other.address, other.local_address) == (PEER, one.address)
    await other.send_packet(b"answer")
    await other.send_packet(b"another")
    assert await one.receive_packet() == b"answer"
    assert list(await one.receive()) == [(b"another", one.address)]


async def test_what_has_no_room_is_dropped_and_counted() -> None:
    one, other = memory_channel_pair(capacity=2)
    await one.send(ends.batch_of([b"a", b"b", b"c"], None))
    assert other.statistics().datagrams_dropped == 1
    assert payloads(await other.receive()) == [b"a", b"b"]
    await one.send(ends.batch_of([b"d"], None))
    other.close()
    await one.send(ends.batch_of([b"e"], None))
    assert one.statistics().datagrams_sent == 5
    assert other.statistics() == ChannelStatistics(
        datagrams_received=5,
        datagrams_delivered=2,
        datagrams_waiting=0,
        datagrams_dropped=1,
        datagrams_discarded=2,
        datagrams_sent=0,
    )


async def test_what_receive_packet_left_takes_room_as_well() -> None:
    one, other = memory_channel_pair(capacity=3)
    await one.send(ends.batch_of([b"a", b"b", b"c"], None))
    assert await other.receive_packet() == b"a"
    await one.send(ends.batch_of([b"d", b"e"], None))
    assert other.statistics().datagrams_waiting == 3
    assert other.statistics().datagrams_dropped == 1
    assert payloads(await other.receive()) == [b"b", b"c"]
    assert payloads(await other.receive()) == [b"d"]


async def test_all_goes_to_the_other_end_whomever_it_was_for() -> None:
    one, other = memory_channel_pair()
    elsewhere = ends.batch_of([b"one", b"two"], PEER)
    await one.send(PacketBatch([*elsewhere.trains, PacketTrain(b"here", 4, None)]))
    assert list(await other.receive()) == [
        (p, one.local_address) for p in (b"one", b"two", b"here")
    ]


async def test_a_handler_of_a_server_runs_on_it() -> None:
    async def handler(channel: UdpChannel) -> None:
        async for batch in channel:
            await channel.send(batch)

    one, other = memory_channel_pair()
    assert other.mtu == 1452
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handler, impair(other))
        await one.send_packet(b"hello")
        assert await one.receive_packet() == b"hello"
        one.close()


async def test_a_closed_end_is_the_end_of_the_other() -> None:
    one, other = memory_channel_pair()
    await one.send_packet(b"last")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.aclose)
        assert [payloads(batch) async for batch in other] == [[b"last"]]
    async with trio.open_nursery() as nursery:
        one, other = memory_channel_pair()
        nursery.start_soon(expect_end, other)
        await trio.testing.wait_all_tasks_blocked()
        one.close()


async def expect_end(channel: MemoryChannel) -> None:
    with pytest.raises(trio.EndOfChannel):
        await channel.receive()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"capacity": 0}, ValueError),
        ({"addresses": (PEER, None)}, TypeError),
        ({"addresses": (PEER, ("192.0.2.1", 70_000))}, ValueError),
    ],
)
def test_wrong_arguments_of_a_pair(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        memory_channel_pair(**arguments)


@pytest.mark.parametrize("wrong", [b"bytes", None])
async def test_only_batches_are_sent(wrong: Any) -> None:  # noqa: ANN401
    one, _ = memory_channel_pair()
    for channel in (one, impair(one), impair(one, delay=1)):
        with pytest.raises(TypeError, match="PacketBatch"):
            await channel.send(wrong)


async def test_a_pump_runs_between_two_networks(nursery: trio.Nursery) -> None:
    client, front = memory_channel_pair()
    back, target = memory_channel_pair()
    pump = BatchPump(front, back, handler=lambda batch: batch.to(back.address))
    await nursery.start(pump.run)
    await client.send(ends.batch_of([b"one", b"two"], front.local_address))
    assert [await target.receive_packet() for _ in range(2)] == [b"one", b"two"]
    client.close()  # the pump ends
