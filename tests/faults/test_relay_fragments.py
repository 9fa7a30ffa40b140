# A relay with `fragment=True`, and one without, before a link that takes less than a datagram.
#
# Networks of our own: clients here, targets behind a cable with the MTU of an Ethernet.

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .. import ends, relays
from . import netns, sockets

if TYPE_CHECKING:
    import socket

    from snaptun_trio import Address

pytestmark = [pytest.mark.own_network, pytest.mark.usefixtures("backend")]

BIG = ends.numbered(5, 3000)
SMALL = ends.numbered(5, 1000, start=5)


class Ends:
    """A client behind one cable, a target behind another one, and the relay between them."""

    def __init__(self) -> None:
        self.spaces = [netns.Namespace(), netns.Namespace()]
        netns.veth(self.spaces[0])
        netns.veth(self.spaces[1], near="vc", far_end="vd", near_ip="10.0.1.1", far_ip="10.0.1.2")
        with self.spaces[0]:
            self.client = fragmenting(sockets.udp("10.0.0.2"))
        with self.spaces[1]:
            self.target = fragmenting(sockets.udp("10.0.1.2"))

    def close(self) -> None:
        self.client.close()
        self.target.close()
        for space in self.spaces:
            space.delete()


def fragmenting(sock: socket.socket) -> socket.socket:
    """What a plain program's socket does: it lets IP cut."""
    sock.setsockopt(0, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
    return sock


@pytest.mark.parametrize("duplicate", [False, True])
async def test_oversize_datagrams_pass_both_ways(duplicate: bool) -> None:
    await check([*BIG, *SMALL], {}, {}, fragment=True, duplicate=duplicate)


@pytest.mark.parametrize("duplicate", [False, True])
async def test_without_it_they_are_refused_and_counted_and_all_others_pass(
    duplicate: bool,
) -> None:
    refused = {"EMSGSIZE": len(BIG)}
    await check(SMALL, refused, refused, fragment=False, duplicate=duplicate)


async def check(
    passing: list[bytes],
    dropped_there: dict[str, int],
    dropped_back: dict[str, int],
    *,
    fragment: bool,
    duplicate: bool,
) -> None:
    between = Ends()
    try:
        async with relays.running(
            [between.target], ("10.0.0.1", 0), fragment=fragment, duplicate=duplicate
        ) as relay:
            for packet in (*BIG, *SMALL):
                between.client.sendto(packet, relay.local_address)
            got = await relays.receive(between.target, len(passing))
            assert [packet for packet, _ in got] == passing
            told = await relays.until(relay, lambda seen: seen.to_targets.datagrams_in == 10)
            assert told.to_targets.dropped == dropped_there
            address: Address = got[0][1]
            for packet in (*BIG, *SMALL):
                between.target.sendto(packet, address)
            if not duplicate:
                assert await relays.payloads(between.client, len(passing)) == passing
                told = await relays.until(relay, lambda seen: seen.to_clients.datagrams_in == 10)
                assert told.to_clients.dropped == dropped_back
    finally:
        between.close()
