# What the sockets of a relay are opened with, and what the kernel drops from their queues.

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from snaptun_trio import UdpRelay, open_udp_socket

from . import ends, relays

if TYPE_CHECKING:
    from snaptun_trio import Address

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells all of that"),
]

PKTINFO, MTU_DISCOVER = (socket.SOL_IP, 8), (socket.SOL_IP, 10)
BUFFERS = [(socket.SOL_SOCKET, socket.SO_RCVBUF), (socket.SOL_SOCKET, socket.SO_SNDBUF)]
SHARED = (socket.SOL_SOCKET, socket.SO_REUSEPORT) if hasattr(socket, "SO_REUSEPORT") else (0, 0)


def sockets_of(relay: UdpRelay) -> tuple[Any, list[Any]]:
    """The clients' socket, and those to targets."""
    upstreams = relays.forwarding_of(relay).upstreams()
    return relays.front_of(relay).sender.socket, [one.io.sock for one in upstreams]


@pytest.mark.parametrize("fragment", [False, True])
@pytest.mark.parametrize("duplicate", [False, True])
async def test_every_socket_has_the_options_that_were_asked_for(
    udp: ends.MakeSocket, fragment: bool, duplicate: bool
) -> None:
    target, client = udp(), udp()
    options: dict[str, Any] = {"receive_buffer": 300_000, "send_buffer": 400_000}
    with await open_udp_socket(("127.0.0.1", 0), **options) as like:
        expected = [like.getsockopt(*option) for option in BUFFERS]
    async with relays.running(
        [target], fragment=fragment, duplicate=duplicate, reuse_port=True, **options
    ) as relay:
        await relays.Stage(relay, [client]).send(0, b"x")
        front, upstreams = sockets_of(relay)
        for sock in (front, *upstreams):
            assert [sock.getsockopt(*option) for option in BUFFERS] == expected
            assert (sock.getsockopt(*MTU_DISCOVER) == 5) == fragment  # IP_PMTUDISC_OMIT
        assert front.getsockopt(*SHARED)
        (upstream,) = upstreams
        assert not upstream.getsockopt(*SHARED), "another process' answers could come to it"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("duplicate", [False, True])
async def test_the_address_that_was_asked_is_told_where_that_is_needed(
    udp: ends.MakeSocket, host: str, duplicate: bool
) -> None:
    async with relays.running([udp()], (host, 0), duplicate=duplicate) as relay:
        front, _ = sockets_of(relay)
        assert bool(front.getsockopt(*PKTINFO)) == (host == "0.0.0.0" and not duplicate)


def overflow(sock: socket.socket, to: Address) -> int:
    """Send more than a socket holds. Returns how many."""
    count = 200
    for number in range(count):
        sock.sendto(bytes([number]) * 60_000, to)
    return count


async def test_what_the_kernel_drops_before_the_relay_is_counted(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    async with relays.running([target], receive_buffer=1) as relay:
        sent = overflow(client, relay.local_address)
        told = await relays.until(
            relay,
            lambda seen: (
                seen.to_targets.datagrams_in + seen.to_targets.buffers_dropped_by_kernel == sent
            ),
        )
        assert told.to_targets.buffers_dropped_by_kernel > 0
        assert told.to_clients.buffers_dropped_by_kernel == 0
    after = relays.laws(relay)
    assert after.to_targets.buffers_dropped_by_kernel == told.to_targets.buffers_dropped_by_kernel


@pytest.mark.parametrize("duplicate", [False, True])
async def test_what_the_kernel_drops_of_answers_is_counted(
    udp: ends.MakeSocket, duplicate: bool
) -> None:
    """Of sessions that are there, and of those that have ended."""
    target, other, clients = udp(), udp(), [udp(), udp()]
    async with relays.running([target], receive_buffer=1, duplicate=duplicate) as relay:
        stage = relays.Stage(relay, clients)
        await stage.send(0, b"x")
        ((_, address),) = await relays.receive(target, 1)
        sent = overflow(target, address)
        told = await relays.until(
            relay,
            lambda seen: (
                seen.to_clients.datagrams_in + seen.to_clients.buffers_dropped_by_kernel == sent
            ),
        )
        dropped = told.to_clients.buffers_dropped_by_kernel
        assert dropped > 0
        assert told.to_targets.buffers_dropped_by_kernel == 0
        await relay.set_targets([ends.address_of(other)])
        await stage.send(1, b"y")
        assert relays.laws(relay).to_clients.buffers_dropped_by_kernel == dropped
    assert relays.laws(relay).to_clients.buffers_dropped_by_kernel == dropped


async def test_who_was_stopped_before_it_began_lets_nobody_in(
    udp: ends.MakeSocket, mock_clock: trio.testing.MockClock
) -> None:
    target, client = udp(), udp()
    relay = UdpRelay(("127.0.0.1", 0), [ends.address_of(target)])
    relay.stop()
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        await relays.Stage(relay, [client]).send(0, b"x")
        assert relays.laws(relay).to_targets.dropped == {"stopping": 1}
        mock_clock.jump(10.0)
