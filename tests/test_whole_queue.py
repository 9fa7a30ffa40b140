# What is in a sender's queue stays whole, whatever a program does to its memory, to the spelling of
# an address, or from another task.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NoReturn

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from snaptun_trio import (
    Address,
    PacketBatch,
    PacketTrain,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import ends, scripted
from .test_sender import check_law

if TYPE_CHECKING:
    from snaptun_trio._kernel._pieces import OutgoingMessage

A: Address = ("127.0.0.1", 9)
B: Address = ("127.0.0.2", 9)


@pytest.fixture
def sender(kernel: scripted.ScriptedKernel, udp: ends.MakeSocket) -> UdpBatchSender:
    return UdpBatchSender(udp(), batch_size=64)


# -- memory


@pytest.mark.parametrize("ecn", [None, 1])
def test_a_queued_train_goes_though_its_view_was_released(pair: ends.Pair, ecn: int | None) -> None:
    train = PacketTrain(memoryview(b"aabbc"), 2, pair.target, ecn=ecn)
    for number in range(5):
        pair.sender.try_queue_packet(b"packet %d" % number, pair.target)
    pair.sender.try_queue_train(train)
    _release([train])
    pair.sender.try_flush_best_effort()
    ends.expect_only(pair, [*(b"packet %d" % n for n in range(5)), b"aa", b"bb", b"c"])
    assert pair.sender.is_empty
    check_law(pair.sender)


@pytest.mark.parametrize("when", ["before the send", "when a part was sent"])
@pytest.mark.parametrize("ecn", [False, True])
def test_a_batch_goes_though_its_views_were_released(
    backend: str, udp: ends.MakeSocket, ecn: bool, when: str
) -> None:
    """Of a received batch and of one that a program made, with ancillary data and without."""
    source, inside, outside, last = udp(), udp(), udp(), udp()
    receiver, sender = UdpBatchReceiver(inside, ecn=ecn), UdpBatchSender(outside)
    packets = ends.numbered(40, 700)
    for packet in packets:
        source.sendto(packet, inside.getsockname())
    received = PacketBatch(
        [train for batch in ends.collect_batches(receiver, 40) for train in batch.trains]
    )
    for batch in (received, PacketBatch([PacketTrain(memoryview(b"aabb"), 2, A)])):
        answer = batch.to(last.getsockname())
        seen = [*answer.trains, *batch.trains]
        expected = [packet for packet, _ in answer]
        if when == "before the send":
            _release(seen)
            sender.send_nowait(answer)
        else:
            sender.try_queue_packet(b"first", last.getsockname())
            for train in answer.trains:
                if len(train) + 1 <= sender.batch_size:
                    sender.try_queue_train(train)
            expected = [b"first", *expected]
            _release([*seen, *answer.trains])
            sender.try_flush_best_effort()
        assert ends.read_plainly(last, len(expected)) == expected
        check_law(sender)


def _release(trains: list[PacketTrain]) -> None:
    for train in trains:
        if isinstance(train.data, memoryview):
            train.data.release()


def test_the_received_batch_itself_goes_though_its_views_were_released(
    backend: str, udp: ends.MakeSocket
) -> None:
    source, inside, outside, last = udp(), udp(), udp(), udp()
    receiver, sender = UdpBatchReceiver(inside, ecn=True), UdpBatchSender(outside)
    packets = ends.numbered(60, 1000)
    for packet in packets:
        source.sendto(packet, inside.getsockname())
    for batch in ends.collect_batches(receiver, 60):
        _release(list(batch.trains))
        sender.send_nowait(batch.to(last.getsockname()))
    assert ends.read_plainly(last, 60) == packets
    check_law(sender)


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """Let the next call of a method find no memory."""
    real = getattr(owner, name)

    def no_memory(*arguments: object) -> NoReturn:
        monkeypatch.setattr(owner, name, real)
        raise MemoryError

    monkeypatch.setattr(owner, name, no_memory)


@pytest.mark.parametrize("trains", [False, True])
def test_what_fails_on_the_way_leaves_the_queue_as_it_was(
    sender: UdpBatchSender,
    kernel: scripted.ScriptedKernel,
    monkeypatch: pytest.MonkeyPatch,
    trains: bool,
) -> None:
    """No memory for a train: nothing is lost, nothing is sent twice, the next flush sends all."""
    for number in range(6):
        sender.try_queue_packet(b"packet %d" % number, (A, B)[number % 2])
    if trains:
        sender.try_queue_train(PacketTrain(b"aabb", 2, A))
    fail_once(monkeypatch, scripted.ScriptedIO, "outgoing")
    queued = sender.statistics().datagrams_queued
    with pytest.raises(MemoryError):
        sender.try_flush_best_effort()
    assert sender.statistics().datagrams_queued == queued
    assert kernel.sent == []
    check_law(sender)
    sender.try_flush_best_effort()
    assert len(kernel.sent) == queued
    assert [p for p, a in kernel.sent if a == B] == [b"packet 1", b"packet 3", b"packet 5"]
    check_law(sender)


def test_no_memory_for_the_headers_leaves_the_queue_as_it_was(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender.try_queue_packet(b"x", A)
    fail_once(monkeypatch, scripted.ScriptedOutgoing, "send")
    with pytest.raises(MemoryError):
        sender.try_flush_best_effort()
    check_law(sender)
    sender.try_flush_best_effort()
    assert kernel.payloads == [b"x"]


# -- addresses


@pytest.mark.parametrize(
    "slip", [("127.0.0.1", 9.0), ("127.0.0.1", True), ["127.0.0.1", 9], ("127.0.0.1", 9 + 0j)]
)
@pytest.mark.parametrize("real", [("127.0.0.1", 9), ("127.0.0.1", 1)])
def test_what_only_equals_an_address_is_none(
    sender: UdpBatchSender, slip: object, real: Address
) -> None:
    """Also while an equal one is queued, and right after it."""
    sender.try_queue_packet(b"x", real)
    with pytest.raises(TypeError):
        sender.try_queue_packet(b"y", slip)  # type: ignore[arg-type]
    sender.try_flush_best_effort()
    with pytest.raises(TypeError):
        sender.try_queue_packet(b"y", slip)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        sender.send_nowait(PacketBatch([PacketTrain(b"z", 1, A)]).to(slip))  # type: ignore[call-overload]
    assert sender.is_empty


SPELLINGS: dict[str, list[Address | None]] = {
    "IPv6": [("::1", 9), ("::1", 9, 0, 0), ("0:0:0:0:0:0:0:1", 9), ("0::1", 9, 0, 0)],
    "mapped": [("127.0.0.1", 9), ("::ffff:127.0.0.1", 9), ("::ffff:7f00:1", 9, 0, 0)],
}


@pytest.mark.parametrize("kind", SPELLINGS)
@given(data=st.data())
def test_one_peer_is_one_queue_however_it_is_spelled(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, kind: str, data: st.DataObject
) -> None:
    """What is queued for one peer leaves in order, and as one train."""
    kernel.sent.clear()
    with ends.bound_socket("::") as sock:
        sender = UdpBatchSender(sock)
        for number in range(12):
            target = data.draw(st.sampled_from(SPELLINGS[kind]))
            sender.try_queue_packet(b"%02d" % number, target)
            sender.try_queue_packet(b"..", ("2001:db8::1", 9))
        sender.try_flush_best_effort()
    to_peer = [payload for payload, _ in kernel.sent if payload != b".."]
    assert to_peer == [b"%02d" % number for number in range(12)]
    if sender.gso:
        assert sender.statistics().trains_sent == 2


def test_single_datagrams_of_a_batch_to_one_peer_are_one_train_however_it_is_spelled(
    kernel: scripted.ScriptedKernel,
) -> None:
    spelled: list[Address] = [("::1", 9), ("::1", 9, 0, 0), ("::1", 9)]
    with ends.bound_socket("::") as sock:
        sender = UdpBatchSender(sock)
        sender.send_nowait(
            PacketBatch([PacketTrain(b"x%d" % n, 2, a) for n, a in enumerate(spelled)])
        )
        assert kernel.payloads == [b"x0", b"x1", b"x2"]
        assert sender.statistics().trains_sent == (1 if sender.gso else 3)


def test_the_connected_peer_is_one_peer_by_name_and_without(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    sock, peer = udp(), udp()
    sock.connect(peer.getsockname())
    sender = UdpBatchSender(sock)
    for number, target in enumerate([None, peer.getsockname(), A, None, peer.getsockname()]):
        sender.try_queue_packet(b"%d" % number, target)
    sender.try_flush_best_effort()
    assert [p for p, address in kernel.sent if address != A] == [b"0", b"1", b"3", b"4"]


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("how", ["packets", "batch"])
def test_the_connected_peer_is_who_it_is_now(
    backend: str, udp: ends.MakeSocket, how: str, first: bool, used_before: bool
) -> None:
    """The owner of the socket connects it to another peer: what is for both is kept apart."""
    sock, former, peer = udp(), udp(), udp()
    sock.connect(former.getsockname())
    sender = UdpBatchSender(sock)
    if used_before:
        sender.try_queue_packet(b"former", None)
        sender.try_flush_best_effort()
        assert ends.read_plainly(former, 1) == [b"former"]
    sock.connect(peer.getsockname())
    packets = [(b"former", ends.address_of(former)), (b"peer", None)][:: 1 if first else -1]
    packets = [(packet.ljust(6), target) for packet, target in packets]
    if how == "packets":
        for packet, target in packets:
            sender.try_queue_packet(packet, target)
        sender.try_flush_best_effort()
    else:
        sender.send_nowait(PacketBatch([PacketTrain(p, 6, target) for p, target in packets]))
    assert ends.read_plainly(peer, 1) == [b"peer  "]
    assert ends.read_plainly(former, 1) == [b"former"]


# -- other tasks


async def test_what_two_tasks_queue_and_flush_is_sent_when_either_returns(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    async def other() -> None:
        sender.try_queue_packet(b"second", A)
        await sender.flush()
        assert kernel.payloads.count(b"second") == round_number

    for round_number in range(1, 20):  # which of them runs first is the scheduler's choice
        sender.try_queue_packet(b"first", A)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await sender.flush()
            assert kernel.payloads.count(b"first") == round_number
        assert sender.is_empty
    assert kernel.payloads.count(b"second") == round_number


@pytest.mark.parametrize("blocked", [0, 1, 2])
@pytest.mark.parametrize("call", ["flush", "send"])
async def test_nothing_is_stranded_whenever_another_task_queues(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, call: str, blocked: int
) -> None:
    """Also with a socket that is full now and then, and with others who queue at each step."""
    kernel.sends += [1, *[-errno.EAGAIN] * blocked] * 4
    kernel.waits.always_writable = True
    queued = 0
    flushing = True

    async def others(name: bytes) -> None:
        nonlocal queued
        while queued < 40:
            sender.try_queue_packet(name, B)
            queued += 1
            await sender.flush()
            if not flushing:
                break

    async with trio.open_nursery() as nursery:
        sender.try_queue_packet(b"first", A)
        nursery.start_soon(others, b"other")
        if call == "flush":
            await sender.flush()
        else:
            await sender.send(PacketBatch([PacketTrain(b"batch", 5, A)]))
        flushing = False
        assert kernel.payloads[0] == b"first"
        assert call == "flush" or b"batch" in kernel.payloads
    assert sender.is_empty
    assert kernel.payloads.count(b"other") == queued > 0
    check_law(sender)


def test_a_refused_packet_in_between_strands_nothing(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    def refuse(first: OutgoingMessage) -> int:
        return -errno.EACCES if first.address == B else 1

    kernel.sends += [refuse] * 20
    for number in range(4):
        sender.try_queue_packet(b"%d" % number, (A, B)[number % 2])
    with pytest.raises(SendBatchError):
        sender.try_flush_best_effort()
    assert kernel.payloads == [b"0", b"2"]
    assert sender.is_empty
