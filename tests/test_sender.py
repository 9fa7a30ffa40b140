# UdpBatchSender: the queue and what each call leaves in it.
#
# What a refusal of the kernel means is in test_sender_errors, waiting and closing in
# test_trio_rules.

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, strategies as st

from snaptun_trio import (
    Address,
    PacketBatch,
    PacketTooLargeError,
    PacketTrain,
    QueueFullError,
    UdpBatchSender,
)

from . import ends, scripted

if TYPE_CHECKING:
    from collections.abc import Callable

HERE: Address = ("127.0.0.1", 9)
THERE: Address = ("127.0.0.2", 9)


@pytest.fixture
def sender(kernel: scripted.ScriptedKernel, udp: ends.MakeSocket) -> UdpBatchSender:
    return UdpBatchSender(udp(), batch_size=8)


def check_law(sender: UdpBatchSender) -> None:
    """Every datagram that was ever submitted is accounted for once."""
    statistics = sender.statistics()
    assert statistics.datagrams_submitted == (
        statistics.datagrams_sent
        + statistics.datagrams_failed
        + statistics.datagrams_queued
        + statistics.datagrams_discarded
    )
    assert statistics.datagrams_failed == sum(statistics.failures.values())
    assert sender.is_empty == (statistics.datagrams_queued == 0)


# -- queueing


def test_any_bytes_like_object_is_a_packet(pair: ends.Pair) -> None:
    packets: list[bytes | bytearray | memoryview] = [
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"a view"),
        memoryview(b"wider items!").cast("I"),
        memoryview(bytearray(b"sliced"))[2:4],
    ]
    for packet in packets:
        pair.sender.try_queue_packet(packet, pair.target)
    pair.sender.try_flush_best_effort()
    ends.expect_only(pair, [bytes(packet) for packet in packets])


def test_a_queued_packet_is_not_copied(sender: UdpBatchSender) -> None:
    packet = bytearray(b"one")
    sender.try_queue_packet(packet, HERE)
    with pytest.raises(BufferError):
        packet.append(0)
    sender.try_flush_best_effort()
    packet.append(0)


def test_queueing_sends_nothing(sender: UdpBatchSender, kernel: scripted.ScriptedKernel) -> None:
    sender.try_queue_packet(b"x", HERE)
    sender.try_queue_train(PacketTrain(b"yz", 1, HERE))
    assert not kernel.calls
    assert sender.statistics().datagrams_queued == 3
    check_law(sender)


def test_packets_and_trains_for_one_target_keep_their_order(pair: ends.Pair) -> None:
    train = PacketTrain(b"ccccdddde", 4, pair.target)
    pair.sender.try_queue_packet(b"aaaa", pair.target)
    pair.sender.try_queue_packet(b"bbbb", pair.target)
    pair.sender.try_queue_train(train)
    pair.sender.try_queue_packet(b"ffff", pair.target)
    pair.sender.try_flush_best_effort()
    ends.expect_only(pair, [b"aaaa", b"bbbb", b"cccc", b"dddd", b"e", b"ffff"])


def test_none_is_the_connected_peer(backend: str, udp: ends.MakeSocket) -> None:
    outgoing, incoming = udp(), udp()
    outgoing.connect(incoming.getsockname())
    sender = UdpBatchSender(outgoing)
    sender.try_queue_packet(b"packet", None)
    sender.try_queue_train(PacketTrain(b"train", 3, None))
    sender.try_flush_best_effort()
    sender.send_nowait(PacketBatch([PacketTrain(b"batch", 5, ("192.0.2.1", 9))]).to(None))
    assert ends.read_plainly(incoming, 4) == [b"packet", b"tra", b"in", b"batch"]


def test_a_train_fits_if_there_is_room_for_all_of_it(sender: UdpBatchSender) -> None:
    sender.try_queue_packet(b"1", HERE)
    sender.try_queue_train(PacketTrain(b"2345678", 1, HERE))
    assert sender.is_full
    refused = PacketTrain(b"9", 1, THERE)
    with pytest.raises(QueueFullError) as error:
        sender.try_queue_train(refused)
    assert (error.value.packet, error.value.address) == (b"9", THERE)
    assert sender.statistics().datagrams_queued == 8


