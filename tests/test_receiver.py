# UdpBatchReceiver on real sockets: what a batch brings, what a handler gets, what is counted.
#
# How it waits, closes and is cancelled is in test_trio_rules; GRO and its like in test_offloads.

from __future__ import annotations

import errno
import socket
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import (
    PacketBufPool,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
)
from snaptun_trio._kernel import _abi, _portable

from . import ends, scripted

if TYPE_CHECKING:
    from snaptun_trio import Address

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")


# -- what a batch brings


@pytest.mark.core
def test_everything_that_is_queued_comes_in_order(pair: ends.Pair, udp: ends.MakeSocket) -> None:
    packets = ends.numbered(50, 100)
    sock = udp()
    for packet in packets:
        sock.sendto(packet, pair.target)
    assert ends.collect(pair.receiver, 50) == [(packet, sock.getsockname()) for packet in packets]


@pytest.mark.core
def test_one_call_brings_what_is_queued(linux_backend: None, udp: ends.MakeSocket) -> None:
    incoming, outgoing = udp(), udp()
    receiver = UdpBatchReceiver(incoming)
    for packet in ends.numbered(50, 100):
        outgoing.sendto(packet, ends.address_of(incoming))
    assert len(ends.collect(receiver, 50)) == 50
    assert receiver.statistics().receive_calls < 25


def test_no_call_brings_more_messages_than_batch_size(backend: str, udp: ends.MakeSocket) -> None:
    incoming, outgoing = udp(), udp()
    receiver = UdpBatchReceiver(incoming, batch_size=3)
    for packet in ends.numbered(10, 10):
        outgoing.sendto(packet, ends.address_of(incoming))
    batches = ends.collect_batches(receiver, 10)
    assert max(len(batch.trains) for batch in batches) <= 3
    assert receiver.batch_size == 3


