# What becomes one message is written down twice: in C for sendmmsg, in Python for the portable
# backend. Whatever is sent, the two make the same messages of it.
#
# The recorder reads what the kernel would be handed; nothing is sent.

from __future__ import annotations

import errno
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, strategies as st

from snaptun_trio import Address, PacketBufPool, PacketTrain, UdpBatchReceiver, _kernel
from snaptun_trio._batch import KEEP, TrainColumns, columns_of
from snaptun_trio._kernel import _pieces, _portable, _sockaddr

from . import ends
from .recorder import Incoming, Recorder
from .test_columns import messages_of_any_kind

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from snaptun_trio._batch import Columns, Target
    from snaptun_trio._kernel._interface import Laid, Transmission
    from snaptun_trio._kernel._pieces import OutgoingMessage

    from .recorder import Message

pytestmark = pytest.mark.usefixtures("linux_backend")

HOSTS: dict[str, list[Address]] = {
    "127.0.0.1": [("127.0.0.1", 9), ("127.0.0.2", 9), ("127.0.0.1", 10)],
    "::1": [("::1", 9, 0, 0), ("::1", 9, 0, 1), ("127.0.0.1", 9), ("::ffff:127.0.0.1", 9, 0, 0)],
}
LIMITS = [65_473, 65_493, 65_507, 65_527]
MEMORY = bytes(range(251)) * 2000

sizes = st.one_of(
    st.sampled_from([1, 99, 100, 1200, 1400]), st.integers(1, 70), st.integers(1, 65_527)
)
lengths = st.one_of(
    st.sampled_from([0, 1, 99, 100, 101, 200, 300, 1200, 6400, 6500]),
    st.integers(0, 3000),
    st.sampled_from(LIMITS).flatmap(lambda limit: st.integers(limit - 3, limit + 3)),
    st.integers(0, 200_000),
)


@st.composite
def trains(draw: st.DrawFn, host: str) -> PacketTrain:
    """Any train: of bytes of its own, or a view into memory that others see as well."""
    length, size = draw(lengths), draw(sizes)
    address = draw(st.none() | st.sampled_from(HOSTS[host]))
    start = draw(st.integers(0, 50_000))
    view = memoryview(MEMORY)[start : start + length]
    data = bytes(view) if draw(st.booleans()) else view
    ecn = draw(st.sampled_from([None, None, None, 0, 2]))
    interface = draw(st.sampled_from([None, None, None, 1]))
    return PacketTrain(data, size, address, ecn=ecn, interface_index=interface)


