# What quinn-udp does, here: IPv6 and mapped peers, GSO and GRO with their switches and fallbacks,
# ECN, packet information and timestamps. All on real sockets.

from __future__ import annotations

import errno
import os
import socket
import sys
import time

import pytest

from snaptun_trio import (
    Address,
    PacketBatch,
    PacketTrain,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
)
from snaptun_trio._kernel import _abi, choose_backend

from . import ends

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports it")
SO_NO_CHECK = 11  # include/uapi/asm-generic/socket.h
IPPROTO_UDPLITE = 136  # include/uapi/linux/in.h
PACKETS = [*ends.numbered(20, 1000), b"tail"]


# -- backends


@linux_only
@pytest.mark.core
def test_the_backend_can_be_chosen_in_the_environment(backend: str) -> None:
    assert choose_backend()[0].backend == backend


# -- addresses


@pytest.mark.parametrize("host", [pytest.param("127.0.0.1", marks=pytest.mark.core), "::1"])
def test_trains_of_the_largest_number_of_segments_arrive(
    backend: str, udp: ends.MakeSocket, host: str
) -> None:
    with ends.make_pair(udp(host), udp(host)) as pair:
        packets = ends.numbered(64, 500)
        pair.sender.send_nowait(ends.batch_of(packets, pair.target))
        assert ends.collect(pair.receiver, 64) == [(packet, pair.source) for packet in packets]
        if pair.sender.gso:
            assert pair.sender.statistics().trains_sent == 1


def test_an_ipv6_address_may_be_given_in_short(backend: str, udp: ends.MakeSocket) -> None:
    with ends.make_pair(udp("::1"), udp("::1")) as pair:
        pair.sender.try_queue_packet(b"x", ("::1", pair.target[1]))
        pair.sender.try_flush_best_effort()
        assert ends.collect(pair.receiver, 1) == [(b"x", pair.source)]


def test_a_dual_stack_socket_talks_to_ipv4_peers(backend: str, udp: ends.MakeSocket) -> None:
    peer, sock = udp(), udp("::")
    port = sock.getsockname()[1]
    with ends.make_pair(sock, sock) as pair, ends.make_pair(peer, peer) as other:
        pair.sender.send_nowait(ends.batch_of(PACKETS, peer.getsockname()))
        assert ends.collect(other.receiver, 21) == [
            (packet, ("127.0.0.1", port)) for packet in PACKETS
        ]
        other.sender.send_nowait(ends.batch_of(PACKETS, ("127.0.0.1", port)))
        mapped: Address = ("::ffff:127.0.0.1", peer.getsockname()[1], 0, 0)
        batches = ends.collect_batches(pair.receiver, 21)
        assert [datagram for batch in batches for datagram in batch] == [
            (packet, mapped) for packet in PACKETS
        ]
        for batch in batches:
            pair.sender.send_nowait(batch)
        assert ends.payloads(other.receiver, 21) == PACKETS


def test_an_echo_reaches_the_peers_it_came_from(backend: str, udp: ends.MakeSocket) -> None:
    middle, peers = udp(), [udp() for _ in range(3)]
    with ends.make_pair(middle, middle) as pair:
        for number, peer in enumerate(peers):
            for packet in ends.numbered(3, 100, start=10 * number):
                peer.sendto(packet, middle.getsockname())
        for batch in ends.collect_batches(pair.receiver, 9):
            pair.sender.send_nowait(batch)
    for number, peer in enumerate(peers):
        assert ends.read_plainly(peer, 3) == ends.numbered(3, 100, start=10 * number)


def test_addresses_of_unknown_families_are_errors_and_no_crash(
    backend: str, udp: ends.MakeSocket
) -> None:
    sender = UdpBatchSender(udp())
    for target in (("::1", 9), ("fe80::1", 9, 0, 2), ("\ud800", 9), ("", 9)):
        with pytest.raises(ValueError, match=r"numeric|is an IPv6 address"):
            sender.try_queue_packet(b"x", target)
    assert sender.is_empty


