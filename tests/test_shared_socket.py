# Two receivers on one socket: nothing breaks, nothing comes twice, and only one may wait.

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import UdpBatchReceiver

from . import ends

if TYPE_CHECKING:
    import socket

    from snaptun_trio import PacketBatch


def send(peer: socket.socket, packet: bytes, to: socket.socket) -> None:
    peer.sendto(packet, to.getsockname())
    ends.wait_until_readable(to)


def test_each_datagram_goes_to_the_receiver_that_asks_first(
    backend: str, udp: ends.MakeSocket
) -> None:
    shared, peer = udp(), udp()
    with UdpBatchReceiver(shared) as one, UdpBatchReceiver(shared) as two:
        for receiver, other in ((one, two), (two, one)):
            send(peer, b"only once", shared)
            assert ends.payloads(receiver, 1) == [b"only once"]
            assert ends.nothing_waits(other)
        assert one.statistics().datagrams_received == 1
        assert two.statistics().datagrams_received == 1


async def test_only_one_of_two_receivers_may_wait(
    backend: str, nursery: trio.Nursery, udp: ends.MakeSocket
) -> None:
    shared, peer = udp(), udp()
    received: list[PacketBatch] = []

    async def wait_for_one(receiver: UdpBatchReceiver) -> None:
        received.append(await receiver.receive())

    with UdpBatchReceiver(shared) as one, UdpBatchReceiver(shared) as two:
        nursery.start_soon(wait_for_one, one)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await two.receive()
        send(peer, b"for the one that waits", shared)
        with trio.fail_after(ends.PATIENCE):
            while not received:
                await trio.lowlevel.checkpoint()
        assert [packet for packet, _ in received[0]] == [b"for the one that waits"]
        # The other is whole, and its turn comes when nobody waits any more.
        send(peer, b"for the other", shared)
        assert [packet for packet, _ in await two.receive()] == [b"for the other"]
