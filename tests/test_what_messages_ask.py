# What leaves, message by message, whoever made it: each asks for what its datagrams need, no more
# and no less. The interposer stands before the kernel and looks; everything arrives all the same.

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from snaptun_trio import PacketBatch, PacketTrain, UdpBatchReceiver, UdpBatchSender

from . import ends
from .faults import interposer

if TYPE_CHECKING:
    from collections.abc import Callable

    from snaptun_trio import Address

# Above these, payload and link-layer header do not fit 64 KiB together, and the device takes a
# train apart in software.
LARGEST_TRAIN = {"127.0.0.1": 65_493, "::1": 65_473}

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports and sets it")


@pytest.fixture
def messages(backend: str, monkeypatch: pytest.MonkeyPatch) -> list[interposer.Message]:
    """Every message that a sender which is made from here on asks the kernel to take."""
    seen: list[interposer.Message] = []

    def look(message: interposer.Message) -> int:
        seen.append(message)
        return 0

    interposer.Interposer(monkeypatch, look)
    return seen


# -- how a program hands datagrams over: each of these sends all packets, and they arrive in order


def send_queued(pair: ends.Pair, packets: list[bytes]) -> None:
    for packet in packets:
        if pair.sender.is_full:
            pair.sender.try_flush_best_effort()
        pair.sender.try_queue_packet(packet, pair.target)
    pair.sender.try_flush_best_effort()


def send_packed(pair: ends.Pair, packets: list[bytes]) -> None:
    pair.sender.send_nowait(ends.batch_of(packets, pair.target))


def send_one_by_one(pair: ends.Pair, packets: list[bytes]) -> None:
    pair.sender.send_nowait(
        PacketBatch([PacketTrain(packet, len(packet), pair.target) for packet in packets])
    )


def send_in_pairs(pair: ends.Pair, packets: list[bytes]) -> None:
    trains = [
        PacketTrain(b"".join(packets[at : at + 2]), len(packets[at]), pair.target)
        for at in range(0, len(packets), 2)
    ]
    pair.sender.send_nowait(PacketBatch(trains))


def send_as_one_train(pair: ends.Pair, packets: list[bytes]) -> None:
    """However long that is: the sender splits it."""
    pair.sender.send_nowait(
        PacketBatch([PacketTrain(b"".join(packets), len(packets[0]), pair.target)])
    )


def forward(pair: ends.Pair, packets: list[bytes]) -> None:
    """Receive them first, as single datagrams, twice: a receiver learns how they lie best."""
    with (
        ends.bound_socket(pair.target[0]) as middle,
        ends.bound_socket(pair.target[0]) as source,
        UdpBatchReceiver(middle, gro=False) as receiver,
    ):
        for _ in range(2):
            for packet in packets:
                source.sendto(packet, ends.address_of(middle))
            batches = ends.collect_batches(receiver, len(packets))
        for batch in batches:
            pair.sender.send_nowait(batch.to(pair.target))


WAYS = [send_queued, send_packed, send_one_by_one, send_in_pairs, send_as_one_train, forward]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
# Sizes whose multiples come between the largest train and the largest datagram; and runs that leave
# a single datagram behind when the others have gone in full messages.
@pytest.mark.parametrize(
    ("size", "count"), [(1310, 101), (9355, 15), (8192, 8), (1200, 55), (100, 65), (100, 129)]
)
def test_a_message_asks_for_segments_where_it_has_several_and_fits_a_device(
    backend: str,
    udp: ends.MakeSocket,
    messages: list[interposer.Message],
    way: Callable[[ends.Pair, list[bytes]], None],
    host: str,
    size: int,
    count: int,
) -> None:
    packets = ends.numbered(count, size)
    with ends.make_pair(udp(host), udp(host)) as pair:
        way(pair, packets)
        assert ends.payloads(pair.receiver, count) == packets
        for message in messages:
            if message.segment_size:
                assert len(message.payload) > message.segment_size, "one datagram is no train"
                assert len(message.payload) <= LARGEST_TRAIN[host]
            else:
                assert len(message.payload) == size
        if backend == "linux" and pair.sender.gso:
            assert len(messages) < count, "and nothing keeps equal datagrams from going together"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("size", "count"), [(9355, 15), (100, 65)])
