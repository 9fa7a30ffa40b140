# A received batch as the kernel's headers say it, against a plain reading of the same messages.
#
# The recorder stands where the kernel does and hands over whatever a test likes: all messages alike
# (the array-wise way), or every one different.

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given, strategies as st

from snaptun_trio import PacketBatch, PacketBufPool, PacketTrain, UdpBatchReceiver
from snaptun_trio._batch import messages_of
from snaptun_trio._kernel import _abi, _sockaddr

from . import system_calls
from .recorder import Incoming, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from . import ends

    ReceiveScripted = Callable[[list[Incoming]], PacketBatch]

pytestmark = pytest.mark.usefixtures("linux_backend")

PEERS = [("127.0.0.1", 1000), ("127.0.0.2", 1000), ("192.0.2.9", 65_535)]


PACKET_INFO = {(_abi.SOL_IP, _abi.IP_PKTINFO), (_abi.SOL_IPV6, _abi.IPV6_PKTINFO)}


def came_to(host: str, interface: int = 1) -> tuple[int, int, bytes]:
    """What the kernel says of where a message came to."""
    if ":" in host:
        packed = socket.inet_pton(socket.AF_INET6, host)
        return _abi.SOL_IPV6, _abi.IPV6_PKTINFO, packed + struct.pack("=i", interface)
    packed = socket.inet_aton(host)
    return _abi.SOL_IP, _abi.IP_PKTINFO, struct.pack("=i4s4s", interface, packed, packed)


gro = st.integers(0, 3000).map(lambda size: (17, 104, struct.pack("=i", size)))
other = st.sampled_from(
    [
        (_abi.SOL_IP, _abi.IP_TOS, b"\x02"),
        (_abi.SOL_SOCKET, _abi.SO_TIMESTAMPNS, struct.pack("=qq", 5, 6)),
        (_abi.SOL_IP, _abi.IP_PKTINFO, struct.pack("=i4s4s", 1, bytes(4), b"\x7f\0\0\1")),
        came_to("127.0.0.2"),
        came_to("224.0.0.1"),
        (250, 250, b"unknown"),
    ]
)
controls = st.tuples() | st.tuples(gro) | st.tuples(other, gro) | st.tuples(gro, other)
incoming = st.builds(
    lambda size, fill, peer, controls: Incoming(
        bytes([fill]) * size, _sockaddr.encode(peer, _sockaddr.AF_INET), controls
    ),
    st.integers(0, 5000),
    st.integers(0, 255),
    st.sampled_from(PEERS),
    controls,
)
alike = st.tuples(incoming, st.integers(1, 40)).map(lambda both: [both[0]] * both[1])
messages_of_any_kind = st.lists(incoming, min_size=1, max_size=20) | alike


def singles(size: int, other: int, count: int, odd_one: int) -> list[Incoming]:
    """So many datagrams of one size, each with bytes of its own, and perhaps one that is not."""
    name = _sockaddr.encode(PEERS[0], _sockaddr.AF_INET)
    sizes = [other if index == odd_one else size for index in range(count)]
    return [Incoming(bytes([index]) * size, name) for index, size in enumerate(sizes)]


# What keeps coming in one size is received in another way than what is mixed, so several calls of
# each sort follow each other.
calls = st.lists(
    messages_of_any_kind
    | st.builds(
        singles,
        st.sampled_from([1, 100, 1200, 1201]),
        st.sampled_from([0, 99, 1300, 4000]),
        st.integers(1, 40),
        st.integers(-40, 40),
    ),
    min_size=1,
    max_size=5,
)


def plain_reading(message: Incoming) -> PacketTrain:
    """What one message says, read by itself."""
    size = len(message.payload)
    fields: dict[str, int | str] = {}
    for level, kind, data in message.controls:
        if (level, kind) == (17, 104):
            size = int.from_bytes(data[:4], "little") or size
        elif kind == _abi.IP_TOS:
            fields["ecn"] = data[0] & 3
        elif kind == _abi.SO_TIMESTAMPNS:
            fields["timestamp_ns"] = 5_000_000_006
        elif kind == _abi.IP_PKTINFO:
            fields |= {"interface_index": data[0], "local_address": socket.inet_ntoa(data[8:])}
    address = _sockaddr.decode(message.name)
    return PacketTrain(message.payload, size, address, **fields)  # type: ignore[arg-type]


