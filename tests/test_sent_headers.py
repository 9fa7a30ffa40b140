# What is handed to sendmmsg: whichever way the headers are filled, the same datagrams leave, and
# every message keeps to the kernel's limits.
#
# The recorder reads the headers as the kernel would. Most of it is never sent.

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, strategies as st

from snaptun_trio import (
    Address,
    PacketBatch,
    PacketBufPool,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
)
from snaptun_trio._kernel import _abi, _sockaddr

from . import ends
from .recorder import Incoming, Message, Recorder
from .test_received_batches import PEERS, alike, calls, messages_of_any_kind

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("linux_backend")


COPIED_UP_TO = 4096  # see PacketBatch
TARGETS: list[Address] = [("127.0.0.1", 9), ("127.0.0.2", 9), ("192.0.2.7", 65_535)]


class Wire:
    """A sender whose messages are only looked at, and a receiver of scripted messages."""

    def __init__(self, recorder: Recorder, sock_a: ends.MakeSocket) -> None:
        self.recorder = recorder
        recorder.pretend = True
        self.socket = sock_a()
        self.incoming = sock_a()
        self.pool = PacketBufPool()

    def receive(self, messages: list[Incoming]) -> PacketBatch:
        """A batch over a slab, from a receiver that knows nothing of earlier traffic."""
        self.receiver = UdpBatchReceiver(self.incoming, self.pool)
        self.recorder.incoming = list(messages)
        return self.receiver.receive_nowait()

    def send(self, batch: PacketBatch, *, gso: bool = True) -> list[Message]:
        """What a sender hands to the kernel for this batch."""
        self.recorder.sent.clear()
        sender = UdpBatchSender(self.socket, gso=gso)
        sender.send_nowait(batch)
        statistics = sender.statistics()
        assert statistics.datagrams_sent == statistics.datagrams_submitted == len(batch)
        assert statistics.bytes_sent == batch.nbytes
        return self.recorder.messages


