# Limits to the byte: what just fits is taken, what just does not is refused.

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from snaptun_trio import PacketBatch, PacketTrain

from . import ends

if TYPE_CHECKING:
    from snaptun_trio import Address


@pytest.mark.parametrize("small", [b"", b"small"])
def test_a_packet_that_no_datagram_can_hold_is_found_among_small_ones(small: bytes) -> None:
    packed = PacketTrain.pack([small, bytes(65_527), small], ("::1", 9))
    assert sum(train.nbytes for train in packed) == 65_527 + 2 * len(small)
    with pytest.raises(ValueError, match="65528"):
        PacketTrain.pack([small, bytes(65_528), small], ("::1", 9))


@pytest.mark.parametrize(
    ("largest", "beyond"),
    [
        (("::1", 0xFFFF, 0, 0), ("::1", 0x10000, 0, 0)),
        (("::1", 9, 0xFFFFF, 0), ("::1", 9, 0x100000, 0)),
        (("::1", 9, 0, 0xFFFFFFFF), ("::1", 9, 0, 0x100000000)),
        (("127.0.0.1", 0xFFFF), ("127.0.0.1", 0x10000)),
    ],
)
def test_the_largest_number_of_an_address_is_taken(largest: Address, beyond: Address) -> None:
    assert PacketTrain(b"x", 1, largest).address == largest
    with pytest.raises(ValueError, match="out of range"):
        PacketTrain(b"x", 1, beyond)


@pytest.mark.needs_gso
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_two_trains_of_which_each_fills_a_message_are_two_messages(
    linux_backend: None, udp: ends.MakeSocket, host: str
) -> None:
    """Longer than a device takes at once, but no longer than the kernel does."""
    with ends.make_pair(udp(host), udp(host)) as pair:
        trains = [PacketTrain(bytes([n]) * 65_500, 1310, pair.target) for n in range(2)]
        pair.sender.send_nowait(PacketBatch(trains))
        expected = [packet for train in trains for packet in train]
        assert ends.payloads(pair.receiver, len(expected)) == expected
        statistics = pair.sender.statistics()
        assert (statistics.trains_sent, statistics.failures) == (2, {})
        assert statistics.asynchronous_errors == {}, "the kernel had nothing against them"
