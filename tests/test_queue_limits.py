# The queue to the datagram: what fits, what is refused, and that a flush leaves nothing behind.

from __future__ import annotations

import pytest

from snaptun_trio import (
    PacketTooLargeError,
    PacketTrain,
    QueueFullError,
    QueuePacketError,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import ends

pytestmark = pytest.mark.core


async def test_a_partly_full_batch_is_flushed_in_order(pair: ends.Pair) -> None:
    packets = [b"one", b"two", b"three"]
    for packet in packets:
        pair.sender.try_queue_packet(packet, pair.target)
    assert not pair.sender.is_empty
    assert not pair.sender.is_full
    await pair.sender.flush()
    assert pair.sender.is_empty
    ends.expect_only(pair, packets)


def test_mixed_targets_get_theirs_in_order(pair: ends.Pair, udp: ends.MakeSocket) -> None:
    other = udp()
    receiver_b = UdpBatchReceiver(other)
    for packet, target in (
        (b"first for A", pair.target),
        (b"for B", ends.address_of(other)),
        (b"second for A", pair.target),
    ):
        pair.sender.try_queue_packet(packet, target)
    pair.sender.try_flush_best_effort()
    ends.expect_only(pair, [b"first for A", b"second for A"])
    assert ends.payloads(receiver_b, 1) == [b"for B"]


def test_a_buffer_of_ten_bytes_with_a_stride_of_four_splits_into_4_4_2() -> None:
    assert list(PacketTrain(b"0123456789", 4, None)) == [b"0123", b"4567", b"89"]


@pytest.mark.parametrize("stride", [10, 11, 65_535])
def test_a_stride_of_at_least_the_length_gives_one_packet(stride: int) -> None:
    assert list(PacketTrain(b"0123456789", stride, None)) == [b"0123456789"]


def test_the_packet_after_the_last_that_fits_is_refused(backend: str, udp: ends.MakeSocket) -> None:
    with ends.make_pair(udp(), udp(), batch_size=3) as pair:
        packets = ends.numbered(3, 10)
        for packet in packets:
            assert not pair.sender.is_full
            pair.sender.try_queue_packet(packet, pair.target)
        assert pair.sender.is_full
        with pytest.raises(QueueFullError, match="3") as refusal:
            pair.sender.try_queue_packet(b"one too many", pair.target)
        assert isinstance(refusal.value, QueuePacketError)
        assert refusal.value.packet == b"one too many"
        assert refusal.value.address == pair.target
        pair.sender.try_flush_best_effort()
        ends.expect_only(pair, packets)
        pair.sender.try_queue_packet(b"now it fits", pair.target)


def test_a_packet_that_is_too_large_is_refused(backend: str, udp: ends.MakeSocket) -> None:
    sender = UdpBatchSender(udp(), max_packet_size=100)
    sender.try_queue_packet(bytes(100), ("127.0.0.1", 9))
    with pytest.raises(PacketTooLargeError) as refusal:
        sender.try_queue_packet(bytes(101), ("127.0.0.1", 9))
    assert isinstance(refusal.value, QueuePacketError)
    assert (refusal.value.packet_len, refusal.value.max_packet_size) == (101, 100)
    assert refusal.value.packet == bytes(101)
    assert refusal.value.address == ("127.0.0.1", 9)
    assert sender.statistics().datagrams_queued == 1
