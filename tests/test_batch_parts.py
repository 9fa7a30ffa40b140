# What a batch can be made into: its parts by peer, a list, a copy of its own, a pickle.
#
# On both backends and on real sockets; how the compiled part does it is held to a plain reading
# with whatever messages there can be.

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given, strategies as st

from snaptun_trio import (
    ECN,
    PacketBatch,
    PacketBufPool,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
)
from snaptun_trio._batch import messages_of
from snaptun_trio._kernel import _sockaddr
from snaptun_trio._messages import TrainMessages

from . import ends
from .recorder import Incoming, Recorder
from .test_batch import A, B, trains_of_any_shape
from .test_received_batches import messages_of_any_kind

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from snaptun_trio import Address


def grouped(pairs: Iterable[tuple[bytes, Address | None]]) -> dict[Address | None, list[bytes]]:
    """Each peer's packets, in order of first appearance."""
    found: dict[Address | None, list[bytes]] = {}
    for packet, address in pairs:
        found.setdefault(address, []).append(packet)
    return found


def check_parts(batch: PacketBatch) -> None:
    """The parts are what the batch is, and batches like any other."""
    parts = batch.by_address()
    expected = grouped(batch)
    assert list(parts) == list(expected)
    trains = list(batch.trains)
    for address, part in parts.items():
        assert list(part) == part.packets() == [(packet, address) for packet in expected[address]]
        assert len(part) == len(expected[address])
        assert part.nbytes == sum(map(len, expected[address]))
        assert list(part.trains) == [train for train in trains if train.address == address]
        assert [packet for packet, _ in part.to(B)] == expected[address]
        assert part.by_address() == {address: part}
        assert part.to(B).by_address().keys() == {B}
    assert sum(part.truncated for part in parts.values()) == batch.truncated
    if len(parts) == 1:
        assert list(parts.values()) == [batch]


def check_copies(batch: PacketBatch) -> None:
    """A detached batch, a pickled one and a deep copy are the same data, and hold nothing else."""
    pickled = [pickle.loads(pickle.dumps(batch, protocol)) for protocol in range(2, 6)]
    for other in (batch.detach(), copy.deepcopy(batch), *pickled):
        assert other.packets() == batch.packets()
        assert other.trains == batch.trains
        assert (len(other), other.nbytes) == (len(batch), batch.nbytes)
        assert other.truncated == batch.truncated
        assert all(isinstance(train.data, bytes) for train in other.trains)
        assert other.detach() is other
    assert copy.copy(batch) is batch


# -- of trains that a program made


@given(trains=trains_of_any_shape)
def test_parts_and_copies_of_what_a_program_made(trains: list[PacketTrain]) -> None:
    batch = PacketBatch(trains)
    check_parts(batch)
    check_copies(batch)
    assert batch.packets() == list(batch)
    moved = batch.to(A)
    assert moved.packets() == list(moved)
    check_copies(moved)
    assert moved.by_address() == ({A: moved} if trains else {})


def test_a_batch_with_one_peer_is_its_own_only_part() -> None:
    batch = PacketBatch([PacketTrain(b"x", 1, A), PacketTrain(b"y", 1, A)])
    assert batch.by_address() == {A: batch}
    assert PacketBatch([PacketTrain(b"x", 1, None)]).by_address().keys() == {None}
    assert PacketBatch([]).by_address() == {}


def test_parts_keep_what_their_trains_ask_for() -> None:
    trains = [
        PacketTrain(b"aab", 2, address, ecn=bits, interface_index=index, timestamp_ns=5)
        for address, bits, index in ((A, 1, None), (B, None, 3), (A, None, 7))
    ]
    parts = PacketBatch(trains).by_address()
    assert parts[A].trains == (trains[0], trains[2])
    assert parts[B].trains == (trains[1],)


def test_two_spellings_are_two_addresses() -> None:
    short, long = ("::1", 80), ("::1", 80, 0, 0)
    batch = PacketBatch([PacketTrain(b"x", 1, short), PacketTrain(b"y", 1, long)])
    assert list(batch.by_address()) == [short, long]


def test_a_view_is_copied_and_bytes_are_not() -> None:
    memory = bytearray(b"before")
    data = b"unchanged"
    batch = PacketBatch(
        [PacketTrain(memoryview(memory).toreadonly(), 6, A, ecn=1), PacketTrain(data, 9, B)]
    )
    copies = (batch.detach(), copy.deepcopy(batch), pickle.loads(pickle.dumps(batch)))
    memory[:] = b"after!"
    for other in copies:
        assert [train.data for train in other.trains] == [b"before", data]
        assert other.trains[0].ecn is ECN.ECT_1
    assert copies[0].trains[1].data is data


