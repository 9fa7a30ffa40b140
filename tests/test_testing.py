# snaptun_trio.testing: what programs are tested with keeps its own promises.

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from snaptun_trio import (
    BatchPump,
    PacketBatch,
    PacketTrain,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
    open_batch_pump,
)
from snaptun_trio.testing import (
    ImpairedDatagram,
    MemoryChannel,
    ScriptedSocket,
    check_batch_channel,
    impair,
    memory_channel_pair,
)

from . import ends

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from snaptun_trio import Address

Pair = tuple[trio.abc.SendChannel[PacketBatch], trio.abc.ReceiveChannel[PacketBatch]]
PEER: Address = ("192.0.2.9", 9)


def payloads(batch: PacketBatch) -> list[bytes]:
    return [packet for packet, _ in batch]


# -- the conformance checks


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


@pytest.mark.core
async def test_receiver_and_sender_conform(backend: str) -> None:
    await check_batch_channel(on_loopback)


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


# -- memory channels


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
    assert one.statistics().datagrams_dropped == 1
    assert payloads(await other.receive()) == [b"a", b"b"]
    await one.send(ends.batch_of([b"d"], None))
    other.close()
    await one.send(ends.batch_of([b"e"], None))
    sent, received = one.statistics(), other.statistics()
    assert sent.datagrams_sent == 5
    assert sent.datagrams_dropped == 2
    assert (received.datagrams_received, received.datagrams_discarded) == (2, 1)
    assert received.datagrams_waiting == 0


async def test_nobody_else_can_be_reached() -> None:
    one, other = memory_channel_pair()
    elsewhere = ends.batch_of([b"lost", b"too"], PEER)
    with pytest.raises(SendBatchError) as info:
        await one.send(PacketBatch([*elsewhere.trains, PacketTrain(b"here", 4, None)]))
    assert [failure.error.errno for failure in info.value.failures] == [errno.ENETUNREACH]
    assert await other.receive_packet() == b"here"
    assert one.statistics().datagrams_failed == 2


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


# -- impairment


BAD: dict[str, Any] = {"loss": 0.2, "duplicate": 0.2, "corrupt": 0.2, "reorder": 0.3, "delay": 0.5}
NUMBERED = ends.numbered(300, 60)


async def through(seed: int, sizes: list[int], **bad: float) -> tuple[list[bytes], Any]:
    """What arrives of the numbered datagrams, sent in batches of these sizes, and the log."""
    one, other = memory_channel_pair()
    lossy = impair(one, seed=seed, **bad)
    left = list(NUMBERED)
    for size in sizes:
        await lossy.send(ends.batch_of(left[:size], None))
        del left[:size]
    await lossy.send(ends.batch_of(left, None))
    await lossy.aclose()
    return [packet async for batch in other for packet in payloads(batch)], lossy