def test_a_train_longer_than_the_queue_fits_into_an_empty_one(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    train = PacketTrain(bytes(100), 1, HERE)
    sender.try_queue_train(train)
    assert sender.is_full
    sender.try_flush_best_effort()
    assert kernel.payloads == list(train)


def test_a_train_of_datagrams_that_are_too_large_is_refused(udp: ends.MakeSocket) -> None:
    sender = UdpBatchSender(udp(), max_packet_size=10)
    assert sender.max_packet_size == 10
    sender.try_queue_train(PacketTrain(bytes(30), 10, HERE))
    sender.try_queue_train(PacketTrain(bytes(10), 1000, HERE))
    with pytest.raises(PacketTooLargeError) as error:
        sender.try_queue_train(PacketTrain(bytes(30), 11, HERE))
    assert (error.value.packet_len, error.value.max_packet_size) == (11, 10)
    assert error.value.packet == bytes(30)


WRONG: list[tuple[Callable[[Any], Any], type[Exception]]] = [
    (lambda s: s.try_queue_packet(b"x", ("localhost", 9)), ValueError),
    (lambda s: s.try_queue_packet(b"x", ("::1", 9, 0, 0)), ValueError),
    (lambda s: s.try_queue_packet(b"x", "127.0.0.1"), TypeError),
    (lambda s: s.try_queue_packet(b"x", ("127.0.0.1", [])), TypeError),
    (lambda s: s.try_queue_packet("text", HERE), TypeError),
    (lambda s: s.try_queue_packet(memoryview(b"abcd")[::2], HERE), TypeError),
    (lambda s: s.try_queue_train(b"x"), TypeError),
    (lambda s: s.try_queue_train(PacketTrain(b"x", 1, ("::1", 9))), ValueError),
    (lambda s: s.try_queue_train(PacketTrain(b"x", 1, HERE, local_address="::1")), ValueError),
    (lambda s: s.try_queue_train(PacketTrain(b"x", 1, None, local_address="lo")), ValueError),
    (lambda s: s.send_nowait(PacketTrain(b"x", 1, HERE)), TypeError),
    (lambda s: s.send_nowait(PacketBatch([PacketTrain(b"x", 1, ("::1", 9))])), ValueError),
    (lambda s: s.send_nowait(PacketBatch([PacketTrain(b"x", 1, HERE)]).to(("a", 1))), ValueError),
    (
        lambda s: s.send_nowait(
            PacketBatch(
                [PacketTrain(b"x", 1, HERE), PacketTrain(b"y", 1, HERE, local_address="::1")]
            )
        ),
        ValueError,
    ),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_said_to_the_kernel_is_refused_before_it_is_queued(
    pair: ends.Pair, wrong: tuple[Callable[[Any], Any], type[Exception]]
) -> None:
    call, error = wrong
    with pytest.raises(error):
        call(pair.sender)
    assert pair.sender.is_empty
    assert pair.sender.statistics().datagrams_submitted == 0
    pair.sender.try_queue_packet(b"the next one", pair.target)
    pair.sender.try_flush_best_effort()
    ends.expect_only(pair, [b"the next one"])


def test_a_batch_from_a_socket_of_another_family_is_refused_before_it_is_queued(
    backend: str, udp: ends.MakeSocket
) -> None:
    with ends.make_pair(udp("::1"), udp("::1")) as pair:
        pair.sender.try_queue_packet(b"x", pair.target)
        pair.sender.try_flush_best_effort()
        (batch,) = ends.collect_batches(pair.receiver, 1)
    sender = UdpBatchSender(udp())
    with pytest.raises(ValueError, match="IPv4"):
        sender.send_nowait(batch)
    assert sender.is_empty


@pytest.mark.parametrize("size", [0, -1, 65_528])
def test_a_max_packet_size_out_of_range_is_a_value_error(udp: ends.MakeSocket, size: int) -> None:
    with pytest.raises(ValueError, match="max_packet_size"):
        UdpBatchSender(udp(), max_packet_size=size)
    with pytest.raises(TypeError, match="max_packet_size"):
        UdpBatchSender(udp(), max_packet_size=float(size))  # type: ignore[arg-type]


def test_a_socket_without_a_port_is_a_value_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        with pytest.raises(ValueError, match="bound"):
            UdpBatchSender(sock)


# -- sending what fits


def test_a_full_socket_stops_a_best_effort_flush(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    kernel.sends += [1, -errno.EAGAIN]
    for target in (HERE, THERE):
        sender.try_queue_packet(b"x", target)
    with pytest.raises(trio.WouldBlock):
        sender.try_flush_best_effort()
    assert kernel.sent == [(b"x", HERE)]
    check_law(sender)
    sender.try_flush_best_effort()
    assert kernel.sent == [(b"x", HERE), (b"x", THERE)]
    assert sender.is_empty


def test_what_is_queued_later_waits_behind_what_is_half_sent(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    kernel.sends += [1, -errno.EAGAIN]
    sender.try_queue_train(PacketTrain(b"aabbcc", 2, HERE))
    sender.try_queue_packet(b"dd", THERE)
    with pytest.raises(trio.WouldBlock):
        sender.try_flush_best_effort()
    sender.try_queue_packet(b"ee", THERE)
    sender.try_queue_packet(b"ff", HERE)
    sender.try_flush_best_effort()
    to_here = [packet for packet, address in kernel.sent if address == HERE]
    to_there = [packet for packet, address in kernel.sent if address == THERE]
    assert to_here == [b"aa", b"bb", b"cc", b"ff"]
    assert to_there == [b"dd", b"ee"]
    check_law(sender)


@given(
    steps=st.lists(st.integers(1, 5) | st.just(-errno.EAGAIN), max_size=12),
    lengths=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 9)), min_size=1, max_size=6),
    gso=st.booleans(),
)
def test_however_often_the_socket_is_full_everything_goes_once_and_in_order(
    udp: ends.MakeSocket,
    steps: list[int],
    lengths: list[tuple[int, int]],
    gso: bool,
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        kernel = scripted.install(monkeypatch)
        sender = UdpBatchSender(udp(), gso=gso)
    kernel.waits.always_writable = True
    kernel.sends += steps
    trains = [
        PacketTrain(bytes([number]) * length, size, HERE if number % 2 else THERE)
        for number, (length, size) in enumerate(lengths)
    ]
    pending = [PacketBatch(trains), PacketBatch(trains).to(HERE)]
    expected = [datagram for batch in pending for datagram in batch]
    while pending or not sender.is_empty:
        try:
            if pending:
                sender.send_nowait(pending[0])
                del pending[0]
            else:
                sender.try_flush_best_effort()
        except trio.WouldBlock:
            pass
        check_law(sender)
    for target in (HERE, THERE):
        sent, wanted = ([p for p, to in each if to == target] for each in (kernel.sent, expected))
        assert sent == wanted


def test_send_nowait_accepts_nothing_while_the_socket_is_full(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    batch = PacketBatch([PacketTrain(b"aabb", 2, HERE)])
    kernel.sends.append(-errno.EAGAIN)
    with pytest.raises(trio.WouldBlock):
        sender.send_nowait(batch)
    assert sender.is_empty
    assert sender.statistics().datagrams_submitted == 0
    sender.try_queue_packet(b"queued", THERE)
    kernel.sends.append(-errno.EAGAIN)
    with pytest.raises(trio.WouldBlock):
        sender.send_nowait(batch)
    assert sender.statistics().datagrams_queued == 1
    kernel.sends += [1, -errno.EAGAIN]
    with pytest.raises(trio.WouldBlock):
        sender.send_nowait(batch)
    assert sender.is_empty
    sender.send_nowait(batch)
    assert kernel.payloads == [b"queued", b"aa", b"bb"]
    check_law(sender)


def test_send_nowait_accepts_a_batch_of_which_a_part_went(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    kernel.sends += [1, -errno.EAGAIN]
    sender.send_nowait(PacketBatch([PacketTrain(b"a", 1, HERE), PacketTrain(b"b", 1, THERE)]))
    assert kernel.payloads == [b"a"]
    assert sender.statistics().datagrams_queued == 1
    sender.try_flush_best_effort()
    assert kernel.payloads == [b"a", b"b"]


@pytest.mark.core
async def test_send_takes_a_batch_of_any_length(pair: ends.Pair, nursery: trio.Nursery) -> None:
    packets = ends.numbered(3000, 50)
    batch = PacketBatch([PacketTrain(packet, 50, pair.target) for packet in packets])
    nursery.start_soon(pair.sender.send, batch)
    found: list[bytes] = []
    with trio.fail_after(ends.PATIENCE):
        while len(found) < 64:
            found += [packet for packet, _ in await pair.receiver.receive()]
    assert found == packets[: len(found)]
    nursery.cancel_scope.cancel()


async def test_a_batch_is_sent_behind_what_is_queued(pair: ends.Pair) -> None:
    pair.sender.try_queue_packet(b"first", pair.target)
    await pair.sender.send(ends.batch_of([b"second", b"third"], pair.target))
    ends.expect_only(pair, [b"first", b"second", b"third"])


async def test_an_empty_batch_is_nothing(pair: ends.Pair) -> None:
    await pair.sender.send(PacketBatch([]))
    pair.sender.send_nowait(PacketBatch([]))
    pair.sender.try_flush_best_effort()
    assert pair.sender.statistics().send_calls == 0


# -- closing and counting


def test_close_discards_and_counts_what_is_queued(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    sender.try_queue_packet(b"x", HERE)
    sender.try_queue_train(PacketTrain(b"yz", 1, THERE))
    with sender:
        pass
    sender.close()
    assert sender.is_empty
    assert sender.statistics().datagrams_discarded == 3
    assert not kernel.calls
    check_law(sender)


def test_the_counters_say_what_was_sent(pair: ends.Pair) -> None:
    packets = ends.numbered(20, 100)
    pair.sender.send_nowait(ends.batch_of(packets, pair.target))
    statistics = pair.sender.statistics()
    assert statistics.datagrams_submitted == statistics.datagrams_sent == 20
    assert statistics.bytes_sent == 2000
    assert statistics.trains_sent == (1 if pair.sender.gso else 20)
    assert statistics.send_calls >= 1
    assert statistics.send_buffer_size > 0
    assert statistics.gso == pair.sender.gso
    ends.expect_only(pair, packets)
    assert pair.sender.batch_size == 64
    check_law(pair.sender)


def test_a_long_queue_lets_others_run_in_between(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    """A send of several thousand messages is several turns for the other tasks."""
    kernel.sends += [500] * 12
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            trains = [PacketTrain(b"x", 1, ("127.0.0.1", n + 1)) for n in range(6000)]
            await sender.send(PacketBatch(trains))
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert len(kernel.sent) == 6000
    assert turns >= 2
