# PacketTrain as a value: what it holds, what it refuses, and what packing makes.

from __future__ import annotations

import array
import pickle

import attrs
import pytest
from hypothesis import given, strategies as st

from snaptun_trio import Address, Packet, PacketTrain

PEER = ("192.0.2.1", 4000)
PEER6 = ("2001:db8::1", 4000, 0, 0)


def test_a_train_is_datagrams_of_one_size_with_a_shorter_tail() -> None:
    train = PacketTrain(b"aaabbbc", 3, PEER)
    assert len(train) == 3
    assert list(train) == [b"aaa", b"bbb", b"c"]
    assert train.nbytes == 7


def test_empty_data_is_one_zero_length_datagram() -> None:
    for segment_size in (0, 1, 1200):
        train = PacketTrain(b"", segment_size, PEER)
        assert len(train) == 1
        assert list(train) == [b""]
        assert train.nbytes == 0


def test_a_segment_size_over_the_length_is_one_datagram() -> None:
    assert list(PacketTrain(b"short", 1200, None)) == [b"short"]


def test_a_train_cannot_be_changed() -> None:
    train = PacketTrain(b"data", 4, PEER)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        train.segment_size = 2  # type: ignore[misc]
    assert not hasattr(train, "__dict__")


def test_trains_with_equal_contents_are_equal() -> None:
    assert PacketTrain(b"data", 4, PEER) == PacketTrain(b"data", 4, PEER)
    assert PacketTrain(b"data", 4, PEER) != PacketTrain(b"data", 4, PEER, ecn=1)
    assert hash(PacketTrain(b"data", 4, PEER)) == hash(PacketTrain(b"data", 4, PEER))


def test_a_train_of_bytes_can_be_pickled() -> None:
    train = PacketTrain(b"data", 2, PEER, ecn=2, timestamp_ns=5)
    assert pickle.loads(pickle.dumps(train)) == train


def test_a_read_only_view_is_kept_and_not_copied() -> None:
    memory = bytearray(b"aabbcc")
    train = PacketTrain(memoryview(memory).toreadonly()[2:], 2, PEER)
    memory[2:4] = b"xx"
    assert list(train) == [b"xx", b"cc"]


def test_a_view_of_wider_items_is_taken_as_bytes() -> None:
    words = memoryview(array.array("H", [1, 2, 3])).toreadonly()
    assert PacketTrain(words, 4, PEER).nbytes == 6


def test_packets_are_bytes_of_their_own() -> None:
    memory = bytearray(b"aabb")
    first, _ = PacketTrain(memoryview(memory).toreadonly(), 2, PEER)
    memory[:] = b"zzzz"
    assert first == b"aa"


@pytest.mark.parametrize("data", ["text", bytearray(b"x"), memoryview(bytearray(b"x")), None, 5])
def test_data_that_could_change_or_is_no_bytes_is_a_type_error(data: object) -> None:
    with pytest.raises(TypeError):
        PacketTrain(data, 1, PEER)  # type: ignore[arg-type]


def test_a_view_with_gaps_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="contiguous"):
        PacketTrain(memoryview(b"abcdef")[::2], 1, PEER)


@pytest.mark.parametrize("segment_size", [0, -1, 65_536])
def test_a_segment_size_out_of_range_is_a_value_error(segment_size: int) -> None:
    with pytest.raises(ValueError, match="segment_size"):
        PacketTrain(b"x", segment_size, PEER)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("segment_size", 1.5, TypeError),
        ("address", "192.0.2.1:80", TypeError),
        ("ecn", 4, ValueError),
        ("ecn", -1, ValueError),
        ("local_address", 17, TypeError),
        ("interface_index", 0, ValueError),
        ("interface_index", 2**31, ValueError),
        ("timestamp_ns", -1, ValueError),
        ("timestamp_ns", 2**63, ValueError),
        ("timestamp_ns", "now", TypeError),
        ("interface_index", "lo", TypeError),
    ],
)
def test_a_wrong_field_is_refused(field: str, value: object, error: type[Exception]) -> None:
    fields: dict[str, object] = {"data": b"x", "segment_size": 1, "address": PEER, field: value}
    with pytest.raises(error):
        PacketTrain(**fields)  # type: ignore[arg-type]


def test_to_keeps_data_and_ecn_and_drops_what_belongs_to_the_old_way() -> None:
    data = memoryview(b"payload")
    train = PacketTrain(
        data, 7, PEER, ecn=1, local_address="192.0.2.9", interface_index=2, timestamp_ns=3
    )
    other = train.to(PEER6)
    assert other.data is train.data
    assert (other.address, other.ecn) == (PEER6, 1)
    dropped = (other.local_address, other.interface_index, other.timestamp_ns)
    assert dropped == (None, None, None)
    assert train.to(None).address is None


