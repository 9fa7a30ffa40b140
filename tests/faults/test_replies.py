# Answers from a socket that is bound to every address: they leave from the one that was asked.
#
# A client takes no other for an answer, nor does the NAT in front of it. The kernel alone chooses
# the first address of the way back, so every test asks at another one.

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio

from snaptun_trio import PacketBatch, PacketTrain, UdpBatchReceiver, UdpBatchSender

from . import harness, netns, sockets

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("backend")

Answer: TypeAlias = "Callable[[PacketTrain, list[bytes]], list[PacketTrain]]"


def reply(train: PacketTrain, packets: list[bytes]) -> list[PacketTrain]:
    return train.reply(packets)


def pack(train: PacketTrain, packets: list[bytes]) -> list[PacketTrain]:
    return PacketTrain.pack(packets, train.address)


def pack_from(train: PacketTrain, packets: list[bytes]) -> list[PacketTrain]:
    return PacketTrain.pack(
        packets,
        train.address,
        local_address=train.local_address,
        interface_index=train.interface_index,
    )


async def ask(
    server: socket.socket,
    asked: tuple[str, int] | tuple[str, int, int, int],
    answer: Answer = reply,
    client_host: str | None = None,
) -> set[str]:
    """Ask at one address of the server. Returns the hosts that the answers came from."""
    receiver, sender = UdpBatchReceiver(server, packet_info=True), UdpBatchSender(server)
    packets = [b"one", b"two", b"six", b"of a longer one"]
    with sockets.udp(client_host or asked[0]) as client, trio.fail_after(harness.PATIENCE):
        client.sendto(b"who is there?", asked)
        for train in (await receiver.receive()).trains:
            await sender.send(PacketBatch(answer(train, packets)))
        found: list[bytes] = []
        hosts: set[str] = set()
        while len(found) < len(packets):
            await trio.lowlevel.wait_readable(client)
            packet, source = client.recvfrom(2000)
            found.append(packet)
            hosts.add(str(source[0]).split("%")[0])
        assert found == packets
        return hosts


def wildcard(host: str = "0.0.0.0") -> socket.socket:
    return sockets.udp(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "127.1.2.3"])
async def test_a_reply_leaves_from_the_address_that_was_asked(host: str) -> None:
    with wildcard() as server:
        assert await ask(server, (host, server.getsockname()[1])) == {host}


async def test_answers_that_are_packed_without_it_leave_from_the_first_address() -> None:
    """What a reply is for: this is the kernel's choice, and a client throws it away."""
    with wildcard() as server:
        asked = ("127.1.2.3", server.getsockname()[1])
        assert await ask(server, asked, pack, "127.0.0.1") == {"127.0.0.1"}
        assert await ask(server, asked, pack_from, "127.0.0.1") == {"127.1.2.3"}
        assert await ask(server, asked, reply, "127.0.0.1") == {"127.1.2.3"}


async def test_a_reply_to_an_ipv4_peer_of_a_dual_stack_socket() -> None:
    with wildcard("::") as server:
        asked = ("127.0.0.2", server.getsockname()[1])
        assert await ask(server, asked) == {"127.0.0.2"}


async def test_replies_of_several_addresses_in_one_batch_keep_apart() -> None:
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"] * 3
    with wildcard() as server, sockets.udp() as client, trio.fail_after(harness.PATIENCE):
        receiver, sender = UdpBatchReceiver(server, packet_info=True), UdpBatchSender(server)
        for number, host in enumerate(hosts):
            client.sendto(b"%d" % number, (host, server.getsockname()[1]))
        answered = 0
        while answered < len(hosts):
            batch = await receiver.receive()
            answered += len(batch)
            replies = [part for train in batch.trains for part in train.reply(list(train))]
            await sender.send(PacketBatch(replies))
        found = {}
        for _ in hosts:
            await trio.lowlevel.wait_readable(client)
            packet, source = client.recvfrom(100)
            found[packet] = source[0]
    assert found == {b"%d" % number: host for number, host in enumerate(hosts)}


@pytest.mark.own_network
@pytest.mark.parametrize("server_host", ["::", "fd00::2"])
async def test_a_reply_on_ipv6_leaves_from_the_address_that_was_asked(server_host: str) -> None:
    for host in ("fd00::1", "fd00::2", "fd00::3"):
        netns.run(f"ip address add {host}/128 dev lo nodad")
        netns.wait_for_ipv6("lo", host)
    with wildcard(server_host) as server:
        asked = ("fd00::2", server.getsockname()[1])
        assert await ask(server, asked, client_host="fd00::3") == {"fd00::2"}
    if server_host == "::":
        with wildcard("::") as server:
            asked = ("fd00::2", server.getsockname()[1])
            assert await ask(server, asked, pack, "fd00::3") != {"fd00::2"}


@pytest.mark.own_network
async def test_a_reply_from_a_link_local_address_to_a_peer_with_another_one() -> None:
    """The peer's own address has a wider scope, and says nothing of the interface."""
    netns.run("ip address add fe80::1/64 dev lo nodad")
    netns.run("ip address add fd00::1/128 dev lo nodad")
    for host in ("fe80::1", "fd00::1"):
        netns.wait_for_ipv6("lo", host)
    with wildcard("::") as server:
        asked = ("fe80::1", server.getsockname()[1], 0, socket.if_nametoindex("lo"))
        assert await ask(server, asked, client_host="fd00::1") == {"fe80::1"}


@pytest.mark.own_network
async def test_a_reply_to_what_was_sent_to_a_group_leaves_from_an_address_of_the_machine() -> None:
    netns.run("ip address add 10.0.0.1/24 dev lo")
    netns.run("ip link set lo multicast on")
    netns.run("ip route add 239.1.2.3 dev lo src 10.0.0.1")
    with wildcard() as server:
        membership = socket.inet_aton("239.1.2.3") + socket.inet_aton("10.0.0.1")
        server.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        asked = ("239.1.2.3", server.getsockname()[1])
        assert await ask(server, asked, client_host="10.0.0.1") == {"10.0.0.1"}