def looked_at(trains: Iterable[PacketTrain]) -> list[PacketTrain]:
    """Each datagram as a train of its own, with all that is told of it."""
    return [
        attrs.evolve(train, data=packet, segment_size=len(packet))
        for train in trains
        for packet in train
    ]


@pytest.fixture(params=["copied", "nothing copied"], autouse=True)
def copying(request: pytest.FixtureRequest) -> None:
    """Small batches as they are, and as they would be if they were large."""
    if request.param == "nothing copied":
        request.getfixturevalue("nothing_copied")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


@pytest.fixture
def receivers(recorder: Recorder, udp: ends.MakeSocket) -> Callable[[], ReceiveScripted]:
    """Makes functions that receive what a test hands over, each with a receiver of its own."""
    sock = udp()

    def make(buffer_size: int = 65_536) -> ReceiveScripted:
        pool = PacketBufPool(buffer_size, capacity=1)
        receiver = UdpBatchReceiver(sock, pool, batch_size=64, gro=False)

        def receive(messages: list[Incoming]) -> PacketBatch:
            assert pool.statistics().slabs_in_use == 0
            recorder.incoming = list(messages)
            return receiver.receive_nowait()

        return receive

    return make


@given(calls=calls)
def test_a_batch_is_what_its_messages_say_one_by_one(
    receivers: Callable[[], ReceiveScripted], recorder: Recorder, calls: list[list[Incoming]]
) -> None:
    receive = receivers()
    for messages in calls:
        while messages:
            batch = receive(messages)
            check_batch(batch, messages[: len(messages) - len(recorder.incoming)])
            messages = list(recorder.incoming)
            del batch


def check_batch(batch: PacketBatch, messages: list[Incoming]) -> None:
    expected = [plain_reading(message) for message in messages]
    assert len(batch) == sum(len(train) for train in expected)
    assert batch.nbytes == sum(train.nbytes for train in expected)
    assert list(batch) == [(packet, train.address) for train in expected for packet in train]
    assert looked_at(batch.trains) == looked_at(expected)
    told = messages_of(batch)[0]
    assert looked_at(told.trains()) == looked_at(expected)
    where = {tuple(said for said in one.controls if said[:2] in PACKET_INFO) for one in messages}
    assert told.one_way == (len(where) == 1)
    (answer,) = expected[0].reply([b"x"])
    way = (None, answer.local_address, answer.interface_index)
    assert told.way_back() == (None if answer.local_address is None else way)


@pytest.mark.parametrize(
    ("where", "one_way", "way"),
    [
        ([[]], True, None),
        ([[came_to("fe80::1", 7)]] * 2, True, (None, "fe80::1", 7)),
        ([[came_to("fe80::1", 7)], [came_to("fe80::1", 8)]], False, (None, "fe80::1", 7)),
        ([[came_to("2001:db8::1", 7)]] * 2, True, (None, "2001:db8::1", None)),
        ([[came_to("ff02::1", 7)], []], False, None),
        (
            [[came_to("::ffff:127.0.0.1"), came_to("127.0.0.1")]] * 2,
            True,
            (None, "::ffff:127.0.0.1", None),
        ),
        ([[(_abi.SOL_IP, _abi.IP_PKTINFO, b"short")], []], False, None),
        ([[(_abi.SOL_IP, _abi.IP_PKTINFO, bytes(100))]] * 2, True, None),
        ([[(250, _abi.IP_PKTINFO, came_to("127.0.0.9")[2])], []], True, None),
        (
            [[came_to("2001:db8::1"), came_to("127.0.0.1", n)] for n in (1, 2)],
            False,
            (None, "::ffff:127.0.0.1", None),
        ),
        ([[came_to("::1")] * 3, [came_to("::1")] * 2], True, (None, "::1", None)),
    ],
)
def test_an_answer_goes_back_from_where_a_batch_came_to(
    receivers: Callable[[], ReceiveScripted],
    where: list[list[tuple[int, int, bytes]]],
    one_way: bool,
    way: object,
) -> None:
    name = _sockaddr.encode(PEERS[0], _sockaddr.AF_INET)
    told = messages_of(receivers()([Incoming(b"x", name, tuple(each)) for each in where]))[0]
    assert (told.one_way, told.way_back()) == (one_way, way)