@pytest.mark.parametrize("waiting", [63, 64, 65])
def test_the_portable_backend_knows_when_a_call_brought_as_much_as_it_can(
    waiting: int, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that is offered more than that does not take it for all that there was."""
    receive_message = _portable._receive_message
    left = waiting

    def patiently(sock: socket.socket, buffer: memoryview) -> object:
        nonlocal left
        if left:
            left -= 1
            ends.wait_until_readable(sock)
        return receive_message(sock, buffer)

    monkeypatch.setenv("SNAPTUN_TRIO_BACKEND", "portable")
    source, target = udp(), udp()
    receiver = UdpBatchReceiver(target, gro=False)
    source.sendto(b"the first, after which more are offered", ends.address_of(target))
    ends.collect(receiver, 1)
    monkeypatch.setattr(_portable, "_receive_message", patiently)
    for _ in range(waiting):
        source.sendto(b"x", ends.address_of(target))
    assert len(receiver.receive_nowait()) == min(waiting, 64)
    assert receiver._filled == (waiting >= 64)


def test_the_sizes_of_earlier_datagrams_change_nothing(
    pair: ends.Pair, udp: ends.MakeSocket
) -> None:
    """The number of messages that a call is offered follows the traffic; the datagrams do not."""
    sock = udp()
    for size in (9000, 10, 9000, 10):
        packets = ends.numbered(20, size)
        for packet in packets:
            sock.sendto(packet, pair.target)
        assert ends.payloads(pair.receiver, 20) == packets


def test_receive_nowait_says_when_nothing_is_there(pair: ends.Pair) -> None:
    with pytest.raises(trio.WouldBlock):
        pair.receiver.receive_nowait()


async def test_receive_waits_for_the_first_datagram(pair: ends.Pair, nursery: trio.Nursery) -> None:
    async def send_one() -> None:
        await trio.testing.wait_all_tasks_blocked()
        pair.sender.try_queue_packet(b"late", pair.target)
        pair.sender.try_flush_best_effort()

    nursery.start_soon(send_one)
    with trio.fail_after(ends.PATIENCE):
        assert list(await pair.receiver.receive()) == [(b"late", pair.source)]


async def test_a_receiver_is_a_channel_that_can_be_iterated(pair: ends.Pair) -> None:
    assert isinstance(pair.receiver, trio.abc.ReceiveChannel)
    for number in range(3):
        pair.sender.try_queue_packet(b"%d" % number, pair.target)
    pair.sender.try_flush_best_effort()
    seen: list[bytes] = []
    with pytest.raises(trio.ClosedResourceError), trio.fail_after(ends.PATIENCE):
        async for batch in pair.receiver:
            seen += [packet for packet, _ in batch]
            if len(seen) == 3:
                pair.receiver.close()
    assert seen == [b"0", b"1", b"2"]


async def test_a_trio_socket_will_do_as_well(backend: str) -> None:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        await sock.bind(("127.0.0.1", 0))
        receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
        assert receiver.socket is sender.socket is sock
        sender.try_queue_packet(b"to myself", sock.getsockname())
        await sender.flush()
        with trio.fail_after(ends.PATIENCE):
            assert list(await receiver.receive()) == [(b"to myself", sock.getsockname())]


# -- handlers


@pytest.mark.core
async def test_a_handler_gets_each_datagram_of_one_receive(pair: ends.Pair) -> None:
    packets = [b"a", b"bb", b"", b"dddd"]
    for packet in packets:
        pair.sender.try_queue_packet(packet, pair.target)
    await pair.sender.flush()
    found: ends.Datagrams = []
    with trio.fail_after(ends.PATIENCE):
        while len(found) < 4:
            await pair.receiver.recv_batch(lambda packet, address: found.append((packet, address)))
    assert found == [(packet, pair.source) for packet in packets]


@pytest.mark.parametrize("raised_at", [0, 3, 9])
async def test_what_a_raising_handler_did_not_get_to_comes_next(
    pair: ends.Pair, raised_at: int
) -> None:
    packets = ends.numbered(10, 100)
    await pair.sender.send(ends.batch_of(packets, pair.target))
    found: list[bytes] = []

    def handler(packet: bytes, address: Address | None) -> None:
        found.append(packet)
        if len(found) == raised_at + 1:
            raise KeyError("a fault of the program")

    with trio.fail_after(ends.PATIENCE), pytest.raises(KeyError, match="a fault"):
        while True:
            await pair.receiver.recv_batch(handler)
    assert found == packets[: raised_at + 1]
    statistics = pair.receiver.statistics()
    assert statistics.datagrams_received == (
        statistics.datagrams_delivered + statistics.datagrams_held
    )
    if raised_at < 9:
        rest = ends.collect(pair.receiver, 9 - raised_at)
        assert rest == [(packet, pair.source) for packet in packets[raised_at + 1 :]]
    assert pair.receiver.statistics().datagrams_held == 0
    assert pair.receiver.statistics().datagrams_delivered == 10


def test_the_rest_of_a_train_keeps_what_was_told_of_it(
    pair: ends.Pair, monkeypatch: pytest.MonkeyPatch, udp: ends.MakeSocket
) -> None:
    kernel = scripted.install(monkeypatch)
    train = PacketTrain(
        b"aabbcc",
        2,
        ("192.0.2.1", 9),
        ecn=1,
        local_address="192.0.2.2",
        interface_index=3,
        timestamp_ns=4,
    )
    kernel.receives.append([PacketTrain(b"0", 1, None), train, train.to(None)])
    receiver = UdpBatchReceiver(udp())

    def handler(packet: bytes, address: Address | None) -> None:
        if packet == b"bb":
            raise ZeroDivisionError

    async def main() -> None:
        await receiver.recv_batch(handler)

    with pytest.raises(ZeroDivisionError):
        trio.run(main)
    (rest,) = ends.collect_batches(receiver, 4)
    assert rest.trains[0] == PacketTrain(
        b"cc",
        2,
        ("192.0.2.1", 9),
        ecn=1,
        local_address="192.0.2.2",
        interface_index=3,
        timestamp_ns=4,
    )
    assert rest.trains[1] == train.to(None)


# -- errors about earlier datagrams


@linux_only
def test_a_refusal_of_an_earlier_datagram_ends_nothing(backend: str, udp: ends.MakeSocket) -> None:
    sock, peer = udp(), udp()
    receiver = UdpBatchReceiver(sock)
    sock.connect(ends.deafen(udp()))
    sock.send(b"nobody listens")
    with pytest.raises(trio.WouldBlock):
        receiver.receive_nowait()
    assert dict(receiver.statistics().asynchronous_errors) == {errno.ECONNREFUSED: 1}
    sock.connect(peer.getsockname())
    peer.sendto(b"hello", sock.getsockname())
    assert ends.payloads(receiver, 1) == [b"hello"]


def test_an_error_of_the_socket_itself_is_raised(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = scripted.install(monkeypatch)
    receiver = UdpBatchReceiver(udp())
    kernel.receives += [-errno.ENOMEM, [PacketTrain(b"x", 1, None)]]
    with pytest.raises(OSError, match="memory"):
        receiver.receive_nowait()
    assert ends.payloads(receiver, 1) == [b"x"]


def test_a_storm_of_errors_does_not_keep_the_others_waiting(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = scripted.install(monkeypatch)
    kernel.waits.always_ready = True
    receiver = UdpBatchReceiver(udp())
    kernel.receives += [-errno.ECONNREFUSED] * 1000
    kernel.receives.append([PacketTrain(b"x", 1, None)])

    async def main() -> None:
        assert len(await receiver.receive()) == 1

    trio.run(main)
    assert receiver.statistics().asynchronous_errors[errno.ECONNREFUSED] == 1000
    assert kernel.waits.begun >= 10


def test_a_late_error_is_counted_and_its_datagrams_delivered(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The portable backend gets datagrams first and an error after them, in one call."""
    monkeypatch.setenv("SNAPTUN_TRIO_BACKEND", "portable")
    real = _portable._receive_message
    calls = []

    def second_fails(plain: socket.socket, slot: memoryview) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        return real(plain, slot)

    monkeypatch.setattr(_portable, "_receive_message", second_fails)
    incoming, outgoing = udp(), udp()
    receiver = UdpBatchReceiver(incoming)
    outgoing.sendto(b"x", incoming.getsockname())
    assert ends.payloads(receiver, 1) == [b"x"]
    assert receiver.statistics().asynchronous_errors == {errno.ECONNREFUSED: 1}


# -- datagrams that do not fit


def test_a_datagram_that_does_not_fit_is_delivered_cut_and_counted(
    backend: str, udp: ends.MakeSocket
) -> None:
    incoming, outgoing = udp(), udp()
    receiver = UdpBatchReceiver(incoming, PacketBufPool(100), gro=False)
    for packet in (bytes(100), b"x" * 250, b"after"):
        outgoing.sendto(packet, ends.address_of(incoming))
    batches = ends.collect_batches(receiver, 3)
    found = [packet for batch in batches for packet, _ in batch]
    assert found == [bytes(100), b"x" * 100, b"after"]
    assert sum(batch.truncated for batch in batches) == 1
    assert batches[0].to(None).truncated == batches[0].truncated
    statistics = receiver.statistics()
    assert statistics.datagrams_truncated == 1
    assert statistics.datagrams_received == statistics.datagrams_delivered == 3
    assert statistics.datagrams_lost_to_truncation == 0
    if sys.platform == "linux":
        assert statistics.bytes_lost_to_truncation == 150


@pytest.mark.needs_gso
@pytest.mark.needs_gro
def test_what_a_short_buffer_loses_of_a_train_is_counted_to_the_datagram(
    backend: str, udp: ends.MakeSocket
) -> None:
    """Somebody else has switched GRO on, and the pool's buffers are too small for it."""
    incoming, outgoing = udp(), udp()
    incoming.setsockopt(ends.SOL_UDP, ends.UDP_GRO, 1)
    receiver = UdpBatchReceiver(incoming, PacketBufPool(250), gro=False)
    packets = ends.numbered(10, 100)
    UdpBatchSender(outgoing).send_nowait(ends.batch_of(packets, ends.address_of(incoming)))
    (batch,) = ends.collect_batches(receiver, 3)
    assert [packet for packet, _ in batch] == [packets[0], packets[1], packets[2][:50]]
    assert batch.truncated == 1
    statistics = receiver.statistics()
    assert statistics.datagrams_received == 3
    assert statistics.datagrams_truncated == 1
    assert statistics.datagrams_lost_to_truncation == 7
    assert statistics.bytes_lost_to_truncation == 750


@pytest.mark.needs_gso
@pytest.mark.needs_gro
def test_a_train_whose_boundaries_are_unknown_is_not_guessed_at(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With too little room for control messages the kernel cuts off the one that tells them."""
    monkeypatch.setenv("SNAPTUN_TRIO_BACKEND", "portable")
    monkeypatch.setattr(_abi, "CONTROL_SIZE", 32)
    incoming, outgoing = udp(), udp()
    pool = PacketBufPool()
    receiver = UdpBatchReceiver(incoming, pool, timestamps=True)
    with UdpBatchSender(outgoing) as sender:
        target = ends.address_of(incoming)
        sender.send_nowait(ends.batch_of([b"aa", b"bb"], target))
        sender.send_nowait(ends.batch_of([b"single"], target))
    ends.wait_until_readable(incoming)
    found: list[bytes] = []
    while receiver.statistics().trains_with_unknown_boundaries + len(found) < 2:
        try:
            found += [packet for packet, _ in receiver.receive_nowait()]
        except trio.WouldBlock:
            continue
    assert b"aabb" not in found
    assert receiver.statistics().trains_with_unknown_boundaries >= 1
    assert receiver.statistics().bytes_with_unknown_boundaries >= 4
    assert pool.statistics().slabs_in_use == 0


# -- statistics


def test_the_counters_add_up(pair: ends.Pair) -> None:
    packets = [*ends.numbered(20, 100), b"", b"tail"]
    for packet in packets:
        pair.sender.try_queue_packet(packet, pair.target)
    pair.sender.try_flush_best_effort()
    assert ends.payloads(pair.receiver, 22) == packets
    statistics = pair.receiver.statistics()
    assert statistics.datagrams_received == statistics.datagrams_delivered == 22
    assert statistics.bytes_received == 2004
    assert 1 <= statistics.receive_calls <= statistics.trains_received <= 22
    assert statistics.receive_buffer_size > 0
    assert statistics.datagrams_truncated == statistics.datagrams_held == 0


@linux_only
def test_what_the_kernel_drops_is_counted_in_buffers(backend: str, udp: ends.MakeSocket) -> None:
    incoming, outgoing = udp(receive_buffer=1), udp()
    outgoing.sendto(b"before the receiver", incoming.getsockname())
    for _ in range(20):
        outgoing.sendto(bytes(1000), incoming.getsockname())
    receiver = UdpBatchReceiver(incoming)
    assert receiver.statistics().buffers_dropped_by_kernel == 0
    for _ in range(20):
        outgoing.sendto(bytes(1000), incoming.getsockname())
    dropped = receiver.statistics().buffers_dropped_by_kernel
    assert dropped is not None
    assert 15 <= dropped <= 20


def test_statistics_of_a_closed_socket_can_still_be_asked_for(
    backend: str, udp: ends.MakeSocket
) -> None:
    sock = udp()
    receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
    sock.close()
    assert receiver.statistics().buffers_dropped_by_kernel is None
    assert receiver.statistics().receive_buffer_size == 0
    assert sender.statistics().send_buffer_size == 0