@linux_only
@pytest.mark.parametrize("family", ["AF_UNIX", "AF_NETLINK"])
def test_sockets_of_unknown_families_are_errors_and_no_crash(family: str) -> None:
    with socket.socket(getattr(socket, family), socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        for end in (UdpBatchReceiver, UdpBatchSender):
            with pytest.raises(ValueError, match="IPv4 or IPv6"):
                end(sock)


# -- GSO


@pytest.mark.needs_gso
@pytest.mark.core
def test_using_gso_leaves_no_udp_segment_on_the_socket(pair: ends.Pair) -> None:
    def option() -> int:
        sock = pair.sender.socket
        return int(sock.getsockopt(ends.SOL_UDP, ends.UDP_SEGMENT))

    assert pair.sender.gso
    assert option() == 0
    pair.sender.send_nowait(ends.batch_of(PACKETS, pair.target))
    assert option() == 0
    assert ends.payloads(pair.receiver, 21) == PACKETS


@pytest.mark.needs_gso
def test_a_socket_that_segments_every_send_is_refused(udp: ends.MakeSocket) -> None:
    sock = udp()
    sock.setsockopt(ends.SOL_UDP, ends.UDP_SEGMENT, 100)
    with pytest.raises(ValueError, match="UDP_SEGMENT"):
        UdpBatchSender(sock)


@pytest.mark.parametrize("how", ["gso=False", "environment"])
def test_gso_can_be_switched_off(
    backend: str, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "environment":
        monkeypatch.setenv("SNAPTUN_TRIO_GSO", "0")
    with ends.make_pair(udp(), udp(), gso=how != "gso=False") as pair:
        assert not pair.sender.gso
        pair.sender.send_nowait(ends.batch_of(PACKETS, pair.target))
        assert ends.payloads(pair.receiver, 21) == PACKETS
        assert pair.sender.statistics().trains_sent == 21
        assert pair.receiver.statistics().trains_received == 21


def check_fallback(sender: UdpBatchSender, incoming: socket.socket) -> None:
    """Trains around a single one all arrive by one call, although the kernel does not segment."""
    target = ends.address_of(incoming)
    batch = PacketBatch(
        [
            PacketTrain(b"single", 6, target),
            *ends.batch_of(PACKETS, target).trains,
            *ends.batch_of(PACKETS, target).trains,
        ]
    )
    receiver = UdpBatchReceiver(incoming)
    sender.send_nowait(batch)
    assert ends.payloads(receiver, 43) == [b"single", *PACKETS, *PACKETS]
    assert ends.nothing_waits(receiver)
    assert not sender.gso
    assert sender.statistics().gso_fallbacks == 1
    assert sender.statistics().datagrams_sent == 43
    sender.send_nowait(ends.batch_of(PACKETS, target))
    assert ends.payloads(receiver, 21) == PACKETS
    assert sender.statistics().gso_fallbacks == 1


@pytest.mark.needs_gso
def test_a_real_eio_turns_gso_off_and_the_same_call_delivers_everything(
    backend: str, udp: ends.MakeSocket
) -> None:
    outgoing, incoming = (udp(protocol=IPPROTO_UDPLITE) for _ in range(2))
    sender = UdpBatchSender(outgoing)
    assert sender.gso
    check_fallback(sender, incoming)


@pytest.mark.needs_gso
@pytest.mark.core
def test_a_real_einval_of_gso_alone_turns_gso_off_and_everything_is_delivered(
    backend: str, udp: ends.MakeSocket
) -> None:
    outgoing = udp()
    outgoing.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
    sender = UdpBatchSender(outgoing)
    assert sender.gso
    check_fallback(sender, udp())


@linux_only
def test_a_datagram_over_what_ipv4_holds_is_refused_alone(pair: ends.Pair) -> None:
    trains = [
        PacketTrain(b"before", 6, pair.target),
        PacketTrain(bytes(65_508), 65_508, pair.target),
        PacketTrain(b"after", 5, pair.target),
    ]
    with pytest.raises(SendBatchError) as report:
        pair.sender.send_nowait(PacketBatch(trains))
    (failure,) = report.value.failures
    assert failure.error.errno == errno.EMSGSIZE
    assert failure.train.nbytes == 65_508
    ends.expect_only(pair, [b"before", b"after"])


@linux_only
@pytest.mark.parametrize(("host", "size"), [("127.0.0.1", 65_507), ("::1", 65_488)])
def test_the_largest_datagram_that_the_loopback_device_takes_goes(
    backend: str, udp: ends.MakeSocket, host: str, size: int
) -> None:
    sender, incoming = UdpBatchSender(udp(host), max_packet_size=size), udp(host)
    packet = bytes(range(256)) * 256
    sender.try_queue_packet(packet[:size], ends.address_of(incoming))
    sender.try_flush_best_effort()
    assert ends.payloads(UdpBatchReceiver(incoming), 1) == [packet[:size]]


@linux_only
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_everything_is_sent_unfragmented(udp: ends.MakeSocket, host: str) -> None:
    sock = udp(host)
    UdpBatchSender(sock)
    probe = _abi.IP_PMTUDISC_PROBE
    assert sock.getsockopt(_abi.SOL_IP, _abi.IP_MTU_DISCOVER) == probe
    if host == "::1":
        assert sock.getsockopt(_abi.SOL_IPV6, _abi.IPV6_MTU_DISCOVER) == probe


# -- GRO


@pytest.mark.needs_gso
@pytest.mark.needs_gro
@pytest.mark.core
def test_a_train_comes_as_a_train(pair: ends.Pair) -> None:
    pair.sender.send_nowait(ends.batch_of(PACKETS, pair.target))
    (train,) = ends.collect_trains(pair.receiver, 21)
    assert train.segment_size == 1000
    assert train.address == pair.source
    assert list(train) == PACKETS
    assert pair.receiver.statistics().gro
    assert pair.receiver.statistics().trains_received == 1


@pytest.mark.needs_gso
def test_trains_of_any_shape_in_one_receive(pair: ends.Pair) -> None:
    shapes = [(700, 100), (500, 100), (1, 100), (1200, 600), (0, 0), (99, 33)]
    trains = [PacketTrain(os.urandom(length), size, pair.target) for length, size in shapes if size]
    trains.insert(3, PacketTrain(b"", 0, pair.target))
    for train in trains:
        pair.sender.send_nowait(PacketBatch([train]))
    expected = [packet for train in trains for packet in train]
    assert ends.payloads(pair.receiver, len(expected)) == expected


@pytest.mark.parametrize("how", ["gro=False", "environment"])
def test_gro_can_be_switched_off(
    backend: str, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "environment":
        monkeypatch.setenv("SNAPTUN_TRIO_GRO", "0")
    with ends.make_pair(udp(), udp(), gro=how != "gro=False") as pair:
        pair.sender.send_nowait(ends.batch_of(PACKETS, pair.target))
        assert ends.payloads(pair.receiver, 21) == PACKETS
        assert not pair.receiver.statistics().gro
        assert pair.receiver.statistics().trains_received == 21


@pytest.mark.needs_gro
def test_gro_that_somebody_else_switched_on_stays_on(backend: str, udp: ends.MakeSocket) -> None:
    sock = udp()
    sock.setsockopt(ends.SOL_UDP, ends.UDP_GRO, 1)
    receiver = UdpBatchReceiver(sock, gro=False)
    assert receiver.statistics().gro
    UdpBatchSender(udp()).send_nowait(ends.batch_of(PACKETS, ends.address_of(sock)))
    assert ends.payloads(receiver, 21) == PACKETS


# -- what stands beside the data


@linux_only
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "mapped"])
@pytest.mark.parametrize("ecn", [0, 1, 2, 3])
def test_ecn_is_sent_and_reported(backend: str, udp: ends.MakeSocket, host: str, ecn: int) -> None:
    near = "127.0.0.1" if host == "mapped" else host
    far = "::" if host == "mapped" else host
    outgoing, incoming, back = udp(far), udp(near), udp(far)
    receiver = UdpBatchReceiver(incoming, ecn=True)
    train = PacketTrain(b"aabbcc", 2, ends.address_of(incoming), ecn=ecn)
    UdpBatchSender(outgoing).send_nowait(PacketBatch([train]))
    assert {train.ecn for train in ends.collect_trains(receiver, 3)} == {ecn}
    reader = UdpBatchReceiver(back, ecn=True)
    answer = PacketBatch([train]).to((near, ends.address_of(back)[1]))
    UdpBatchSender(incoming).send_nowait(answer)
    assert {train.ecn for train in ends.collect_trains(reader, 3)} == {ecn}


@linux_only
@pytest.mark.parametrize(
    ("host", "target", "reported"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.7", "127.0.0.7"),
        ("::1", "::1", "::1"),
        ("::", "127.0.0.7", "::ffff:127.0.0.7"),
    ],
)
def test_packet_info_says_where_a_train_arrived(
    backend: str, udp: ends.MakeSocket, host: str, target: str, reported: str
) -> None:
    incoming = udp(host)
    receiver = UdpBatchReceiver(incoming, packet_info=True)
    outgoing = udp("::1" if ":" in target else "127.0.0.1")
    UdpBatchSender(outgoing).send_nowait(
        ends.batch_of([b"aa", b"bb"], (target, incoming.getsockname()[1]))
    )
    for train in ends.collect_trains(receiver, 2):
        assert train.local_address == reported
        assert train.interface_index == socket.if_nametoindex("lo")


@linux_only
@pytest.mark.parametrize("gso", [True, False])
def test_an_answer_leaves_from_the_address_that_was_asked(
    backend: str, udp: ends.MakeSocket, gso: bool
) -> None:
    server, client = udp("0.0.0.0"), udp()
    receiver = UdpBatchReceiver(server, packet_info=True)
    port = server.getsockname()[1]
    UdpBatchSender(client).send_nowait(ends.batch_of([b"aa", b"bb"], ("127.0.0.7", port)))
    answers = UdpBatchSender(server, gso=gso)
    for batch in ends.collect_batches(receiver, 2):
        answers.send_nowait(batch)
    assert ends.collect(UdpBatchReceiver(client), 2) == [
        (b"aa", ("127.0.0.7", port)),
        (b"bb", ("127.0.0.7", port)),
    ]


@linux_only
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_timestamps_say_when_a_train_was_received(
    backend: str, udp: ends.MakeSocket, host: str
) -> None:
    incoming = udp(host)
    receiver = UdpBatchReceiver(incoming, timestamps=True)
    sender = UdpBatchSender(udp(host))
    before = time.time_ns()
    sender.send_nowait(ends.batch_of([b"aa", b"bb"], ends.address_of(incoming)))
    trains = ends.collect_trains(receiver, 2)
    after = time.time_ns()
    for train in trains:
        assert train.timestamp_ns is not None
        assert before - 10**9 <= train.timestamp_ns <= after + 10**9


@linux_only
def test_all_reports_together_fit_beside_the_segment_size(
    backend: str, udp: ends.MakeSocket
) -> None:
    incoming = udp("::")
    receiver = UdpBatchReceiver(incoming, ecn=True, packet_info=True, timestamps=True)
    sender = UdpBatchSender(udp())
    sender.send_nowait(ends.batch_of(PACKETS, ("127.0.0.1", incoming.getsockname()[1])))
    trains = ends.collect_trains(receiver, 21)
    assert [packet for train in trains for packet in train] == PACKETS
    for train in trains:
        assert train.ecn == 0
        assert train.local_address == "::ffff:127.0.0.1"
        assert train.interface_index
        assert train.timestamp_ns
    assert receiver.statistics().trains_with_unknown_boundaries == 0


@linux_only
def test_nothing_is_reported_that_was_not_asked_for(pair: ends.Pair) -> None:
    pair.sender.send_nowait(ends.batch_of(PACKETS, pair.target))
    for train in ends.collect_trains(pair.receiver, 21):
        told = (train.ecn, train.local_address, train.interface_index, train.timestamp_ns)
        assert told == (None, None, None, None)