def test_trains_pickle_and_copy_as_plain_data() -> None:
    train = PacketTrain(
        memoryview(b"aab"), 2, B, ecn=3, local_address="::1", interface_index=2, timestamp_ns=9
    )
    for protocol in range(2, 6):
        other = pickle.loads(pickle.dumps(train, protocol))
        assert other == train
        assert hash(other) == hash(attrs.evolve(train, data=b"aab"))
        assert other.data == b"aab"
        assert isinstance(other.data, bytes)
        assert other.ecn is ECN.CE
    assert isinstance(copy.deepcopy(train).data, bytes)
    assert copy.copy(train) is train
    assert b"_train" not in pickle.dumps(train), "what is private may be renamed"
    assert b"_batch" not in pickle.dumps(PacketBatch([train]))


# -- ECN


@pytest.mark.parametrize("number", range(4))
def test_ecn_bits_are_numbers_with_a_name(number: int) -> None:
    for given_ in (number, ECN(number)):
        train = PacketTrain(b"x", 1, A, ecn=given_)
        (packed,) = PacketTrain.pack([b"x"], A, ecn=given_)
        assert train.ecn is packed.ecn is train.to(B).ecn is ECN(number)
        assert train.ecn == number
        assert attrs.evolve(train, address=B).ecn is ECN(number)
    assert [bits.name for bits in ECN] == ["NOT_ECT", "ECT_1", "ECT_0", "CE"]


# -- of what came in


def received(receiver: UdpBatchReceiver, sent: list[tuple[socket.socket, bytes]]) -> PacketBatch:
    """What several sockets send, as one batch."""
    for source, packet in sent:
        source.sendto(packet, ends.address_of(receiver.socket))
        ends.wait_until_readable(receiver.socket)
    (batch,) = ends.collect_batches(receiver, len(sent))
    return batch