@pytest.fixture
def wire(udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    with UdpBatchSender(udp()):
        yield Wire(Recorder(monkeypatch), udp)


def datagrams(messages: list[Message]) -> list[tuple[bytes, Address | None]]:
    """The datagrams that leave, in order, each with its address."""
    return [
        (packet, _sockaddr.decode(message.name))
        for message in messages
        for packet in message.datagrams()
    ]


def by_target(found: list[tuple[bytes, Address | None]]) -> dict[Address | None, list[bytes]]:
    """The datagrams for each target, in order.

    Between targets the single datagrams of a program, all of one size, may change places: those for
    one target leave as one message.
    """
    sorted_out: dict[Address | None, list[bytes]] = {}
    for packet, address in found:
        sorted_out.setdefault(address, []).append(packet)
    return sorted_out


def check_limits(messages: list[Message]) -> None:
    """Nothing is in the messages that the kernel would refuse."""
    for message in messages:
        packets = message.datagrams()
        assert len(packets) <= 64
        assert len(packets) == 1 or len(message.payload) <= 65_507
        assert len(message.bases) <= 1024


def check_forwarded(sent: list[tuple[bytes, Address | None]], batch: PacketBatch) -> None:
    """A batch leaves as it came, to each peer; between peers the order may change."""
    assert by_target(sent) == by_target(list(batch))


# Equal single datagrams of one peer, another and the first again: random lists seldom have them.
@example(
    messages=[
        Incoming(bytes([number]), _sockaddr.encode(PEERS[number % 2], _sockaddr.AF_INET))
        for number in range(3)
    ],
    target=None,
)
@given(messages=messages_of_any_kind, target=st.none() | st.sampled_from(TARGETS))
def test_all_ways_of_filling_the_headers_send_the_same_datagrams(
    wire: Wire, messages: list[Incoming], target: Address | None
) -> None:
    batch = wire.receive(messages)
    if target is not None:
        batch = batch.to(target)
    expected = list(batch)
    with_ecn = PacketBatch([PacketTrain(*_fields(train), ecn=1) for train in batch.trains])
    for gso in (True, False):
        check_forwarded(datagrams(wire.send(batch, gso=gso)), batch)
    for way in (batch, PacketBatch(batch.trains), with_ecn):
        sent = wire.send(way)
        assert by_target(datagrams(sent)) == by_target(expected)
        check_limits(sent)
        assert by_target(datagrams(wire.send(way, gso=False))) == by_target(expected)


@given(calls=calls, target=st.none() | st.sampled_from(TARGETS))
def test_one_call_after_the_other_is_forwarded_as_it_came(
    wire: Wire, calls: list[list[Incoming]], target: Address | None
) -> None:
    """What a receiver expects from earlier calls changes how it receives, not what."""
    receiver = UdpBatchReceiver(wire.incoming, wire.pool, batch_size=64)
    for messages in calls:
        wire.recorder.incoming = list(messages)
        while wire.recorder.incoming:
            batch: PacketBatch = receiver.receive_nowait()
            batch = batch if target is None else batch.to(target)
            for gso in (True, False):
                sent = wire.send(batch, gso=gso)
                check_forwarded(datagrams(sent), batch)
                check_limits(sent)


def _fields(train: PacketTrain) -> tuple[bytes, int, Address | None]:
    return bytes(train.data), train.segment_size, train.address


# Equal single datagrams to one target, another and the first again, as above.
@example(payloads=[(1, 1, TARGETS[0]), (1, 1, TARGETS[1]), (1, 1, TARGETS[0])])
@given(
    payloads=st.lists(
        st.tuples(st.integers(0, 3000), st.integers(1, 3000), st.sampled_from(TARGETS)),
        min_size=1,
        max_size=30,
    )
)
def test_trains_of_a_program_leave_as_they_are(
    wire: Wire, payloads: list[tuple[int, int, Address]]
) -> None:
    """To each target in order; see `by_target`."""
    trains = [
        PacketTrain(bytes([number]) * length, size, address)
        for number, (length, size, address) in enumerate(payloads)
    ]
    sent = wire.send(PacketBatch(trains))
    assert by_target(datagrams(sent)) == by_target(list(PacketBatch(trains)))
    check_limits(sent)


@given(length=st.integers(0, 200_000), size=st.integers(20, 65_507))
def test_a_train_over_the_kernels_limits_is_split(wire: Wire, length: int, size: int) -> None:
    batch = PacketBatch([PacketTrain(bytes(length), size, TARGETS[0])])
    for gso in (True, False):
        sent = wire.send(batch, gso=gso)
        assert [packet for packet, _ in datagrams(sent)] == [packet for packet, _ in batch]
        check_limits(sent)


@given(messages=alike)
def test_a_forwarded_payload_is_never_copied(wire: Wire, messages: list[Incoming]) -> None:
    plain = [Incoming(m.payload, m.name, m.controls[-1:]) for m in messages]
    plain = [m for m in plain if all(control[0] == 17 for control in m.controls)]
    if not plain:
        return
    wire.recorder.received_at.clear()
    batch = wire.receive(plain)
    if batch.nbytes <= COPIED_UP_TO:
        return
    sent = wire.send(batch.to(TARGETS[0]))
    for base in {base for message in sent for base in message.bases}:
        assert any(0 <= base - slot < 65_536 for slot in wire.recorder.received_at)


def test_trains_alike_for_one_peer_are_sent_as_few_messages(wire: Wire) -> None:
    name = _sockaddr.encode(TARGETS[0], _sockaddr.AF_INET)
    train = Incoming(bytes(1600), name, ((17, 104, struct.pack("=i", 100)),))
    single = Incoming(bytes(100), name)
    for messages, fewest in (([train] * 8, 2), ([single] * 16, 1), ([train] * 9, 3)):
        sent = wire.send(wire.receive(messages).to(TARGETS[1]))
        assert len(sent) == fewest
        assert datagrams(sent) == [(bytes(100), TARGETS[1])] * sum(
            len(message.payload) // 100 for message in messages
        )


def test_more_trains_than_a_call_takes_go_in_several(wire: Wire) -> None:
    # Each is longer than the one before, so none can follow another in its message.
    trains = [PacketTrain(bytes(n + 1), n + 1, TARGETS[0]) for n in range(2500)]
    sent = wire.send(PacketBatch(trains))
    assert [len(call) for call in wire.recorder.sent] == [1024, 1024, 452]
    assert datagrams(sent) == list(PacketBatch(trains))


@pytest.mark.parametrize("target", [None, TARGETS[0]])
def test_one_address_for_all_or_none(wire: Wire, target: Address | None) -> None:
    trains = [PacketTrain(b"aabb", 2, None), PacketTrain(b"cc", 2, None)]
    batch = PacketBatch(trains).to(target)
    assert datagrams(wire.send(batch)) == [(b"aa", target), (b"bb", target), (b"cc", target)]
    mixed = [*trains, PacketTrain(b"dd", 2, TARGETS[1])]
    assert datagrams(wire.send(PacketBatch(mixed)))[-1] == (b"dd", TARGETS[1])
    assert datagrams(wire.send(PacketBatch(mixed)))[0] == (b"aa", None)


def test_what_a_train_asks_for_beside_its_address_is_said(wire: Wire) -> None:
    train = PacketTrain(b"aabb", 2, TARGETS[0], ecn=2, local_address="127.0.0.1", interface_index=1)
    (message,) = wire.send(PacketBatch([train]))
    assert message.segment_size == 2
    assert message.other_controls == (
        (_abi.SOL_IP, _abi.IP_TOS, struct.pack("=i", 2)),
        (_abi.SOL_IP, _abi.IP_PKTINFO, struct.pack("=i4s4s", 1, b"\x7f\0\0\1", bytes(4))),
    )
    (message,) = wire.send(PacketBatch([train]).to(TARGETS[1]))
    assert message.other_controls == ((_abi.SOL_IP, _abi.IP_TOS, struct.pack("=i", 2)),)


def test_control_messages_of_one_send_do_not_show_in_the_next(wire: Wire) -> None:
    noted = PacketTrain(b"aabb", 2, TARGETS[0], ecn=3, interface_index=1)
    plain = PacketTrain(b"aaabbb", 3, TARGETS[0])
    for _ in range(3):
        (message,) = wire.send(PacketBatch([noted]))
        assert message.other_controls
        (message,) = wire.send(PacketBatch([plain]))
        assert (message.segment_size, message.other_controls) == (3, ())


@pytest.mark.parametrize("count", [1, 3])
def test_an_interrupted_call_is_made_again(wire: Wire, count: int) -> None:
    wire.recorder.interruptions = count
    assert len(wire.send(PacketBatch([PacketTrain(b"x", 1, TARGETS[0])]))) == 1
    assert wire.recorder.interrupted == count
    wire.recorder.interruptions = count
    batch = wire.receive([Incoming(b"y", _sockaddr.encode(TARGETS[0], _sockaddr.AF_INET))])
    assert [packet for packet, _ in batch] == [b"y"]
    assert wire.recorder.interrupted == 2 * count
    assert errno.EINTR not in wire.receiver.statistics().asynchronous_errors


def test_two_trio_runs_may_send_at_the_same_time(
    wire: Wire, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A send call within a send call, as two threads make them, uses headers of its own."""
    inner = UdpBatchSender(udp())
    outer_batch = PacketBatch([PacketTrain(b"outer", 5, TARGETS[0])])

    def send_another() -> None:
        wire.recorder.before_sending = lambda: None
        inner.send_nowait(PacketBatch([PacketTrain(b"inner", 5, TARGETS[1])]))

    wire.recorder.before_sending = send_another
    assert datagrams(wire.send(outer_batch)) == [(b"inner", TARGETS[1]), (b"outer", TARGETS[0])]


@pytest.mark.parametrize("length", [1000, 50_000])
def test_what_the_kernel_said_of_a_train_is_not_said_back_to_it(wire: Wire, length: int) -> None:
    """The segment size that a train came with is no request: the kernel refuses it as one."""
    train = Incoming(
        bytes(length),
        _sockaddr.encode(TARGETS[0], _sockaddr.AF_INET),
        ((17, 104, struct.pack("=i", 100)),),
    )
    for batch in (wire.receive([train]), wire.receive([train] * 2)):
        for gso in (True, False):
            sent = wire.send(batch, gso=gso)
            assert {message.other_controls for message in sent} == {()}
            assert datagrams(sent) == list(batch)


@pytest.mark.needs_gso
@pytest.mark.needs_gro
def test_a_train_that_came_in_leaves_again(udp: ends.MakeSocket) -> None:
    with ends.make_pair(udp(), udp()) as first, ends.make_pair(udp(), udp()) as second:
        packets = ends.numbered(20, 700)
        first.sender.send_nowait(ends.batch_of(packets, first.target))
        for batch in ends.collect_batches(first.receiver, 20):
            second.sender.send_nowait(batch.to(second.target))
        assert ends.payloads(second.receiver, 20) == packets