@st.composite
def equal_trains(draw: st.DrawFn, host: str) -> list[PacketTrain]:
    """Trains that may go together, one behind the other in memory, for a few peers in turn."""
    size, segments = draw(sizes), draw(st.integers(1, 70))
    length = min(size * segments - draw(st.integers(0, 1)), 70_000)
    count = draw(st.integers(1, min(80, len(MEMORY) // max(1, length))))
    peers = draw(st.lists(st.sampled_from(HOSTS[host]), min_size=1, max_size=3))
    bits = draw(st.just([None]) | st.lists(st.sampled_from([None, 0, 1]), min_size=1, max_size=3))
    whole = memoryview(MEMORY)
    return [
        PacketTrain(
            whole[n * length : (n + 1) * length],
            size,
            peers[n % len(peers)],
            ecn=bits[n * len(bits) // count],
        )
        for n in range(count)
    ]


class Case:
    """Trains for sockets of one family, and how they are to be sent."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.host = draw(st.sampled_from(list(HOSTS)))
        several = st.lists(
            equal_trains(self.host) | st.lists(trains(self.host), max_size=6), max_size=4
        )
        self.trains = [train for some in draw(several) for train in some]
        self.target = draw(st.just(KEEP) | st.none() | st.sampled_from(HOSTS[self.host]))
        self.gso = draw(st.booleans())
        self.single = draw(st.booleans()) and draw(st.booleans())

    def __repr__(self) -> str:
        told = [(t.nbytes, t.segment_size, t.address, t.ecn) for t in self.trains]
        return f"{self.host} gso={self.gso} single={self.single} to {self.target}: {told}"


cases = st.composite(Case)()


@pytest.fixture
def recorder(linux_backend: None, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(monkeypatch)
    recorder.pretend = True
    return recorder


@pytest.fixture
def sockets() -> Iterator[dict[str, socket.socket]]:
    with ends.bound_socket("127.0.0.1") as four, ends.bound_socket("::1") as six:
        yield {"127.0.0.1": four, "::1": six}


def check_message(message: Message, twin: OutgoingMessage, family: int) -> None:
    """The same bytes, for the same peer, with the same requests."""
    name = b"" if twin.address is None else _sockaddr.name_of(twin.address, family)
    asked = [(17, 103, message.segment_size.to_bytes(2, "little"))] if message.segment_size else []
    assert message.payload == twin.payload
    assert message.name == name
    assert (*asked, *message.other_controls) == twin.controls


def prepared(
    sock: socket.socket, laid: Laid, place: tuple[int, int], *, gso: bool, single: bool = False
) -> Transmission:
    return _kernel.pick_backend().prepare(sock, laid, *place, gso=gso, single=single)


def check_one_by_one(
    recorder: Recorder,
    sock: socket.socket,
    columns: Columns,
    target: Target,
    place: tuple[int, int],
    gso: bool,
    single: bool = False,
) -> None:
    """Send everything from there on message by message; each is refused once before it goes."""
    family = int(sock.family)
    laid = _kernel.pick_backend().lay_out(columns, target, family)
    twins_laid = _portable.PortableBackend().lay_out(columns, target, family)
    assert laid.columns.count == columns.count
    all_of_them = _pieces.outgoing_messages(
        twins_laid.columns, target, *place, family, gso and not single
    )
    expected = list(islice(all_of_them, 1 if single else None))
    while expected:
        transmission = prepared(sock, laid, place, gso=gso, single=single)
        while transmission.more:
            twin = expected.pop(0)
            recorder.refuse_with = errno.EPERM
            assert transmission.send(sock.fileno(), 1) == errno.EPERM
            recorder.refuse_with = 0
            assert (transmission.messages, transmission.datagrams, transmission.nbytes) == (0, 0, 0)
            assert (transmission.train, transmission.offset) == place
            assert (transmission.end_train, transmission.end_offset) == twin.end
            assert transmission.segmented == (twin.datagrams > 1)
            recorder.sent.clear()
            assert transmission.send(sock.fileno(), 1) == 0
            place = twin.end
            assert (transmission.train, transmission.offset) == place
            assert transmission.messages == 1
            assert (transmission.datagrams, transmission.nbytes) == (twin.datagrams, twin.nbytes)
            (message,) = recorder.messages
            check_message(message, twin, family)
        transmission.close()
    assert single or place == (columns.count, 0)


def a_place(data: st.DataObject, lengths: list[int]) -> tuple[int, int]:
    """Where to begin: mostly at the start, but anywhere may be the rest of an earlier call."""
    if data.draw(st.booleans()):
        return 0, 0
    train = data.draw(st.integers(0, len(lengths) - 1))
    return train, data.draw(st.integers(0, max(0, lengths[train] - 1)))


@given(case=cases, data=st.data())
def test_the_twins_make_the_same_messages_of_what_a_program_made(
    recorder: Recorder, sockets: dict[str, socket.socket], case: Case, data: st.DataObject
) -> None:
    if not case.trains:
        return
    columns = TrainColumns.of(tuple(case.trains))
    sock = sockets[case.host]
    twins = _portable.PortableBackend().lay_out(columns, case.target, int(sock.family))
    place = a_place(data, [train.nbytes for train in twins.columns.trains()])
    check_one_by_one(recorder, sock, columns, case.target, place, case.gso, case.single)


@example(messages=[Incoming(b"", _sockaddr.encode(("127.0.0.1", 1), 2))], gso=True, target=KEEP)
@given(
    messages=messages_of_any_kind,
    gso=st.booleans(),
    target=st.just(KEEP) | st.none() | st.sampled_from(HOSTS["127.0.0.1"]),
)
@pytest.mark.parametrize("copied", [True, False])
def test_the_twins_make_the_same_messages_of_what_came_in(
    recorder: Recorder,
    sockets: dict[str, socket.socket],
    request: pytest.FixtureRequest,
    copied: bool,
    messages: list[Incoming],
    gso: bool,
    target: Address | None,
) -> None:
    if not copied:
        request.getfixturevalue("nothing_copied")
    receiver = UdpBatchReceiver(sockets["127.0.0.1"], PacketBufPool(), batch_size=64)
    recorder.incoming = list(messages)
    columns, _ = columns_of(receiver.receive_nowait())
    check_one_by_one(recorder, sockets["127.0.0.1"], columns, target, (0, 0), gso)


@given(case=cases, turns=st.lists(st.integers(1, 7), min_size=1, max_size=10))
def test_a_transmission_sends_and_skips_as_its_twin(
    recorder: Recorder, sockets: dict[str, socket.socket], case: Case, turns: list[int]
) -> None:
    """Many messages a call, and some of them left out: those behind are what they would be."""
    if not case.trains:
        return
    columns = TrainColumns.of(tuple(case.trains))
    sock = sockets[case.host]
    family = int(sock.family)
    laid = _kernel.pick_backend().lay_out(columns, case.target, family)
    portable = _portable.PortableBackend().lay_out(columns, case.target, family)
    expected = list(
        _pieces.outgoing_messages(portable.columns, case.target, 0, 0, family, case.gso)
    )
    transmission = prepared(sock, laid, (0, 0), gso=case.gso)
    at = 0
    recorder.sent.clear()
    for most in turns:
        if not transmission.more:
            break
        assert transmission.send(sock.fileno(), most) == 0
        took = expected[at : at + transmission.messages]
        assert 0 < transmission.messages <= most
        assert transmission.datagrams == sum(twin.datagrams for twin in took)
        assert transmission.nbytes == sum(twin.nbytes for twin in took)
        for message, twin in zip(recorder.sent[-1], took, strict=True):
            check_message(message, twin, family)
        at += transmission.messages
        if transmission.more:
            transmission.skip()
            at += 1
        assert (transmission.train, transmission.offset) == expected[at - 1].end
    transmission.close()


@pytest.mark.parametrize(
    "odd_one",
    [
        PacketTrain(bytes(100), 100, ("127.0.0.1", 9), ecn=2),
        PacketTrain(bytes(100), 100, ("127.0.0.1", 9), interface_index=1),
        PacketTrain(bytes(100), 100, ("127.0.0.1", 9), local_address="127.0.0.1"),
        PacketTrain(bytes(100), 100, ("127.0.0.1", 10)),
        PacketTrain(bytes(100), 100, None),
        PacketTrain(bytes(101), 101, ("127.0.0.1", 9)),
        PacketTrain(bytes(99), 99, ("127.0.0.1", 9)),
        PacketTrain(bytes(200), 100, ("127.0.0.1", 9)),
        PacketTrain(bytes(199), 100, ("127.0.0.1", 9)),
        PacketTrain(b"", 100, ("127.0.0.1", 9)),
    ],
)
def test_the_twins_agree_on_what_may_follow(
    recorder: Recorder, sockets: dict[str, socket.socket], odd_one: PacketTrain
) -> None:
    even = PacketTrain(bytes(100), 100, ("127.0.0.1", 9), ecn=1)
    for ecn in (None, 1):
        plain = PacketTrain(bytes(100), 100, ("127.0.0.1", 9), ecn=ecn)
        for some in ([plain, odd_one, plain], [odd_one, plain, even], [plain, plain, odd_one]):
            for target in (KEEP, None, ("127.0.0.1", 9)):
                columns = TrainColumns.of(tuple(some))
                check_one_by_one(recorder, sockets["127.0.0.1"], columns, target, (0, 0), gso=True)


@pytest.mark.parametrize("host", HOSTS)
def test_the_twins_agree_at_the_limits_of_a_message(
    recorder: Recorder, sockets: dict[str, socket.socket], host: str
) -> None:
    """To the byte: where one more train still joins, and where one is cut."""
    for limit in range(65_470, 65_530):
        for address in HOSTS[host]:
            joining = [
                PacketTrain(MEMORY[: 54 * 1200], 1200, address),
                PacketTrain(MEMORY[: limit - 54 * 1200], 1200, address),
            ]
            cut = [PacketTrain(MEMORY[:limit], limit // 2, address)] + [
                PacketTrain(MEMORY[: 3 * size], size, address)
                for size in (limit // 2, limit // 2 + 1, limit)
                if size <= 65_507
            ]
            for some in (joining, cut):
                columns = TrainColumns.of(tuple(some))
                check_one_by_one(recorder, sockets[host], columns, KEEP, (0, 0), gso=True)


@pytest.mark.parametrize("size", [1, 1200])
def test_more_pieces_than_a_call_takes_go_in_several(
    recorder: Recorder, sockets: dict[str, socket.socket], size: int
) -> None:
    """Each packet is a piece of memory; a message may end where the room for them does."""
    packets = [bytes([n % 251]) * size for n in range(10_000)]
    columns = TrainColumns.of(tuple([PacketTrain(p, size, ("127.0.0.1", 9)) for p in packets]))
    sock = sockets["127.0.0.1"]
    laid = _kernel.pick_backend().lay_out(columns, KEEP, int(sock.family))
    place, calls = (0, 0), 0
    while place != (10_000, 0):
        transmission = prepared(sock, laid, place, gso=True)
        while transmission.more:
            assert transmission.send(sock.fileno(), 1024) == 0
            calls += 1
        place = transmission.train, transmission.offset
        transmission.close()
    assert calls == 3
    assert [p for message in recorder.messages for p in message.datagrams()] == packets
    assert max(len(message.bases) for message in recorder.messages) <= 64