@pytest.mark.core
@pytest.mark.parametrize("size", [10, 3000])
@pytest.mark.parametrize("ecn", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_parts_and_copies_of_what_came_in(
    backend: str, udp: ends.MakeSocket, size: int, ecn: bool, host: str
) -> None:
    sources = [udp(host) for _ in range(3)]
    receiver = UdpBatchReceiver(udp(host), ecn=ecn, packet_info=ecn)
    sent = [(sources[at], bytes([n]) * size) for n, at in enumerate((0, 1, 0, 2, 2, 1, 0))]
    batch = received(receiver, sent)
    check_parts(batch)
    check_copies(batch)
    assert grouped(batch) == {
        ends.address_of(source): [packet for other, packet in sent if other is source]
        for source in sources
    }
    assert {train.ecn for train in batch.trains} == {ECN.NOT_ECT if ecn else None}
    assert (batch.detach().trains[0].local_address == host) == ecn


@pytest.mark.core
@pytest.mark.parametrize("ecn", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
@pytest.mark.parametrize("how", ["as it is", "detached"])
def test_parts_are_sent_to_whom_they_are_from(
    backend: str, udp: ends.MakeSocket, ecn: bool, host: str, how: str
) -> None:
    """Also on a socket of the other family, which reaches them under their mapped addresses."""
    sources = [udp() for _ in range(3)]
    receiver = UdpBatchReceiver(udp(), ecn=ecn)
    sent = [(sources[n % 3], bytes([n]) * 600) for n in range(12)]
    batch = received(receiver, sent)
    sender = UdpBatchSender(udp(host))
    for part in reversed(batch.by_address().values()):
        sender.send_nowait(part.detach() if how == "detached" else part)
    for at, source in enumerate(sources):
        assert ends.read_plainly(source, 4) == [packet for _, packet in sent[at::3]]


def test_parts_keep_the_slab_and_a_detached_batch_does_not(
    linux_backend: None, udp: ends.MakeSocket
) -> None:
    pool = PacketBufPool()
    sources = [udp(), udp()]
    receiver = UdpBatchReceiver(udp(), pool)
    batch = received(receiver, [(sources[n % 2], bytes([n]) * 3000) for n in range(4)])
    first, second = batch.by_address().values()
    expected = first.packets()
    del batch, second
    assert pool.statistics().slabs_in_use == 1
    view = first.trains[0].data
    assert isinstance(view, memoryview)
    detached = first.detach()
    del first, view
    assert pool.statistics().slabs_in_use == 0
    assert detached.packets() == expected
    assert detached.nbytes == 6000


def test_a_part_of_little_is_not_taken_for_the_whole(backend: str, udp: ends.MakeSocket) -> None:
    """A batch that was copied is one `bytes`; a part that is one datagram is not."""
    sources = [udp(), udp()]
    batch = received(UdpBatchReceiver(udp()), [(sources[0], b"one"), (sources[1], b"other")])
    parts = batch.by_address()
    assert [part.packets()[0][0] for part in parts.values()] == [b"one", b"other"]
    assert [part.trains[0].data for part in parts.values()] == [b"one", b"other"]


def test_a_part_tells_of_its_own_datagrams_that_were_cut(
    backend: str, udp: ends.MakeSocket
) -> None:
    sources = [udp(), udp()]
    receiver = UdpBatchReceiver(udp(), PacketBufPool(100), gro=False)
    sizes = [(0, 100), (1, 250), (0, 20), (1, 90), (1, 101)]
    batch = received(receiver, [(sources[at], bytes(size)) for at, size in sizes])
    assert batch.truncated == 2
    check_parts(batch)
    check_copies(batch)
    parts = batch.by_address()
    assert [parts[ends.address_of(source)].truncated for source in sources] == [0, 2]
    part = parts[ends.address_of(sources[1])]
    assert [len(packet) for packet, _ in part] == [100, 90, 100]
    assert part.to(A).truncated == part.detach().truncated == 2
    again = pickle.loads(pickle.dumps(batch)).by_address()
    assert [again[ends.address_of(source)].truncated for source in sources] == [0, 2]


def test_two_thousand_peers_are_told_apart() -> None:
    pairs = [(b"%d" % n, (f"127.0.{n % 250}.1", 1000 + n % 2000)) for n in range(6000)]
    batch = PacketBatch.pack(pairs)
    assert {a: [p for p, _ in part] for a, part in batch.by_address().items()} == grouped(pairs)


# -- the compiled part


@pytest.fixture
def recorder(linux_backend: None, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


NAMES = [
    b"",
    b"\2\0",
    b"none at all",
    _sockaddr.encode(("192.0.2.1", 9), _sockaddr.AF_INET),
    _sockaddr.encode(("192.0.2.1", 9), _sockaddr.AF_INET)[:8] + b"padding!",
    _sockaddr.encode(("192.0.2.1", 10), _sockaddr.AF_INET) + b"more",
    _sockaddr.encode(("192.0.2.1", 10), _sockaddr.AF_INET),
    _sockaddr.encode(("2001:db8::1", 9), _sockaddr.AF_INET6),
    _sockaddr.encode(("2001:db8::1", 9, 0, 2), _sockaddr.AF_INET6),
]
"""Some that are none, and several that are the same address."""


@pytest.mark.parametrize("copied", [True, False])
@given(
    messages=messages_of_any_kind,
    names=st.lists(st.sampled_from(NAMES), min_size=40, max_size=40) | st.just([]),
)
def test_parts_of_any_messages_are_those_of_a_plain_reading(
    recorder: Recorder,
    udp: ends.MakeSocket,
    request: pytest.FixtureRequest,
    copied: bool,
    messages: list[Incoming],
    names: list[bytes],
) -> None:
    if not copied:
        request.getfixturevalue("nothing_copied")
    for at, name in enumerate(names[: len(messages)]):
        messages[at] = attrs.evolve(messages[at], name=name)
    receiver = UdpBatchReceiver(udp(), PacketBufPool(), batch_size=64)
    recorder.incoming = list(messages)
    while recorder.incoming:
        batch = receiver.receive_nowait()
        check_parts(batch)
        check_copies(batch)
        rows, _ = messages_of(batch)
        assert not isinstance(rows, TrainMessages)
        plain = TrainMessages.of(rows).by_address()
        assert {a: part.trains() for a, part in rows.by_address().items()} == {
            a: part.trains() for a, part in plain.items()
        }


def test_a_thousand_peers_in_one_call_are_told_apart(
    recorder: Recorder, udp: ends.MakeSocket
) -> None:
    names = [
        _sockaddr.encode((f"127.0.{n % 250}.1", 1000 + n), _sockaddr.AF_INET) for n in range(500)
    ]
    receiver = UdpBatchReceiver(udp(), batch_size=1024)
    recorder.incoming = [Incoming(b"%d" % n, names[n % 500]) for n in range(4000)]
    largest = 0
    while recorder.incoming:
        batch = receiver.receive_nowait()
        check_parts(batch)
        largest = max(largest, len(batch.by_address()))
    assert largest == 500
