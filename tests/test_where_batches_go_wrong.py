# Seven places where a batched UDP module easily goes wrong, right here: each on real sockets.

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import (
    Address,
    PacketBatch,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import ends
from .faults import netns, own_process

if TYPE_CHECKING:
    from collections.abc import Iterator


# -- 1. more for one target than a UDP payload can hold


@pytest.mark.core
def test_64_packets_of_1200_bytes_for_one_target_all_arrive(pair: ends.Pair) -> None:
    packets = ends.numbered(64, 1200)
    for packet in packets:
        pair.sender.try_queue_packet(packet, pair.target)
    pair.sender.try_flush_best_effort()
    assert pair.sender.is_empty
    ends.expect_only(pair, packets)


@pytest.mark.core
def test_after_64_packets_of_1200_bytes_other_peers_are_served(
    pair: ends.Pair, udp: ends.MakeSocket
) -> None:
    other = udp()
    packets = ends.numbered(64, 1200)
    for _ in range(2):
        for packet in packets:
            pair.sender.try_queue_packet(packet, pair.target)
        pair.sender.try_flush_best_effort()
        ends.expect_only(pair, packets)
        pair.sender.try_queue_packet(b"hello", ends.address_of(other))
        pair.sender.try_flush_best_effort()
        assert ends.read_plainly(other, 1) == [b"hello"]


# -- 2. a datagram that can never be sent


@pytest.mark.core
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux refuses port 0 with EINVAL")
def test_a_packet_for_port_0_is_reported_and_the_good_ones_around_it_arrive(
    pair: ends.Pair,
) -> None:
    nowhere = ("127.0.0.1", 0)
    gso_before = pair.sender.gso
    pair.sender.try_queue_packet(b"good 1", pair.target)
    pair.sender.try_queue_packet(b"bad", nowhere)
    pair.sender.try_queue_packet(b"good 2", ("127.0.0.1", pair.target[1]))
    with pytest.raises(SendBatchError) as report:
        pair.sender.try_flush_best_effort()
    (failure,) = report.value.failures
    assert failure.error.errno == errno.EINVAL
    assert failure.train.address == nowhere
    assert list(failure.train) == [b"bad"]
    assert pair.sender.gso == gso_before
    assert pair.sender.is_empty
    ends.expect_only(pair, [b"good 1", b"good 2"])


@pytest.mark.core
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux refuses port 0 with EINVAL")
@pytest.mark.needs_gso
def test_a_train_for_port_0_does_not_switch_gso_off(pair: ends.Pair) -> None:
    packets = ends.numbered(10, 100)
    bad = ends.batch_of(packets, ("127.0.0.1", 0))
    good = ends.batch_of(packets, pair.target)
    with pytest.raises(SendBatchError) as report:
        pair.sender.send_nowait(PacketBatch([*good.trains, *bad.trains, *good.trains]))
    assert [list(failure.train) for failure in report.value.failures] == [packets]
    assert pair.sender.gso
    assert pair.sender.statistics().gso_fallbacks == 0
    ends.expect_only(pair, packets * 2)


# -- 3. a train that arrives in one piece


@pytest.mark.core
def test_a_train_of_40_x_1400_bytes_is_delivered_whole(pair: ends.Pair) -> None:
    packets = ends.numbered(40, 1400)
    pair.sender.send_nowait(ends.batch_of(packets, pair.target))
    if ends.kernel_knows(ends.UDP_GRO):
        (train,) = ends.collect_trains(pair.receiver, 40)
        assert (train.nbytes, train.segment_size) == (56_000, 1400)
        assert list(train) == packets
    else:
        assert ends.payloads(pair.receiver, 40) == packets
    assert pair.receiver.statistics().datagrams_truncated == 0


# -- 4. a handler that raises


@pytest.mark.core
async def test_a_handler_that_raises_at_the_third_of_ten_loses_nothing(pair: ends.Pair) -> None:
    packets = ends.numbered(10, 100)
    await pair.sender.send(ends.batch_of(packets, pair.target))
    found: list[bytes] = []

    def handler(packet: bytes, address: Address | None) -> None:
        found.append(packet)
        if len(found) == 3:
            raise LookupError("the third")

    with trio.fail_after(ends.PATIENCE):
        with pytest.raises(LookupError, match="the third"):
            while True:
                await pair.receiver.recv_batch(handler)
        assert found == packets[:3]
        while len(found) < 10:
            await pair.receiver.recv_batch(handler)
    assert found == packets


# -- 5. interleaved targets


@pytest.mark.core
def test_interleaved_targets_keep_their_order_and_get_trains(
    backend: str, udp: ends.MakeSocket
) -> None:
    sender = UdpBatchSender(udp(), batch_size=64)
    receivers = [UdpBatchReceiver(udp()) for _ in range(2)]
    packets = ends.numbered(30, 500)
    for packet in packets:
        for receiver in receivers:
            sender.try_queue_packet(packet, ends.address_of(receiver.socket))
    sender.try_flush_best_effort()
    for receiver in receivers:
        assert ends.payloads(receiver, 30) == packets
    if sender.gso:
        assert sender.statistics().trains_sent == 2


# -- 6. zero-length datagrams


@pytest.mark.core
@pytest.mark.parametrize(
    "packets",
    [
        [b""],
        [b"", b"", b""],
        [b"a", b"", b"b"],
        [b"", b"xx", b"xx", b"", b"x", b""],
    ],
    ids=["alone", "several", "between others", "around trains"],
)
async def test_zero_length_datagrams_are_sent_and_delivered(
    pair: ends.Pair, packets: list[bytes]
) -> None:
    for packet in packets:
        pair.sender.try_queue_packet(packet, pair.target)
    await pair.sender.flush()
    ends.expect_only(pair, packets)
    await pair.sender.send(ends.batch_of(packets, pair.target))
    ends.expect_only(pair, packets)


# -- 7. a socket that is full half-way


@pytest.fixture
def slow_network() -> None:
    """Skip where no network can be made whose device takes its time."""
    if sys.platform != "linux":
        pytest.skip("network namespaces are Linux's")
    problem = netns.why_no_network()
    if problem:
        pytest.skip(problem)


def make_network_slow() -> None:
    """Give this process a loopback device that takes seconds for what a test sends."""
    netns.enter_new_network()
    netns.attempt("tc qdisc add dev lo root tbf rate 200kbit burst 5kb limit 10mb")


def make_network_fast() -> None:
    netns.run("tc qdisc change dev lo root tbf rate 1gbit burst 200kb limit 10mb")


@contextlib.contextmanager
def slow_pair(*, gso: bool) -> Iterator[ends.Pair]:
    """A sender whose socket holds only a few datagrams, and a receiver, in a slow network."""
    make_network_slow()
    with ends.bound_socket() as outgoing, ends.bound_socket() as incoming:
        outgoing.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
        with ends.make_pair(outgoing, incoming, gso=gso, batch_size=400) as pair:
            yield pair


async def flush_and_read(pair: ends.Pair, count: int) -> list[bytes]:
    """Flush to the end, and everything that arrives until ``count`` datagrams are there."""
    found: list[bytes] = []
    with trio.fail_after(ends.PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.sender.flush)
            await trio.testing.wait_all_tasks_blocked(0)
            make_network_fast()
            while len(found) < count:
                found += [packet for packet, _ in await pair.receiver.receive()]
    return found


@pytest.mark.usefixtures("slow_network")
@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize("size", [300, 1200])
def test_a_flush_that_meets_a_full_socket_sends_everything_once(
    backend: str, size: int, gso: bool
) -> None:
    def body() -> None:
        with slow_pair(gso=gso) as pair:
            packets = [*ends.numbered(60, size), *ends.numbered(60, size + 4, start=60)]
            for packet in packets:
                pair.sender.try_queue_packet(packet, pair.target)
            with pytest.raises(trio.WouldBlock):
                pair.sender.try_flush_best_effort()
            assert 0 < pair.sender.statistics().datagrams_queued < 120, "it was to stop half-way"
            assert trio.run(flush_and_read, pair, 120) == packets
            assert pair.sender.is_empty
            assert ends.nothing_waits(pair.receiver)

    own_process.run_in_child(body)


async def cancel_at_the_first_wait(sender: UdpBatchSender) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.flush)
        await trio.testing.wait_all_tasks_blocked(0)
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("slow_network")
@pytest.mark.parametrize("gso", [True, False])
def test_a_cancelled_flush_leaves_exactly_the_unsent_rest(backend: str, gso: bool) -> None:
    def body() -> None:
        with slow_pair(gso=gso) as pair:
            packets = ends.numbered(120, 700)
            for packet in packets:
                pair.sender.try_queue_packet(packet, pair.target)
            trio.run(cancel_at_the_first_wait, pair.sender)
            statistics = pair.sender.statistics()
            left = statistics.datagrams_queued
            assert 0 < left < 120, "it was to be cancelled half-way"
            assert statistics.datagrams_sent == 120 - left
            assert trio.run(flush_and_read, pair, 120) == packets
            assert pair.sender.statistics().datagrams_sent == 120
            assert ends.nothing_waits(pair.receiver)

    own_process.run_in_child(body)