def test_without_gso_each_datagram_is_a_message(
    backend: str,
    udp: ends.MakeSocket,
    messages: list[interposer.Message],
    way: Callable[[ends.Pair, list[bytes]], None],
    size: int,
    count: int,
) -> None:
    packets = ends.numbered(count, size)
    with ends.make_pair(udp(), udp(), gso=False) as pair:
        way(pair, packets)
        assert ends.payloads(pair.receiver, count) == packets
    assert [message.payload for message in messages] == packets
    assert not any(message.segment_size for message in messages)


@pytest.mark.parametrize("order", [1, -1])
def test_a_train_over_every_limit_is_split_whatever_stands_beside_it(
    backend: str, udp: ends.MakeSocket, messages: list[interposer.Message], order: int
) -> None:
    short, long = [b"a", b"b"], ends.numbered(60, 1200)  # few segments, too many bytes
    with ends.make_pair(udp(), udp()) as pair:
        trains = [
            PacketTrain(b"".join(packets), len(packets[0]), pair.target)
            for packets in (short, long)[::order]
        ]
        pair.sender.send_nowait(PacketBatch(trains))
        expected = [packet for train in trains for packet in train]
        assert ends.payloads(pair.receiver, len(expected)) == expected
    assert max(len(message.payload) for message in messages) <= LARGEST_TRAIN["127.0.0.1"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_train_may_be_as_long_as_a_device_takes_and_no_longer(
    backend: str, udp: ends.MakeSocket, messages: list[interposer.Message], host: str
) -> None:
    """To the byte: the last datagram is as long as there is room, then one byte longer."""
    whole, rest = divmod(LARGEST_TRAIN[host], 1200)
    with ends.make_pair(udp(host), udp(host)) as pair:
        for tail in (rest, rest + 1):
            messages.clear()
            packets = [*ends.numbered(whole, 1200), bytes(tail)]
            send_queued(pair, packets)
            assert ends.payloads(pair.receiver, whole + 1) == packets
            assert max(len(message.payload) for message in messages) <= LARGEST_TRAIN[host]
            if backend == "linux" and pair.sender.gso:
                assert len(messages) == (1 if tail == rest else 2)


@linux_only
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_single_datagrams_keep_their_ecn_bits(
    backend: str, udp: ends.MakeSocket, host: str
) -> None:
    """However many stand together, and whether they ask for the same."""
    incoming, outgoing = udp(host), udp(host)
    receiver, sender = UdpBatchReceiver(incoming, ecn=True), UdpBatchSender(outgoing)
    target = ends.address_of(incoming)
    for bits in ([1] * 8, [0, 1, 2, 3] * 4, [None, 2] * 4):
        packets = ends.numbered(len(bits), 100)
        sender.send_nowait(
            PacketBatch(
                [PacketTrain(packet, 100, target, ecn=ecn) for packet, ecn in zip(packets, bits)]
            )
        )
        found = [
            (packet, train.ecn)
            for train in ends.collect_trains(receiver, len(bits))
            for packet in train
        ]
        assert found == [(packet, ecn or 0) for packet, ecn in zip(packets, bits)]


@linux_only
def test_single_datagrams_keep_their_source_address(backend: str, udp: ends.MakeSocket) -> None:
    incoming, outgoing = udp(), udp("0.0.0.0")
    receiver, sender = UdpBatchReceiver(incoming), UdpBatchSender(outgoing)
    port = ends.address_of(outgoing)[1]
    target = ends.address_of(incoming)
    for hosts in (["127.0.0.5"] * 8, ["127.0.0.5", "127.0.0.6"] * 4):
        packets = ends.numbered(len(hosts), 100)
        trains = [
            PacketTrain(packet, 100, target, local_address=host)
            for packet, host in zip(packets, hosts)
        ]
        sender.send_nowait(PacketBatch(trains))
        expected: list[tuple[bytes, Address | None]] = [
            (packet, (host, port)) for packet, host in zip(packets, hosts)
        ]
        assert ends.collect(receiver, len(hosts)) == expected
