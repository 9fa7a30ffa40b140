# impair, of snaptun_trio.testing: it tells exactly what it did, and does the same again.

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
import trio.testing

from snaptun_trio import (
    PacketBatch,
    UdpBatchSender,
)
from snaptun_trio.testing import (
    ImpairedDatagram,
    impair,
    memory_channel_pair,
)

from . import ends


def payloads(batch: PacketBatch) -> list[bytes]:
    return [packet for packet, _ in batch]


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
    with pytest.raises(TypeError, match="UdpChannel"):
        impair(b"")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="MemoryChannel"):
        impair(UdpBatchSender(udp()), delay=1)


def test_records_are_frozen() -> None:
    one = ImpairedDatagram(
        number=0, packet=b"", address=None, copies=1, flipped_bit=None, reordered=False
    )
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.copies = 2  # type: ignore[misc]