@given(
    packets=st.lists(
        st.binary(max_size=40)
        | st.binary(max_size=40).map(bytearray)
        | st.binary(max_size=40).map(lambda data: memoryview(data)),
        max_size=100,
    )
)
def test_packing_and_iterating_are_inverse(packets: list[Packet]) -> None:
    trains = PacketTrain.pack(packets, PEER)
    assert [packet for train in trains for packet in train] == [bytes(p) for p in packets]
    assert all(train.address == PEER for train in trains)


@pytest.mark.parametrize(("address", "most"), [(PEER, 65_493), (PEER6, 65_473), (None, 65_473)])
def test_packing_keeps_below_what_the_device_splits(address: Address | None, most: int) -> None:
    trains = PacketTrain.pack([bytes(1)] * 64 + [bytes(most // 10)] * 11, address)
    assert max(train.nbytes for train in trains) <= most
    assert [len(train) for train in trains] == [64, 10, 1]


def test_packing_nothing_gives_nothing() -> None:
    assert PacketTrain.pack([], PEER) == []


def test_a_packet_that_no_datagram_can_hold_is_not_packed() -> None:
    assert PacketTrain.pack([bytes(65_527)], PEER6)[0].nbytes == 65_527
    with pytest.raises(ValueError, match="65528"):
        PacketTrain.pack([bytes(65_528)], PEER6)


@pytest.mark.parametrize("packets", [[], [b"x"]])
@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("ecn", 4, ValueError),
        ("ecn", True, TypeError),
        ("local_address", 17, TypeError),
        ("interface_index", 0, ValueError),
        ("interface_index", "lo", TypeError),
    ],
)
def test_packing_refuses_what_a_train_refuses(
    packets: list[bytes], field: str, value: object, error: type[Exception]
) -> None:
    """Also where nothing is packed: a mistake does not wait for the first packet."""
    with pytest.raises(error, match=field):
        PacketTrain.pack(packets, PEER, **{field: value})  # type: ignore[arg-type]


def test_packed_trains_ask_for_what_was_said() -> None:
    trains = PacketTrain.pack(
        [b"a" * 9] * 65, PEER, ecn=1, local_address="192.0.2.9", interface_index=2
    )
    assert len(trains) == 2
    for train in trains:
        assert (train.ecn, train.local_address, train.interface_index) == (1, "192.0.2.9", 2)
        assert train.timestamp_ns is None


def came(local_address: str | None, address: Address | None = PEER) -> PacketTrain:
    """A train as it was received."""
    return PacketTrain(
        b"?", 1, address, ecn=3, local_address=local_address, interface_index=7, timestamp_ns=5
    )


@pytest.mark.parametrize("local", ["192.0.2.9", "::ffff:192.0.2.9", "2001:db8::9", None])
def test_a_reply_leaves_from_where_the_train_came_to_by_the_way_of_the_routing_table(
    local: str | None,
) -> None:
    (train,) = came(local).reply([b"an", b"d", b"swer"][:2])
    assert list(train) == [b"an", b"d"]
    assert train == PacketTrain(b"and", 2, PEER, local_address=local)


@pytest.mark.parametrize("local", ["fe80::9", "febf::1"])
def test_a_reply_from_a_link_local_address_leaves_by_its_interface(local: str) -> None:
    """Such an address is on every interface; alone it is refused."""
    (train,) = came(local, PEER6).reply([b"answer"])
    assert train == PacketTrain(b"answer", 6, PEER6, local_address=local, interface_index=7)


@pytest.mark.parametrize(
    "group", ["224.0.0.1", "::ffff:239.1.2.3", "255.255.255.255", "ff02::1", "ff0e::1"]
)
def test_a_reply_never_asks_to_leave_from_a_group(group: str) -> None:
    (train,) = came(group).reply([b"answer"])
    assert train == PacketTrain(b"answer", 6, PEER)


def test_a_reply_to_the_connected_peer_is_for_the_connected_peer() -> None:
    assert came(None, None).reply([b"answer"]) == [PacketTrain(b"answer", 6, None)]


def test_a_reply_with_nothing_is_nothing() -> None:
    assert came("192.0.2.9").reply([]) == []


def test_packing_something_else_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        PacketTrain.pack(["text"], PEER)  # type: ignore[list-item]