async def test_the_log_tells_exactly_what_arrives(autojump_clock: trio.testing.MockClock) -> None:
    found, lossy = await through(7, [10, 1, 80], **BAD)
    at_once: list[bytes] = []
    late: list[bytes] = []
    for number, one in enumerate(lossy.log):
        assert (one.number, one.packet, one.address) == (number, NUMBERED[number], None)
        packet = bytearray(one.packet)
        if one.flipped_bit is not None:
            packet[one.flipped_bit // 8] ^= 1 << one.flipped_bit % 8
        (at_once if one.reordered else late).extend([bytes(packet)] * one.copies)
    assert found == at_once + late
    counts = lossy.counts
    assert counts["submitted"] == 300
    assert counts["passed_on"] == len(found)
    assert counts["passed_on"] == counts["submitted"] - counts["lost"] + counts["duplicated"]
    assert all(counts[kind] > 20 for kind in ("lost", "duplicated", "corrupted", "reordered"))
    assert trio.current_time() == 0.5


async def test_a_seed_does_the_same_again_however_it_is_batched(
    autojump_clock: trio.testing.MockClock,
) -> None:
    once, first = await through(3, [], **BAD)
    again, second = await through(3, [1, 2, 3, 100], **BAD)
    assert (once, first.log) == (again, second.log)
    other, _ = await through(4, [], **BAD)
    assert other != once


async def test_one_probability_changes_nothing_of_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    _, few = await through(3, [], loss=0.1)
    _, more = await through(3, [], loss=0.1, duplicate=0.5, corrupt=0.5)
    assert [one.copies == 0 for one in few.log] == [one.copies == 0 for one in more.log]


async def test_delays_are_kept_to_and_bear_a_cancellation(
    autojump_clock: trio.testing.MockClock,
) -> None:
    one, other = memory_channel_pair()
    slow = impair(one, delay=0.25)
    await slow.send_packet(b"first")
    await trio.sleep(0.1)
    await slow.send_packet(b"second")
    with trio.move_on_after(0.05) as scope:
        await other.receive()
    assert scope.cancelled_caught
    assert other.statistics().datagrams_waiting == 2
    for packet, when in ((b"first", 0.25), (b"second", 0.35)):
        assert await other.receive_packet() == packet
        assert trio.current_time() == pytest.approx(when)


async def test_an_earlier_datagram_wakes_who_waits_for_a_later_one(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    one, other = memory_channel_pair()
    await impair(one, delay=10).send_packet(b"late")
    nursery.start_soon(one.send_packet, b"early")
    assert await other.receive_packet() == b"early"
    assert trio.current_time() == 0


async def test_a_whole_channel_keeps_what_it_has() -> None:
    one, other = memory_channel_pair()
    wrapped = impair(one, loss=1)
    assert (wrapped.address, wrapped.local_address) == (one.address, one.local_address)
    await other.send_packet(b"hello")
    assert await wrapped.receive_packet() == b"hello"
    await wrapped.send_packet(b"lost")
    assert wrapped.statistics().datagrams_sent == 0
    (lost,) = wrapped.log
    assert attrs.asdict(lost) == {
        "number": 0,
        "packet": b"lost",
        "address": None,
        "copies": 0,
        "flipped_bit": None,
        "reordered": False,
    }
    for name in ("nonsense", "_inbox"):
        with pytest.raises(AttributeError, match=name):
            getattr(wrapped, name)


async def test_a_cancelled_send_has_decided_nothing() -> None:
    one, _ = memory_channel_pair()
    lossy = impair(one, loss=0.5)
    with trio.CancelScope() as scope:
        scope.cancel()
        await lossy.send_packet(b"x")
    assert scope.cancelled_caught
    assert lossy.log == []


async def test_what_is_sent_on_a_socket_is_impaired_as_well(
    backend: str, udp: ends.MakeSocket
) -> None:
    with ends.make_pair(udp(), udp()) as pair:
        lossy = impair(pair.sender, loss=0.3, duplicate=0.3, seed=1)
        await lossy.send(ends.batch_of(NUMBERED, pair.target))
        expected = [one.packet for one in lossy.log for _ in range(one.copies)]
        assert ends.payloads(pair.receiver, len(expected)) == expected
        assert {one.address for one in lossy.log} == {pair.target}


async def test_an_empty_datagram_has_no_bit_to_turn() -> None:
    one, other = memory_channel_pair()
    lossy = impair(one, corrupt=1)
    await lossy.send_packet(b"")
    await lossy.send_packet(b"\0")
    assert await other.receive_packet() == b""
    assert (await other.receive_packet()) != b"\0"
    assert [one.flipped_bit is None for one in lossy.log] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"loss": 1.5}, ValueError),
        ({"duplicate": -0.1}, ValueError),
        ({"corrupt": float("nan")}, ValueError),
        ({"delay": float("inf")}, ValueError),
        ({"delay": -1}, ValueError),
        ({"reorder": 0.1}, ValueError),
        ({"loss": "much"}, TypeError),
        ({"loss": True}, TypeError),
    ],
)
def test_wrong_arguments_of_impair(arguments: dict[str, Any], error: type[Exception]) -> None:
    one, _ = memory_channel_pair()
    with pytest.raises(error):
        impair(one, **arguments)


def test_what_cannot_be_impaired(udp: ends.MakeSocket) -> None:
    with pytest.raises(TypeError, match="SendChannel"):
        impair(b"")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="MemoryChannel"):
        impair(UdpBatchSender(udp()), delay=1)


# -- scripted sockets


async def test_a_refusal_is_met_as_the_script_has_it() -> None:
    sock = ScriptedSocket()
    sender = UdpBatchSender(sock)
    sock.answer = lambda packets, address: errno.EPERM if packets == [b"\2"] else 0
    batch = PacketBatch([PacketTrain(bytes([n]), 1, ("192.0.2.2", n)) for n in (1, 2, 3)])
    with pytest.raises(SendBatchError) as info:
        await sender.send(batch)
    assert [failure.error.errno for failure in info.value.failures] == [errno.EPERM]
    assert sock.sent == [(b"\1", ("192.0.2.2", 1)), (b"\3", ("192.0.2.2", 3))]