@given(calls=calls)
def test_a_copied_batch_is_what_it_would_be_in_its_slab(
    receivers: Callable[[], ReceiveScripted],
    recorder: Recorder,
    nothing_copied: None,
    calls: list[list[Incoming]],
) -> None:
    """Not only its datagrams: its trains, what it counts, and what it tells the next call."""
    in_slab, copied = receivers(), receivers()
    for messages in calls:
        while messages:
            batch = in_slab(messages)
            left = list(recorder.incoming)
            with pytest.MonkeyPatch.context() as patch:
                system_calls.copy_up_to(patch, 1 << 30)
                other = copied(messages)
            assert recorder.incoming == left, "it was offered as many slots"
            assert list(other.trains) == list(batch.trains)
            assert list(other) == list(batch)
            ours, theirs = messages_of(other)[0], messages_of(batch)[0]
            for question in ("count", "datagrams", "nbytes"):
                assert getattr(ours, question) == getattr(theirs, question), question
            assert ours.trains() == theirs.trains()
            messages = left
            del batch, other, ours, theirs


@given(sizes=st.lists(st.lists(st.integers(0, 130), min_size=17, max_size=20), max_size=4))
def test_whatever_does_not_fit_is_cut_at_the_buffers_end(
    receivers: Callable[[int], ReceiveScripted], sizes: list[list[int]]
) -> None:
    receive = receivers(100)
    name = _sockaddr.encode(PEERS[0], _sockaddr.AF_INET)
    for call in [[100] * 20, *sizes, [90] * 20, *sizes, [110] * 20]:
        payloads = [bytes([index]) * size for index, size in enumerate(call)]
        batch = receive([Incoming(payload, name) for payload in payloads])
        received = [packet for packet, _ in batch]
        assert received == [payload[:100] for payload in payloads[: len(received)]]
        assert batch.truncated == sum(len(payload) > 100 for payload in payloads[: len(received)])
        del batch


def test_a_train_of_the_size_that_single_datagrams_had_is_still_a_train(
    receivers: Callable[[], ReceiveScripted],
) -> None:
    receive = receivers()
    name = _sockaddr.encode(PEERS[0], _sockaddr.AF_INET)
    receive(singles(200, 200, 30, -1))
    train = Incoming(b"a" * 100 + b"b" * 100, name, ((17, 104, struct.pack("=i", 100)),))
    for messages in ([train], [train] * 30):
        batch = receive(messages)
        assert [packet for packet, _ in batch] == [b"a" * 100, b"b" * 100] * len(messages)
        del batch


def test_trains_are_made_once(receivers: Callable[[], ReceiveScripted]) -> None:
    batch = receivers()([Incoming(b"x", _sockaddr.encode(PEERS[0], _sockaddr.AF_INET))])
    assert batch.trains is batch.trains


def test_a_message_without_a_name_has_no_address(receivers: Callable[[], ReceiveScripted]) -> None:
    assert list(receivers()([Incoming(b"x", b"")])) == [(b"x", None)]


def test_a_zero_stride_is_one_datagram_and_no_endless_loop(
    receivers: Callable[[], ReceiveScripted],
) -> None:
    name = _sockaddr.encode(PEERS[0], _sockaddr.AF_INET)
    message = Incoming(b"abcdef", name, ((17, 104, struct.pack("=i", 0)),))
    for messages in ([message], [message, message], [message, Incoming(b"", name)]):
        batch = receivers()(messages)
        assert [packet for packet, _ in batch] == [m.payload for m in messages]
        assert len(batch) == len(messages)


def test_control_messages_in_another_order_are_found(
    receivers: Callable[[], ReceiveScripted],
) -> None:
    """All messages have as many bytes of control messages, but not the same ones there."""
    name = _sockaddr.encode(PEERS[0], _sockaddr.AF_INET)
    size, ecn = (17, 104, struct.pack("=i", 2)), (_abi.SOL_IP, _abi.IP_TOS, struct.pack("=i", 1))
    messages = [Incoming(b"aabb", name, (size, ecn)), Incoming(b"ccdd", name, (ecn, size))]
    check_batch(receivers()(messages), messages)


def test_names_of_different_lengths(receivers: Callable[[], ReceiveScripted]) -> None:
    names = [
        _sockaddr.encode(("127.0.0.1", 5), _sockaddr.AF_INET),
        _sockaddr.encode(("::1", 6), _sockaddr.AF_INET6),
    ]
    batch = receivers()([Incoming(b"x", name) for name in names])
    assert [address for _, address in batch] == [("127.0.0.1", 5), ("::1", 6, 0, 0)]
