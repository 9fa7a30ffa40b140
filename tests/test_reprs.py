# What a log or a debugger shows: where something is, and not where in memory.

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from snaptun_trio import UdpBatchReceiver, UdpBatchSender, open_udp_channel
from snaptun_trio.testing import memory_channel_pair

from . import ends, serving

if TYPE_CHECKING:
    import socket


def place(sock: socket.socket) -> str:
    host, port = sock.getsockname()
    return f"{host} port {port}"


def test_of_receivers_and_senders(backend: str, udp: ends.MakeSocket) -> None:
    sock = udp()
    receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
    sender.try_queue_packet(b"x", ("127.0.0.1", 9))
    assert repr(receiver) == f"<UdpBatchReceiver on {place(sock)}>"
    assert repr(sender) == f"<UdpBatchSender on {place(sock)}: 1 datagrams queued>"
    sock.close()
    assert repr(receiver) == "<UdpBatchReceiver on a closed socket>"


async def test_of_channels_and_servers(udp: ends.MakeSocket) -> None:
    async with serving.server() as served:
        server = served.server
        port = server.local_address[1]
        assert repr(server) == f"<UdpServer on 127.0.0.1 port {port}: 0 peers>"
        channel = await open_udp_channel("127.0.0.1", port)
        assert repr(channel) == f"<ClientChannel to 127.0.0.1 port {port}>"
        await channel.aclose()
        assert repr(channel) == f"<ClientChannel to 127.0.0.1 port {port}, closed>"
    here, _ = memory_channel_pair()
    assert repr(here) == "<MemoryChannel to 192.0.2.2 port 443>"


@pytest.mark.needs_gro
def test_a_receiver_says_whether_there_is_gro(backend: str, udp: ends.MakeSocket) -> None:
    sock = udp()
    receiver = UdpBatchReceiver(sock)
    assert receiver.gro
    assert not UdpBatchReceiver(udp(), gro=False).gro
    sock.close()
    assert not receiver.gro
