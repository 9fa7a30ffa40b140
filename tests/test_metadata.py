# What stands beside the data, on every kind of path and with every offload, all at once.
#
# Each datagram is sent with ECN bits and a source address of its own, and received with ECN bits,
# where it came to and when. Whoever asked for none of it has none, and no option is set for it.

from __future__ import annotations

import itertools
import socket
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from snaptun_trio import ECN, PacketBatch, PacketTrain, UdpBatchReceiver, UdpBatchSender
from snaptun_trio._kernel import _abi

from . import ends

if TYPE_CHECKING:
    from snaptun_trio import Address

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and takes all of this"),
]


class Path(NamedTuple):
    """A way from one socket to another on loopback."""

    sender: str
    """What the sender is bound to."""
    receiver: str
    """What the receiver is bound to."""
    asked: str
    """Where the datagrams are sent, as the sender spells it."""
    sources: tuple[str, ...]
    """What they are to come from, as the sender spells it."""


PATHS = {
    "ipv4": Path("0.0.0.0", "127.0.0.1", "127.0.0.1", ("127.0.0.2", "127.0.0.3")),
    "ipv4 on every address": Path("0.0.0.0", "0.0.0.0", "127.0.0.5", ("127.0.0.2", "127.0.0.3")),
    "ipv6": Path("::1", "::1", "::1", ("::1",)),
    "ipv6 to a dual stack": Path("::1", "::", "::1", ("::1",)),
    "ipv4 to a dual stack": Path("0.0.0.0", "::", "127.0.0.5", ("127.0.0.2", "127.0.0.3")),
    "mapped to ipv4": Path(
        "::", "127.0.0.1", "::ffff:127.0.0.1", ("::ffff:127.0.0.2", "::ffff:127.0.0.3")
    ),
    "mapped to a dual stack": Path("::", "::", "::ffff:127.0.0.5", ("::ffff:127.0.0.2",)),
    "plain from a dual stack": Path("::", "127.0.0.1", "127.0.0.1", ("127.0.0.2", "127.0.0.3")),
}


def as_seen_by(bound: str, host: str) -> str:
    """A host as a socket that is bound to ``bound`` spells it."""
    plain = host.removeprefix("::ffff:")
    return f"::ffff:{plain}" if ":" in bound and ":" not in plain else plain


def came_by(train: PacketTrain) -> tuple[str, int]:
    """The host and the port that a train came from."""
    assert train.address is not None
    return train.address[:2]


@pytest.mark.parametrize("gro", [True, False], ids=["gro", "no gro"])
@pytest.mark.parametrize("gso", [True, False], ids=["gso", "no gso"])
@pytest.mark.parametrize("kind", PATHS)
def test_all_at_once(kind: str, gso: bool, gro: bool, udp: ends.MakeSocket) -> None:
    path = PATHS[kind]
    incoming, outgoing = udp(path.receiver), udp(path.sender)
    target: Address = (path.asked, incoming.getsockname()[1])
    port = outgoing.getsockname()[1]
    receiver = UdpBatchReceiver(incoming, gro=gro, ecn=True, packet_info=True, timestamps=True)
    trains: list[PacketTrain] = []
    expected: dict[bytes, tuple[ECN, str]] = {}
    numbers = itertools.count()
    # Trains and single datagrams, whose neighbours differ in one thing at a time.
    for ecn, source, count in itertools.product(ECN, path.sources, (7, 1)):
        packets = [b"%04d" % next(numbers) for _ in range(count)]
        trains += PacketTrain.pack(packets, target, ecn=ecn, local_address=source)
        expected |= dict.fromkeys(packets, (ecn, as_seen_by(path.receiver, source)))
    before = time.time_ns()
    UdpBatchSender(outgoing, gso=gso).send_nowait(PacketBatch(trains))
    received = ends.collect_trains(receiver, len(expected))
    after = time.time_ns()
    found: dict[bytes, tuple[ECN, str]] = {}
    for train in received:
        assert isinstance(train.ecn, ECN)
        host, came_from = came_by(train)
        assert came_from == port
        found |= dict.fromkeys(train, (train.ecn, host))
        assert train.local_address == as_seen_by(path.receiver, path.asked)
        assert train.interface_index == socket.if_nametoindex("lo")
        assert train.timestamp_ns is not None
        assert before - 10**9 <= train.timestamp_ns <= after + 10**9
    assert found == expected
    if not gro:
        assert len(received) == len(expected)
    assert receiver.statistics().trains_with_unknown_boundaries == 0


