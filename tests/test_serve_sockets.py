# serve_udp on real sockets: which address answers leave from, and which sockets it takes.

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import ECN, open_udp_channel, open_udp_socket, serve_udp

from . import ends, serving
from .serving import echo, finish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from snaptun_trio import UdpChannel

pytestmark = pytest.mark.usefixtures("backend")

only_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells which address was asked, and has all of 127/8"
)

# The host that is bound, the host that clients are on, and the hosts that they ask.
WILDCARDS = {
    "ipv4": ("0.0.0.0", "127.0.0.1", ["127.0.0.1", "127.0.0.2", "127.0.0.3"]),
    "ipv6": ("::", "::1", ["::1"]),
    "mapped": ("::", "127.0.0.1", ["127.0.0.1", "127.0.0.2", "127.0.0.3"]),
    "every": (None, "127.0.0.1", ["127.0.0.1", "127.0.0.2", "127.0.0.3"]),
}


@contextlib.contextmanager
def client_on(host: str) -> Iterator[socket.socket]:
    with ends.bound_socket(host) as sock:
        yield sock


async def answer(sock: socket.socket) -> tuple[bytes, str]:
    """The next datagram and the host it comes from."""
    with trio.fail_after(ends.PATIENCE):
        while True:
            try:
                packet, address = sock.recvfrom(65_535)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
            else:
                return packet, address[0]


def spelled(host: str, bound: str) -> str:
    """An address of ours as a socket that is bound to ``bound`` spells it."""
    return f"::ffff:{host}" if ":" in bound and ":" not in host else host


@only_linux
@pytest.mark.parametrize("kind", WILDCARDS)
@pytest.mark.parametrize("how", ["send", "send_packet"])
async def test_answers_leave_from_the_address_that_was_asked(kind: str, how: str) -> None:
    """One peer asks several of our addresses in turn, and all at once."""
    bound, ours, hosts = WILDCARDS[kind]

    async def handler(channel: UdpChannel) -> None:
        if how == "send":
            await echo(channel)
        while True:
            packet = await channel.receive_packet()
            assert channel.local_address[0].encode().endswith(packet)
            await channel.send_packet(packet)

    async with serving.server(handler, host=bound) as served:
        port = served.address[1]
        with client_on(ours) as sock:
            for host in hosts * 2:
                sock.sendto(host.encode(), (host, port))
                assert await answer(sock) == (host.encode(), host)
            for host in hosts * 20:
                sock.sendto(host.encode(), (host, port))
            for _ in range(len(hosts) * 20):
                packet, host = await answer(sock)
                assert packet == host.encode()
            seen = served.statistics()
            assert (seen.peers, seen.peers_admitted) == (1, 1)
            assert seen.sender.datagrams_failed == 0


@only_linux
@pytest.mark.parametrize("count", [3, 40], ids=["few", "many"])
@pytest.mark.parametrize("kind", WILDCARDS)
async def test_several_packets_leave_from_the_address_that_was_asked(kind: str, count: int) -> None:
    bound, ours, hosts = WILDCARDS[kind]

    async def handler(channel: UdpChannel) -> None:
        while True:
            packet = await channel.receive_packet()
            await channel.send_packets([packet] * count)

    async with serving.server(handler, host=bound) as served:
        with client_on(ours) as sock:
            for host in hosts * 2:
                sock.sendto(host.encode(), (host, served.address[1]))
                assert [await answer(sock) for _ in range(count)] == [(host.encode(), host)] * count


@only_linux
@pytest.mark.parametrize("kind", WILDCARDS)
async def test_a_handler_that_speaks_first_speaks_from_there_as_well(kind: str) -> None:
    bound, ours, hosts = WILDCARDS[kind]

    async def handler(channel: UdpChannel) -> None:
        await channel.send_packet(channel.local_address[0].encode())
        await finish(channel)

    async with serving.server(handler, host=bound) as served:
        for host in hosts:
            with client_on(ours) as sock:
                sock.sendto(b"hello", (host, served.address[1]))
                expected = spelled(host, served.address[0])
                assert await answer(sock) == (expected.encode(), host)


