# PacketBatch.pack: pairs of packets and addresses into trains, and the cap on what leaves as one.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from snaptun_trio import Packet, PacketBatch, PacketTrain, UdpBatchSender
from snaptun_trio._batch import packed_for

from . import ends
from .recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from snaptun_trio import Address

A: Address = ("192.0.2.1", 9)
B: Address = ("2001:db8::1", 9, 0, 0)

packets = st.sampled_from([b"", b"x", b"yy", bytes(1200)]) | st.binary(max_size=40)
any_form = packets.flatmap(lambda data: st.sampled_from([data, bytearray(data), memoryview(data)]))


@given(pairs=st.lists(st.tuples(any_form, st.sampled_from([A, B, None])), max_size=200))
def test_pairs_become_the_trains_that_each_peer_would_get(
    pairs: list[tuple[Packet, Address | None]],
) -> None:
    by_hand: dict[Address | None, list[Packet]] = {}
    for packet, address in pairs:
        by_hand.setdefault(address, []).append(packet)
    expected = [
        train for address, some in by_hand.items() for train in PacketTrain.pack(some, address)
    ]
    batch = PacketBatch.pack(pairs)
    assert batch.trains == tuple(expected)
    assert len(batch) == len(pairs)
    assert batch.nbytes == sum(len(packet) for packet, _ in pairs)
    assert {a: part.trains for a, part in batch.by_address().items()} == {
        address: tuple(PacketTrain.pack(some, address)) for address, some in by_hand.items()
    }


def test_what_a_generator_lets_go_of_is_not_taken_for_what_it_yields_next() -> None:
    """An address that is gone leaves its place in memory to another one."""

    def pairs() -> Iterator[tuple[bytes, Address]]:
        for number in range(1000):
            yield b"%d" % number, (f"127.0.0.{number % 7}", 1000 + number % 11)

    batch = PacketBatch.pack(pairs())
    assert sorted(batch, key=lambda pair: int(pair[0])) == list(pairs())
    assert len(batch.by_address()) == 77


def test_a_packet_that_changes_later_was_copied() -> None:
    packet = bytearray(b"before")
    batch = PacketBatch.pack([(packet, A)])
    packet[:] = b"after!"
    assert list(batch) == [(b"before", A)]


def test_packing_no_pairs_gives_nothing() -> None:
    assert not PacketBatch.pack([])
    assert not PacketBatch.pack(iter(()))


def test_a_batch_can_be_packed_anew() -> None:
    batch = PacketBatch.pack([(b"one", A), (b"x", B), (b"two", A), (b"3", A)])
    again = PacketBatch.pack(batch)
    assert again.trains == batch.trains
    assert len(batch.trains) == 2


@pytest.mark.parametrize(
    ("pairs", "error", "named"),
    [
        ([(b"x", ("192.0.2.1", 9.0))], TypeError, "port"),
        ([(b"x", ("192.0.2.1", True))], TypeError, "port"),
        ([(b"x", ("192.0.2.1", 65_536))], ValueError, "port"),
        ([(b"x", ["192.0.2.1", 9])], TypeError, "address"),
        ([(b"x", "192.0.2.1")], TypeError, "address"),
        ([("text", A)], TypeError, "text"),
        ([(memoryview(b"abcd")[::2], A)], TypeError, "contiguous"),
        ([(bytes(65_528), A)], ValueError, "65528"),
        ([b"x"], TypeError, "pair"),
        ([b"xy"], TypeError, "address"),
        ([(b"x", A, None)], TypeError, "pair"),
        ([None], TypeError, "pair"),
        ((b"x", A), TypeError, "pair"),
        (b"x", TypeError, "pair"),
        (None, TypeError, "iterable"),
    ],
)
def test_what_is_no_pair_is_refused(pairs: Any, error: type[Exception], named: str) -> None:  # noqa: ANN401
    with pytest.raises(error, match=named):
        PacketBatch.pack(pairs)


def test_a_slip_is_refused_also_after_the_address_it_equals() -> None:
    slip: Any = ("192.0.2.1", 9.0)
    with pytest.raises(TypeError, match="port"):
        PacketBatch.pack([(b"x", A), (b"y", slip)])


def test_what_a_generator_raises_is_its_own() -> None:
    def pairs() -> Iterator[tuple[bytes, Address]]:
        yield b"x", A
        raise ValueError("of the program")

    with pytest.raises(ValueError, match="of the program"):
        PacketBatch.pack(pairs())


@pytest.mark.core
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_packed_batch_reaches_its_peers(backend: str, udp: ends.MakeSocket, host: str) -> None:
    peers = [udp(host) for _ in range(3)]
    pairs = [(b"%d" % n, ends.address_of(peers[n % 3])) for n in range(150)]
    UdpBatchSender(udp(host)).send_nowait(PacketBatch.pack(pairs))
    for number, peer in enumerate(peers):
        assert ends.read_plainly(peer, 50) == [b"%d" % n for n in range(number, 150, 3)]


# -- max_segments


@pytest.mark.parametrize("most", [1, 3, 63, 64])
def test_no_more_datagrams_leave_as_one_train_than_was_said(
    linux_backend: None, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    recorder = Recorder(monkeypatch)
    recorder.pretend = True
    sender = UdpBatchSender(udp(), max_segments=most)
    sender._io.gso = True  # whatever this kernel can: nothing is handed to it
    assert sender.max_segments == most
    packets = ends.numbered(200, 10)
    sender.send_nowait(ends.batch_of(packets, A))
    for packet in packets[:50]:
        sender.try_queue_packet(packet, A)
    sender.try_flush_best_effort()
    found = [message.datagrams() for message in recorder.messages]
    assert [packet for message in found for packet in message] == packets + packets[:50]
    assert max(map(len, found)) == min(most, 64)
    assert sender.statistics().trains_sent == len(found)


@pytest.mark.needs_gso
@pytest.mark.parametrize("most", [1, 3, 64])
def test_what_is_capped_arrives_all_the_same(backend: str, udp: ends.MakeSocket, most: int) -> None:
    into = udp()
    sender = UdpBatchSender(udp(), max_segments=most)
    packets = ends.numbered(100, 30)
    sender.send_nowait(ends.batch_of(packets, ends.address_of(into)))
    assert ends.read_plainly(into, 100) == packets
    assert sender.statistics().trains_sent == -(-64 // most) + -(-36 // most)


@pytest.mark.parametrize(
    ("most", "error"), [(0, ValueError), (65, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_a_cap_out_of_range_is_refused(
    udp: ends.MakeSocket,
    most: Any,  # noqa: ANN401
    error: type[Exception],
) -> None:
    with pytest.raises(error, match="max_segments"):
        UdpBatchSender(udp(), max_segments=most)


@pytest.mark.parametrize(("address", "most"), [(A, 65_493), (B, 65_473)], ids=["IPv4", "IPv6"])
def test_packets_for_one_peer_are_one_train_as_long_as_no_device_has_to_split_it(
    address: Address, most: int
) -> None:
    for nbytes, trains in ((most, 1), (most + 1, 2)):
        packets = [bytes(1200)] * (nbytes // 1200) + [bytes(nbytes % 1200)]
        batch = packed_for(address, packets)
        same = PacketBatch.pack((packet, address) for packet in packets)
        assert batch.trains == same.trains
        assert (len(batch.trains), batch.packets()) == (trains, [(p, address) for p in packets])
