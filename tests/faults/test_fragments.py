# What is over the interface's MTU, with and without `fragment=True`.
#
# A network of our own, whose loopback has the MTU of an Ethernet.

from __future__ import annotations

import errno

import pytest

from snaptun_trio import SendBatchError, UdpBatchReceiver, UdpBatchSender, open_udp_socket

from .. import ends
from . import netns

pytestmark = [pytest.mark.own_network, pytest.mark.usefixtures("backend")]

BIG = ends.numbered(3, 3000)
SMALL = ends.numbered(3, 1000)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_fragments_arrive_whole_beside_datagrams_that_need_none(host: str) -> None:
    netns.run("ip link set lo mtu 1500")
    with (
        await open_udp_socket((host, 0)) as incoming,
        await open_udp_socket((host, 0), fragment=True) as outgoing,
    ):
        sender, receiver = UdpBatchSender(outgoing), UdpBatchReceiver(incoming)
        target = ends.address_of(incoming)
        for packets in (BIG, SMALL):
            await sender.send(ends.batch_of(packets, target))
        assert ends.payloads(receiver, 6) == [*BIG, *SMALL]
        statistics = sender.statistics()
        assert statistics.trains_sent == 6, "each datagram is a message of its own"
        assert statistics.gso_fallbacks == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_without_fragments_what_is_oversize_is_refused(host: str) -> None:
    netns.run("ip link set lo mtu 1500")
    with (
        await open_udp_socket((host, 0)) as incoming,
        await open_udp_socket((host, 0)) as outgoing,
    ):
        sender, receiver = UdpBatchSender(outgoing), UdpBatchReceiver(incoming)
        target = ends.address_of(incoming)
        with pytest.raises(SendBatchError):
            await sender.send(ends.batch_of(BIG, target))
        assert sender.statistics().failures == {errno.EMSGSIZE: 3}
        await sender.send(ends.batch_of(SMALL, target))
        assert ends.payloads(receiver, 3) == SMALL


async def test_both_families_of_one_socket_are_fragmented() -> None:
    netns.run("ip link set lo mtu 1500")
    with (
        await open_udp_socket() as incoming,
        await open_udp_socket(fragment=True) as outgoing,
    ):
        sender, receiver = UdpBatchSender(outgoing), UdpBatchReceiver(incoming)
        port = ends.address_of(incoming)[1]
        for host in ("127.0.0.1", "::1"):
            await sender.send(ends.batch_of(BIG, (host, port)))
        assert ends.payloads(receiver, 6) == BIG * 2