@only_linux
async def test_one_peer_gets_what_came_to_each_address_apart() -> None:
    """Else the handler could not answer both from the right one."""
    async with serving.server(host="0.0.0.0") as served:
        with client_on("127.0.0.1") as sock:
            order = ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.1"]
            for number, host in enumerate(order):
                sock.sendto(b"%d" % number, (host, served.address[1]))
            await served.until_received(4)
            channel = await served.next_channel()
            found: list[tuple[str, bytes]] = []
            while len(found) < 4:
                batch = await channel.receive()
                found += [(channel.local_address[0], packet) for packet, _ in batch]
            assert found == [(host, b"%d" % number) for number, host in enumerate(order)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_on_an_address_of_its_own_nothing_is_asked_of_the_kernel(host: str) -> None:
    with client_on(host) as sock:
        async with serving.server(host=host) as served:
            channel = await served.new_peer(sock)
            assert channel.local_address == served.address
            assert channel.address == sock.getsockname()
            lent = served.server._receiver.socket
            if sys.platform == "linux":
                assert lent.getsockopt(socket.IPPROTO_IP, 8) == 0  # IP_PKTINFO
            (train,) = (await channel.receive()).trains
            assert (train.local_address, train.ecn, train.timestamp_ns) == (None, None, None)


async def test_what_is_asked_for_is_reported() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux reports")
    async with serving.server(ecn=True, timestamps=True, gro=False, gso=False) as served:
        with client_on("127.0.0.1") as sock:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 1)
            channel = await served.new_peer(sock)
            (train,) = (await channel.receive()).trains
            assert train.ecn is ECN.ECT_1
            assert train.timestamp_ns is not None
        assert not served.statistics().receiver.gro
        assert not served.statistics().sender.gso


# -- which sockets it takes


async def test_a_socket_that_is_given_is_served_and_closed() -> None:
    sock = await open_udp_socket(("127.0.0.1", 0))
    async with serving.server(echo, sock) as served:
        assert served.address == sock.getsockname()
        async with await open_udp_channel("127.0.0.1", served.address[1]) as client:
            await client.send_packet(b"hello")
            assert await client.receive_packet() == b"hello"
    assert sock.fileno() == -1


async def test_a_socket_of_the_standard_library_as_well() -> None:
    with ends.bound_socket() as sock:
        async with serving.server(echo, sock) as served:
            async with await open_udp_channel("127.0.0.1", served.address[1]) as client:
                await client.send_packet(b"hello")
                assert await client.receive_packet() == b"hello"
        assert sock.fileno() == -1


@only_linux
async def test_an_inherited_descriptor_is_served() -> None:
    with ends.bound_socket() as sock:
        inherited = await open_udp_socket(os.dup(sock.fileno()))
        async with serving.server(echo, inherited) as served:
            assert served.address == sock.getsockname()
            async with await open_udp_channel("127.0.0.1", served.address[1]) as client:
                await client.send_packet(b"hello")
                assert await client.receive_packet() == b"hello"


async def test_what_cannot_be_served_is_told() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        with pytest.raises(ValueError, match="bound"):
            await serve_udp(echo, sock)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        with pytest.raises(ValueError, match="UDP"):
            await serve_udp(echo, sock)
    async with serving.server() as served:
        with pytest.raises(OSError, match="local="):
            await serve_udp(echo, served.address[1], host="127.0.0.1")


@only_linux
async def test_two_servers_share_a_port() -> None:
    async with serving.server(echo, reuse_port=True) as first:
        async with serving.server(echo, first.address[1], reuse_port=True) as second:
            answered = 0
            while not (first.statistics().peers and second.statistics().peers):
                async with await open_udp_channel("127.0.0.1", first.address[1]) as client:
                    await client.send_packet(b"x")
                    assert await client.receive_packet() == b"x"
                    answered += 1
            each = [one.statistics().datagrams_received for one in (first, second)]
            assert sum(each) == answered


async def test_whoever_waits_for_the_start_gets_the_server() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda task_status: serve_udp(echo, 0, host="localhost", task_status=task_status)
        )
        assert server.local_address[0] in {"127.0.0.1", "::1"}
        assert server.peers == ()
        nursery.cancel_scope.cancel()


async def test_a_socket_that_is_closed_under_a_server_ends_it() -> None:
    sock = await open_udp_socket(("127.0.0.1", 0))
    with pytest.raises(BaseExceptionGroup) as info:
        async with serving.server(echo, sock):
            sock.close()
            await trio.sleep_forever()
    assert info.group_contains(trio.ClosedResourceError)


@pytest.mark.parametrize("shape", ["singles", "trains"])
async def test_many_peers_each_get_all_of_theirs(shape: str, udp: ends.MakeSocket) -> None:
    """A hundred clients, a hundred datagrams each; nothing is lost on loopback."""
    async with serving.server(echo) as served:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(ask_a_hundred, served.address[1], number, shape)
        seen = served.statistics()
        assert seen.datagrams_delivered == seen.sender.datagrams_sent == 10_000
        assert seen.peers_admitted == 100


async def ask_a_hundred(port: int, number: int, shape: str) -> None:
    async with await open_udp_channel("127.0.0.1", port) as client:
        packets = [b"%d %d" % (number, index) for index in range(100)]
        found: list[bytes] = []
        step = 1 if shape == "singles" else 20
        for start in range(0, 100, step):
            await client.send(ends.batch_of(packets[start : start + step], None))
            while len(found) < start + step:
                found.append(await client.receive_packet())
        assert found == packets