@pytest.mark.needs_gso
@pytest.mark.needs_gro
@pytest.mark.parametrize("kind", PATHS)
def test_a_train_keeps_all_of_it(kind: str, udp: ends.MakeSocket) -> None:
    """The kernel cuts and puts together again, and each field is that of all its datagrams."""
    path = PATHS[kind]
    incoming, outgoing = udp(path.receiver), udp(path.sender)
    target: Address = (path.asked, incoming.getsockname()[1])
    receiver = UdpBatchReceiver(incoming, ecn=True, packet_info=True, timestamps=True)
    packets = ends.numbered(20, 100)
    UdpBatchSender(outgoing).send_nowait(
        PacketBatch(PacketTrain.pack(packets, target, ecn=ECN.ECT_1, local_address=path.sources[0]))
    )
    (train,) = ends.collect_trains(receiver, 20)
    assert (list(train), train.ecn) == (packets, ECN.ECT_1)
    assert came_by(train)[0] == as_seen_by(path.receiver, path.sources[0])
    assert train.local_address == as_seen_by(path.receiver, path.asked)
    assert train.timestamp_ns


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("gso", [True, False], ids=["gso", "no gso"])
def test_what_a_train_asks_for_is_not_the_next_ones(
    kind: str, gso: bool, udp: ends.MakeSocket
) -> None:
    """Marked, plain, marked: the plain one leaves as the socket has it."""
    path = PATHS[kind]
    incoming, outgoing = udp(path.receiver), udp(path.sender)
    target: Address = (path.asked, incoming.getsockname()[1])
    receiver = UdpBatchReceiver(incoming, ecn=True)
    marked = PacketTrain(b"aabb", 2, target, ecn=3, local_address=path.sources[-1])
    plain = PacketTrain(b"ccdd", 2, target)
    UdpBatchSender(outgoing, gso=gso).send_nowait(PacketBatch([marked, plain, marked]))
    told: dict[bytes, set[tuple[int | None, str]]] = {}
    for train in ends.collect_trains(receiver, 6):
        for packet in train:
            told.setdefault(packet, set()).add((train.ecn, came_by(train)[0]))
    source = as_seen_by(path.receiver, path.sources[-1])
    assert told[b"aa"] == told[b"bb"] == {(3, source)}
    assert told[b"cc"] == told[b"dd"]
    assert {bits for bits, _ in told[b"cc"]} == {0}


# The options that make the kernel send a control message along with each datagram.
OPTIONS = {
    "ecn": {(_abi.SOL_IP, _abi.IP_RECVTOS), (_abi.SOL_IPV6, _abi.IPV6_RECVTCLASS)},
    "packet_info": {(_abi.SOL_IP, _abi.IP_PKTINFO), (_abi.SOL_IPV6, _abi.IPV6_RECVPKTINFO)},
    "timestamps": {(socket.SOL_SOCKET, _abi.SO_TIMESTAMPNS)},
}


def switched_on(sock: socket.socket) -> set[tuple[int, int]]:
    on = set()
    for level, name in set().union(*OPTIONS.values()):
        if level != _abi.SOL_IPV6 or sock.family == socket.AF_INET6:
            on |= {(level, name)} if sock.getsockopt(level, name) else set()
    return on


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
@pytest.mark.parametrize("asked", [(), ("ecn",), ("packet_info",), ("timestamps",), tuple(OPTIONS)])
@pytest.mark.parametrize("gro", [True, False], ids=["gro", "no gro"])
def test_only_what_is_asked_for_costs_anything(
    host: str, asked: tuple[str, ...], gro: bool, udp: ends.MakeSocket
) -> None:
    sock = udp(host)
    receiver = UdpBatchReceiver(sock, gro=gro, **dict.fromkeys(asked, True))  # type: ignore[arg-type]
    expected = set().union(*(OPTIONS[name] for name in asked))
    if sock.family == socket.AF_INET:
        expected = {(level, name) for level, name in expected if level != _abi.SOL_IPV6}
    assert switched_on(sock) == expected
    with udp("::1" if ":" in host else "127.0.0.1") as outgoing:
        to = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        marked = PacketTrain(b"aabbcc", 2, (to, sock.getsockname()[1]), ecn=2)
        UdpBatchSender(outgoing).send_nowait(PacketBatch([marked]))
        for train in ends.collect_trains(receiver, 3):
            assert train.ecn == (2 if "ecn" in asked else None)
            assert (train.local_address is not None) == ("packet_info" in asked)
            assert (train.interface_index is not None) == ("packet_info" in asked)
            assert (train.timestamp_ns is not None) == ("timestamps" in asked)


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_a_sender_sets_none_of_them(host: str, udp: ends.MakeSocket) -> None:
    sock = udp(host)
    UdpBatchSender(sock)
    assert not switched_on(sock)