@pytest.mark.skipif(sys.platform != "linux", reason="segmentation is Linux's")
async def test_a_function_sees_what_is_segmented() -> None:
    sock = ScriptedSocket()
    seen: list[list[bytes]] = []

    def no_gso(packets: list[bytes], address: Address | None) -> int:
        seen.append(packets)
        assert address == PEER
        return errno.EIO if len(packets) > 1 else 0

    sock.answer = no_gso
    sender = UdpBatchSender(sock)
    await sender.send(ends.batch_of([b"aa", b"bb", b"c"], PEER))
    assert seen[0] == [b"aa", b"bb", b"c"]
    assert seen[-3:] == [[b"aa"], [b"bb"], [b"c"]]
    assert not sender.gso


async def test_a_full_socket_blocks_until_it_is_woken(nursery: trio.Nursery) -> None:
    sock = ScriptedSocket()
    sender = UdpBatchSender(sock)
    sock.sends.append(errno.EAGAIN)
    nursery.start_soon(sender.send, ends.batch_of([b"x"], PEER))
    await trio.testing.wait_all_tasks_blocked()
    assert (sock.waiting, sock.sent) == (1, [])
    sock.wake()
    await trio.testing.wait_all_tasks_blocked()
    assert (sock.waiting, sock.sent) == (0, [(b"x", PEER)])


async def test_what_arrives_and_what_fails_in_a_receive() -> None:
    sock = ScriptedSocket(("2001:db8::1", 9), remote_address=("2001:db8::2", 9))
    receiver = UdpBatchReceiver(sock)
    sock.receives += [ends.batch_of([b"one"], PEER), errno.ECONNREFUSED]
    sock.receives += [ends.batch_of([b"two"], PEER), errno.EIO]
    assert payloads(await receiver.receive()) == [b"one"]
    assert payloads(await receiver.receive()) == [b"two"]
    assert receiver.statistics().asynchronous_errors == {errno.ECONNREFUSED: 1}
    with pytest.raises(OSError, match="Input/output"):
        await receiver.receive()
    with pytest.raises(trio.WouldBlock):
        receiver.receive_nowait()


async def test_waking_for_nothing_is_no_harm(nursery: trio.Nursery) -> None:
    sock = ScriptedSocket()
    receiver = UdpBatchReceiver(sock)
    nursery.start_soon(receiver.receive)
    for _ in range(50):
        await trio.testing.wait_all_tasks_blocked()
        assert sock.waiting == 1
        sock.wake()
    sock.receives.append(ends.batch_of([b"x"], PEER))
    sock.wake()
    await trio.testing.wait_all_tasks_blocked()
    assert receiver.statistics().datagrams_delivered == 1


def test_it_looks_like_a_socket() -> None:
    for host, family in (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6)):
        sock = ScriptedSocket((host, 9))
        assert (sock.family, sock.type, sock.proto) == (family, socket.SOCK_DGRAM, 17)
        sock.setsockopt(1, 2, 3)
        assert (sock.getsockopt(1, 2), sock.getsockopt(1, 3)) == (3, 0)
        with pytest.raises(OSError, match="not connected"):
            sock.getpeername()
    with pytest.raises(TypeError):
        ScriptedSocket("192.0.2.1")  # type: ignore[arg-type]


async def test_closing_it_wakes_who_waits(nursery: trio.Nursery) -> None:
    sock = ScriptedSocket()
    receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await receiver.receive()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    sock.close()
    with pytest.raises(trio.ClosedResourceError):
        await sender.send(ends.batch_of([b"x"], PEER))
    assert receiver.statistics().receive_buffer_size == 0


async def test_a_whole_pump_on_a_script() -> None:
    sock = ScriptedSocket()
    sock.receives.append(ends.batch_of([b"hello"], PEER))
    sock.answer = lambda packets, address: errno.ENETUNREACH
    async with open_batch_pump(sock, handler=lambda batch: batch) as pump:
        await trio.testing.wait_all_tasks_blocked()
        assert pump.statistics().failures == {errno.ENETUNREACH: 1}
        sock.answer = lambda packets, address: 0
        sock.receives.append(ends.batch_of([b"again"], PEER))
        sock.wake()
        await trio.testing.wait_all_tasks_blocked()
    assert sock.sent == [(b"again", PEER)]
    assert sock.fileno() == -1


def test_records_are_frozen() -> None:
    one = ImpairedDatagram(
        number=0, packet=b"", address=None, copies=1, flipped_bit=None, reordered=False
    )
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.copies = 2  # type: ignore[misc]
