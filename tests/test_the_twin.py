# What becomes one message is written down twice: in C for sendmmsg, in Python for the portable
# backend. Whatever is sent, the two make the same messages of it.
#
# The recorder reads what the kernel would be handed; nothing is sent.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, strategies as st

from snaptun_trio import Address, PacketBufPool, PacketTrain, UdpBatchReceiver
from snaptun_trio._batch import messages_of
from snaptun_trio._kernel import _pieces, _portable, _sockaddr, socket_io
from snaptun_trio._messages import PER_TRAIN_ADDRESS, TrainMessages

from . import ends
from .recorder import Incoming, Recorder
from .test_received_batches import messages_of_any_kind

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from snaptun_trio._kernel._outgoing import Outgoing
    from snaptun_trio._kernel._pieces import OutgoingMessage
    from snaptun_trio._messages import Messages, Recipient

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


segments = st.sampled_from([64, 64, 64, 0, 0, 1, 2, 63]) | st.integers(0, 64)
"""The most of one message; 0 is no GSO."""


class Case:
    """Trains for sockets of one family, and how they are to be sent."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.host = draw(st.sampled_from(list(HOSTS)))
        several = st.lists(
            equal_trains(self.host) | st.lists(trains(self.host), max_size=6), max_size=4
        )
        self.trains = [train for some in draw(several) for train in some]
        self.recipient = draw(
            st.just(PER_TRAIN_ADDRESS) | st.none() | st.sampled_from(HOSTS[self.host])
        )
        self.segments = draw(segments)

    def __repr__(self) -> str:
        told = [(t.nbytes, t.segment_size, t.address, t.ecn) for t in self.trains]
        return f"{self.host} at most {self.segments} to {self.recipient}: {told}"


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


Step = tuple[int, bool, bool]
"""How a message is sent: with so many segments, alone, and whether what is refused is left out
instead."""
steps = st.lists(st.tuples(segments, st.booleans(), st.booleans()), max_size=12)


def twins_of(sock: socket.socket, messages: Messages, recipient: Recipient) -> tuple[Outgoing, ...]:
    """The same batch on both backends."""
    linux, portable = socket_io(sock), _portable.PortableIO(sock)
    assert linux.backend == "linux"
    return linux.outgoing(messages, recipient), portable.outgoing(messages, recipient)


def next_message(twin: Outgoing, how: Step) -> OutgoingMessage:
    """What the twin makes of what is next."""
    most, single, _ = how
    assert isinstance(twin, _portable.PortableOutgoing)
    place = twin.train, twin.offset
    return next(_pieces.outgoing_messages(twin.prepared, place, 0 if single else most))


def check_one_by_one(
    recorder: Recorder,
    sock: socket.socket,
    messages: Messages,
    recipient: Recipient,
    steps: list[Step],
) -> None:
    """Send message by message, as the steps say; each is refused once before it goes."""
    family, fd = int(sock.family), sock.fileno()
    outgoing, twin = twins_of(sock, messages, recipient)
    assert outgoing.content.count == twin.content.count == messages.count
    sent, datagrams, nbytes = 0, 0, 0
    for at in range(100_000):
        if not twin.more:
            break
        how = steps[at] if at < len(steps) else (64, False, False)
        most, single, leave_out = how
        expected = next_message(twin, how)
        recorder.refuse_with = errno.EPERM
        assert outgoing.send(fd, 1, most, single) == errno.EPERM
        recorder.refuse_with = 0
        assert (outgoing.train, outgoing.offset) == (twin.train, twin.offset)
        assert (outgoing.end_train, outgoing.end_offset) == expected.end
        assert outgoing.segmented == (expected.datagrams > 1)
        if leave_out:
            outgoing.skip(*expected.end)
        else:
            recorder.sent.clear()
            assert outgoing.send(fd, 1, most, single) == 0
            (message,) = recorder.messages
            check_message(message, expected, family)
            assert outgoing.work == 1 + (expected.nbytes >> 14)
            sent, datagrams = sent + 1, datagrams + expected.datagrams
            nbytes += expected.nbytes
        twin.train, twin.offset = expected.end  # type: ignore[misc]
        assert (outgoing.train, outgoing.offset) == expected.end
        assert (outgoing.messages, outgoing.datagrams, outgoing.nbytes) == (sent, datagrams, nbytes)
    assert not outgoing.more
    assert (outgoing.train, outgoing.offset) == (messages.count, 0)


@given(case=cases, steps=steps)
def test_the_twins_make_the_same_messages_of_what_a_program_made(
    recorder: Recorder, sockets: dict[str, socket.socket], case: Case, steps: list[Step]
) -> None:
    messages = TrainMessages.of_trains(tuple(case.trains))
    check_one_by_one(recorder, sockets[case.host], messages, case.recipient, steps)


@example(
    messages=[Incoming(b"", _sockaddr.encode(("127.0.0.1", 1), 2))],
    steps=[],
    recipient=PER_TRAIN_ADDRESS,
)
@given(
    messages=messages_of_any_kind,
    steps=steps,
    recipient=st.just(PER_TRAIN_ADDRESS) | st.none() | st.sampled_from(HOSTS["127.0.0.1"]),
)
@pytest.mark.parametrize("copied", [True, False])
def test_the_twins_make_the_same_messages_of_what_came_in(
    recorder: Recorder,
    sockets: dict[str, socket.socket],
    request: pytest.FixtureRequest,
    copied: bool,
    messages: list[Incoming],
    steps: list[Step],
    recipient: Recipient,
) -> None:
    if not copied:
        request.getfixturevalue("nothing_copied")
    receiver = UdpBatchReceiver(sockets["127.0.0.1"], PacketBufPool(), batch_size=64)
    recorder.incoming = list(messages)
    received, _ = messages_of(receiver.receive_nowait())
    for some in (received, received.detached(), *received.by_address().values()):
        check_one_by_one(recorder, sockets["127.0.0.1"], some, recipient, steps)


@given(case=cases, budgets=st.lists(st.integers(1, 20), min_size=1, max_size=10))
def test_many_messages_a_call_are_those_of_the_twin(
    recorder: Recorder, sockets: dict[str, socket.socket], case: Case, budgets: list[int]
) -> None:
    """And some of them are left out: those behind are what they would be."""
    messages = TrainMessages.of_trains(tuple(case.trains))
    sock = sockets[case.host]
    family, fd = int(sock.family), sock.fileno()
    outgoing, twin = twins_of(sock, messages, case.recipient)
    assert isinstance(twin, _portable.PortableOutgoing)
    expected = list(_pieces.outgoing_messages(twin.prepared, (0, 0), case.segments))
    at = 0
    for budget in budgets:
        if not outgoing.more:
            break
        recorder.sent.clear()
        before = outgoing.messages, outgoing.datagrams, outgoing.nbytes
        assert outgoing.send(fd, budget, case.segments, False) == 0
        count = outgoing.messages - before[0]
        took = expected[at : at + count]
        spent = [1 + (one.nbytes >> 14) for one in took]
        assert sum(spent) == outgoing.work
        assert sum(spent[:-1]) < budget, "the last one began within the budget"
        assert outgoing.datagrams - before[1] == sum(one.datagrams for one in took)
        assert outgoing.nbytes - before[2] == sum(one.nbytes for one in took)
        for message, one in zip(recorder.sent[-1], took, strict=True):
            check_message(message, one, family)
        at += count
        assert at == len(expected) or sum(spent) >= budget or outgoing.messages
        if outgoing.more:
            recorder.refuse_with = errno.EACCES
            assert outgoing.send(fd, budget, case.segments, False) == errno.EACCES
            recorder.refuse_with = 0
            outgoing.skip(outgoing.end_train, outgoing.end_offset)
            at += 1
        assert (outgoing.train, outgoing.offset) == expected[at - 1].end


@given(case=cases, steps=steps, refused=st.lists(st.booleans(), max_size=20))
def test_the_portable_twin_sends_what_the_compiled_one_does(
    recorder: Recorder,
    sockets: dict[str, socket.socket],
    case: Case,
    steps: list[Step],
    refused: list[bool],
) -> None:
    """Both are told the same, and say the same; what they hand over is compared as well."""
    messages = TrainMessages.of_trains(tuple(case.trains))
    sock = sockets[case.host]
    family, fd = int(sock.family), sock.fileno()
    handed: list[OutgoingMessage] = []

    def send_message(plain: socket.socket, message: OutgoingMessage) -> None:
        if recorder.refuse_with:
            raise OSError(recorder.refuse_with, "refused")
        handed.append(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_portable, "_send_message", send_message)
        both = twins_of(sock, messages, case.recipient)
        for at in range(100_000):
            if not both[0].more:
                break
            most, single, leave_out = steps[at] if at < len(steps) else (64, False, False)
            recorder.refuse_with = errno.EPERM if at < len(refused) and refused[at] else 0
            recorder.sent.clear()
            handed.clear()
            told = [one.send(fd, 1, most, single) for one in both]
            assert told == [recorder.refuse_with] * 2
            if recorder.refuse_with:
                ends_ = {(one.end_train, one.end_offset, one.segmented) for one in both}
                assert len(ends_) == 1
                if leave_out:
                    for one in both:
                        one.skip(one.end_train, one.end_offset)
            else:
                for message, twin in zip(recorder.messages, handed, strict=True):
                    check_message(message, twin, family)
            states = {
                (one.train, one.offset, one.messages, one.datagrams, one.nbytes, one.work)
                for one in both
            }
            assert len(states) == 1
    recorder.refuse_with = 0
    assert not any(one.more for one in both)


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
            for recipient in (PER_TRAIN_ADDRESS, None, ("127.0.0.1", 9)):
                messages = TrainMessages.of_trains(tuple(some))
                check_one_by_one(recorder, sockets["127.0.0.1"], messages, recipient, [])


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
                messages = TrainMessages.of_trains(tuple(some))
                check_one_by_one(recorder, sockets[host], messages, PER_TRAIN_ADDRESS, [])


@pytest.mark.parametrize("size", [1, 1200])
def test_more_pieces_than_a_call_takes_go_in_several(
    recorder: Recorder, sockets: dict[str, socket.socket], size: int
) -> None:
    """Each packet is a piece of memory; a message may end where the room for them does."""
    packets = [bytes([n % 251]) * size for n in range(10_000)]
    trains = tuple([PacketTrain(packet, size, ("127.0.0.1", 9)) for packet in packets])
    sock = sockets["127.0.0.1"]
    outgoing, _ = twins_of(sock, TrainMessages.of_trains(trains), PER_TRAIN_ADDRESS)
    calls = 0
    while outgoing.more:
        assert outgoing.send(sock.fileno(), 1 << 20, 64, False) == 0
        calls += 1
    assert calls == 3
    assert [p for message in recorder.messages for p in message.datagrams()] == packets
    assert max(len(message.bases) for message in recorder.messages) <= 64


@pytest.mark.parametrize("skipped", [100, 200, 300])
def test_the_twins_go_on_from_the_middle_of_a_message_that_was_refused(
    recorder: Recorder,
    sockets: dict[str, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    skipped: int,
) -> None:
    trains = (
        PacketTrain(MEMORY[:500], 100, ("127.0.0.1", 9)),
        PacketTrain(MEMORY[:90], 30, ("127.0.0.2", 9)),
    )
    both = twins_of(sockets["127.0.0.1"], TrainMessages.of_trains(trains), PER_TRAIN_ADDRESS)
    recorder.refuse_with = errno.EMSGSIZE
    handed: list[bytes] = []

    def send_message(plain: socket.socket, message: OutgoingMessage) -> None:
        if recorder.refuse_with:
            raise OSError(recorder.refuse_with, "too long")
        handed.append(message.payload)

    monkeypatch.setattr(_portable, "_send_message", send_message)
    assert [one.send(0, 9, 64, False) for one in both] == [errno.EMSGSIZE] * 2
    recorder.refuse_with = 0
    recorder.sent.clear()
    for one in both:
        one.skip(0, skipped)
        assert one.send(0, 9, 64, False) == 0
        assert not one.more
    assert handed == [MEMORY[skipped:500], MEMORY[:90]]
    assert [message.payload for message in recorder.messages] == handed
