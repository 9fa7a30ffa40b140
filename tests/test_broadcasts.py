# What came to many: to a subnet's broadcast address, to everybody, or to a group. None of these can
# be the source of an answer.

from __future__ import annotations

import socket
import struct
import sys

import pytest

from snaptun_trio import PacketBatch, PacketTrain, UdpBatchReceiver, UdpBatchSender
from snaptun_trio._kernel import _abi, _cmsg

from . import ends

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports it")

EVERYBODY = "127.255.255.255"  # the broadcast address of the loopback device's subnet
GROUP = "239.255.77.77"


def ask(server: socket.socket, client: socket.socket, host: str) -> UdpBatchReceiver:
    """Ask at one of these addresses. Returns a receiver that has been asked."""
    receiver = UdpBatchReceiver(server, packet_info=True)
    client.sendto(b"who is there?", (host, server.getsockname()[1]))
    ends.wait_until_readable(server)
    return receiver


@pytest.fixture
def client(udp: ends.MakeSocket) -> socket.socket:
    sock = udp()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    return sock


@pytest.mark.parametrize("answer", ["reply", "the batch itself"])
@pytest.mark.parametrize(("host", "own"), [("0.0.0.0", ""), ("::", "::ffff:")])
def test_what_came_to_a_subnets_broadcast_address_is_answered_from_our_own(
    backend: str,
    udp: ends.MakeSocket,
    client: socket.socket,
    host: str,
    own: str,
    answer: str,
) -> None:
    server = udp(host)
    batch = ask(server, client, EVERYBODY).receive_nowait()
    (train,) = batch.trains
    assert train.local_address == f"{own}127.0.0.1"
    reply = batch if answer == "the batch itself" else PacketBatch(train.reply([b"I am"]))
    UdpBatchSender(server).send_nowait(reply)
    ends.wait_until_readable(client)
    packet, source = client.recvfrom(100)
    assert packet == (b"who is there?" if answer == "the batch itself" else b"I am")
    assert source == ("127.0.0.1", server.getsockname()[1])


@pytest.mark.parametrize("answer", ["reply", "the batch itself"])
@pytest.mark.parametrize(("host", "own"), [("0.0.0.0", ""), ("::", "::ffff:")])
def test_what_came_to_a_group_is_answered_from_an_address_of_the_kernels_choice(
    backend: str,
    udp: ends.MakeSocket,
    client: socket.socket,
    host: str,
    own: str,
    answer: str,
) -> None:
    server = udp(host)
    membership = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
    # An IPv6 socket, too, joins an IPv4 group in this way on Linux.
    server.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    batch = ask(server, client, GROUP).receive_nowait()
    (train,) = batch.trains
    assert train.local_address == f"{own}{GROUP}"
    reply = batch if answer == "the batch itself" else PacketBatch(train.reply([b"I am"]))
    UdpBatchSender(server).send_nowait(reply)
    ends.wait_until_readable(client)
    assert client.recvfrom(100)[1] == ("127.0.0.1", server.getsockname()[1])


@pytest.mark.parametrize(
    ("own", "asked", "told"),
    [
        ("192.0.2.7", "192.0.2.7", "192.0.2.7"),
        ("192.0.2.7", "192.0.2.255", "192.0.2.7"),
        ("0.0.0.0", "192.0.2.255", "192.0.2.255"),  # the kernel knows none
        ("192.0.2.7", "224.0.0.1", "224.0.0.1"),
        ("192.0.2.7", "255.255.255.255", "255.255.255.255"),
    ],
)
@pytest.mark.parametrize("ipv6_first", [True, False, None])
def test_the_local_address_is_where_it_came_to_or_our_own_on_that_subnet(
    own: str, asked: str, told: str, ipv6_first: bool | None
) -> None:
    hosts = socket.inet_aton(own) + socket.inet_aton(asked)
    messages = [(_abi.SOL_IP, _abi.IP_PKTINFO, struct.pack("=i", 2) + hosts)]
    mapped = socket.inet_pton(socket.AF_INET6, f"::ffff:{asked}") + struct.pack("=i", 2)
    if ipv6_first is not None:
        messages.insert(not ipv6_first, (_abi.SOL_IPV6, _abi.IPV6_PKTINFO, mapped))
        told = f"::ffff:{told}"
    assert _cmsg.decode(messages) == (None, None, told, 2, None)


@pytest.mark.parametrize(
    ("group", "ipv4"),
    [
        ("224.0.0.1", True),
        ("::ffff:239.1.1.1", True),
        ("255.255.255.255", True),
        ("ff02::1", False),
    ],
)
def test_a_group_is_never_asked_for_as_a_source(group: str, ipv4: bool) -> None:
    nobody = "0.0.0.0" if ipv4 else "::"
    assert _cmsg.encode(0, None, group, 3, ipv4) == _cmsg.encode(0, None, nobody, 3, ipv4)


def test_a_train_to_be_sent_may_name_a_group_where_it_was_received(
    backend: str, udp: ends.MakeSocket
) -> None:
    sender, client = UdpBatchSender(udp()), udp()
    sender.try_queue_train(
        PacketTrain(b"abc", 1, ends.address_of(client), local_address="224.0.0.1")
    )
    sender.try_flush_best_effort()
    assert ends.payloads(UdpBatchReceiver(client), 3) == [b"a", b"b", b"c"]
