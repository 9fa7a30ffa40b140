# UdpChannel of a client and of a server's peer, on sockets: sizes, errors of the path, checkpoints.

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from snaptun_trio import (
    ECN,
    PacketBatch,
    PacketTooLargeError,
    PacketTrain,
    SendBatchError,
    SendFailure,
    UdpChannel,
    open_udp_channel,
)

from . import ends, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.usefixtures("backend")

linux = pytest.mark.skipif(sys.platform != "linux", reason="what only Linux tells")


@contextlib.asynccontextmanager
async def client_of(sock: socket.socket, **options: Any) -> AsyncIterator[UdpChannel]:  # noqa: ANN401
    host, port = sock.getsockname()[:2]
    async with await open_udp_channel(host, port, **options) as channel:
        yield channel


def check(channel: UdpChannel) -> Any:  # noqa: ANN401
    seen = channel.statistics()
    assert seen.datagrams_received == (
        seen.datagrams_delivered
        + seen.datagrams_waiting
        + seen.datagrams_dropped
        + seen.datagrams_discarded
    )
    return seen


def tell(sock: socket.socket, channel: UdpChannel, *packets: bytes) -> None:
    for packet in packets:
        sock.sendto(packet, channel.local_address)


# -- receiving


async def test_what_receive_packet_left_comes_first_and_is_counted(udp: ends.MakeSocket) -> None:
    sock = udp()
    async with client_of(sock) as channel:
        tell(sock, channel, b"one", b"", b"three", b"four")
        assert await channel.receive_packet() == b"one"
        seen = check(channel)
        assert (seen.datagrams_received, seen.datagrams_delivered) == (4, 1)
        assert await channel.receive_packet() == b""
        tell(sock, channel, b"five")
        assert list(await channel.receive()) == [
            (b"three", sock.getsockname()),
            (b"four", sock.getsockname()),
        ]
        assert await channel.receive_packet() == b"five"
        tell(sock, channel, b"six", b"seven")
        assert await channel.receive_packet() == b"six"
    seen = check(channel)
    assert (seen.datagrams_delivered, seen.datagrams_discarded) == (6, 1)
    with pytest.raises(trio.ClosedResourceError):
        await channel.receive()


async def test_only_the_server_is_heard(udp: ends.MakeSocket) -> None:
    sock, stranger = udp(), udp()
    async with client_of(sock) as channel:
        tell(stranger, channel, b"let me in")
        tell(sock, channel, b"hello")
        assert await channel.receive_packet() == b"hello"
        assert channel.address == sock.getsockname()


@linux
async def test_what_a_client_asks_for_is_reported(udp: ends.MakeSocket) -> None:
    sock = udp()
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 3)
    async with client_of(sock, ecn=True, timestamps=True, gro=False) as channel:
        tell(sock, channel, b"x")
        (train,) = (await channel.receive()).trains
        assert train.ecn is ECN.CE
        assert train.timestamp_ns is not None
    async with client_of(sock) as channel:
        tell(sock, channel, b"x")
        (train,) = (await channel.receive()).trains
        assert (train.ecn, train.timestamp_ns) == (None, None)


# -- sizes


@linux
@pytest.mark.parametrize(("host", "headers"), [("127.0.0.1", 28), ("::1", 48)])
async def test_the_mtu_of_loopback(host: str, headers: int, udp: ends.MakeSocket) -> None:
    device = int(Path("/sys/class/net/lo/mtu").read_text())  # noqa: ASYNC240
    sock = udp(host)
    async with serving.server(host=host) as served, client_of(sock) as client:
        peer = await served.new_peer(udp(host))
        for channel in (client, peer):
            assert channel.mtu == min(65_507, device - headers)
            await channel.send_packet(bytes(channel.mtu))
            assert channel.statistics().datagrams_sent == 1


class Refusing:
    """A sender's kernel that takes nothing over a size, as one with a smaller MTU."""

    def __init__(self, most: int) -> None:
        self.most = most

    max_packet_size = 65_507
    is_empty = True

    async def send_packet(self, packet: bytes, *arguments: object, **options: object) -> None:
        await trio.lowlevel.checkpoint()
        if len(packet) > self.most:
            raise OSError(errno.EMSGSIZE, "Message too long")

    def _way_to(self, *arguments: object) -> bytes:
        return b"name"

    @property
    def _shared(self) -> Refusing:
        return self

    async def send_items(self, items: list[tuple[Any, ...]]) -> list[SendFailure]:
        await trio.lowlevel.checkpoint()
        trains = [PacketTrain(payload, size, address) for payload, size, address, *_ in items]
        return [_failure(train) for train in trains if train.segment_size > self.most]

    async def send(self, batch: PacketBatch) -> None:
        await trio.lowlevel.checkpoint()
        failures = [_failure(train) for train in batch.trains if train.segment_size > self.most]
        if failures:
            raise SendBatchError(failures)


def _failure(train: PacketTrain) -> SendFailure:
    return SendFailure(train, OSError(errno.EMSGSIZE, "Message too long"))


async def test_a_refusal_for_its_size_is_learned_from(udp: ends.MakeSocket) -> None:
    async with serving.server() as served, client_of(udp()) as client:
        peer = await served.new_peer(udp())
        for channel in (client, peer):
            owner: Any = channel if channel is client else served.server
            real, owner._sender = owner._sender, Refusing(1000)
            for size in (5000, 3000, 4000):
                with pytest.raises(OSError, match="too long") as info:
                    await channel.send_packet(bytes(size))
                assert info.value.errno == errno.EMSGSIZE
            assert channel.mtu == 2999
            with pytest.raises(SendBatchError):
                await channel.send(ends.batch_of([bytes(10), *[bytes(2000)] * 3, bytes(7)], None))
            assert channel.mtu == 1999
            with pytest.raises(SendBatchError):
                await channel.send_packets([bytes(10), bytes(1500)])
            assert channel.mtu == 1499
            await channel.send_packet(bytes(1000))
            assert channel.mtu == 1499
            owner._sender = real


async def test_sent_is_what_was_not_refused(udp: ends.MakeSocket) -> None:
    async with serving.server() as served:
        peer = await served.new_peer(udp())
        too_long = PacketTrain(bytes(65_520), 65_520, None)
        with pytest.raises(SendBatchError):
            await peer.send(PacketBatch([PacketTrain(b"aabb", 2, None), too_long]))
        assert peer.statistics().datagrams_sent == 2
        with pytest.raises(PacketTooLargeError):
            await peer.send_packet(bytes(65_520))
        assert peer.statistics().datagrams_sent == 2


# -- errors of the path


@linux
async def test_that_nobody_listens_comes_out_of_receive(udp: ends.MakeSocket) -> None:
    sock = udp()
    ends.deafen(sock)
    async with client_of(sock) as channel:
        for call in (channel.receive, channel.receive_packet):
            await channel.send_packet(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                await call()
        with pytest.raises(ConnectionRefusedError):  # it is no end, and goes up
            await channel.send_packet(b"anybody?")
            async for _ in channel:
                raise AssertionError


@linux
@pytest.mark.parametrize("how", ["send", "send_packet"])
async def test_it_does_even_where_a_send_was_told_first(how: str, udp: ends.MakeSocket) -> None:
    sock = udp()
    ends.deafen(sock)
    async with client_of(sock) as channel:
        await channel.send_packet(b"anybody?")
        # The answer is here before the call returns, and the next one is told of it.
        if how == "send":
            await channel.send(ends.batch_of([b"a", b"b"], None))
        else:
            await channel.send_packet(b"a")
        told = check(channel).sender.asynchronous_errors
        assert told == {errno.ECONNREFUSED: 1}
        with pytest.raises(ConnectionRefusedError):
            await channel.receive()


@linux
async def test_without_report_errors_they_are_only_counted(udp: ends.MakeSocket) -> None:
    sock = udp()
    ends.deafen(sock)
    async with client_of(sock, report_errors=False) as channel, trio.open_nursery() as nursery:

        def told() -> int:
            seen = check(channel)
            ends_of_it = (seen.receiver, seen.sender)
            return sum(end.asynchronous_errors.get(errno.ECONNREFUSED, 0) for end in ends_of_it)

        nursery.start_soon(channel.receive)  # would raise it
        for sent in range(1, 4):
            await channel.send_packet(b"anybody?")
            with trio.fail_after(ends.PATIENCE):
                while told() < sent:
                    await trio.lowlevel.checkpoint()
        assert told() == 3
        nursery.cancel_scope.cancel()


@linux
async def test_who_waits_is_told_of_what_a_send_of_another_task_heard(
    udp: ends.MakeSocket,
) -> None:
    sock = udp()
    ends.deafen(sock)
    async with client_of(sock) as channel, trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(ConnectionRefusedError):
                await channel.receive_packet()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            await channel.send_packet(b"anybody?")


@linux
async def test_an_error_keeps_nothing_from_being_sent_or_received() -> None:
    with ends.bound_socket() as sock:
        address = sock.getsockname()
        async with client_of(sock) as channel:
            sock.close()
            await channel.send_packet(b"lost")
            with ends.bound_socket() as elsewhere:
                again = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                with again:
                    try:
                        again.bind(address)
                    except OSError:
                        pytest.skip("another process has taken the port")
                    await channel.send_packet(b"heard")
                    assert again.recv(100) == b"heard"
                    again.sendto(b"answer", channel.local_address)
                    with pytest.raises(ConnectionRefusedError):
                        await channel.receive_packet()
                    assert await channel.receive_packet() == b"answer"
                assert elsewhere.fileno() >= 0


# -- trio's rules


async def test_every_call_of_a_client_is_a_checkpoint(udp: ends.MakeSocket) -> None:
    sock = udp()
    async with client_of(sock) as channel:
        tell(sock, channel, b"one", b"two", b"three")
        for call in (channel.receive_packet, channel.receive_packet, channel.receive):
            with trio.testing.assert_checkpoints():
                await call()
        with trio.testing.assert_checkpoints():
            await channel.send_packet(b"x")
        for batch in (PacketBatch([]), ends.batch_of([b"y"], None)):
            with trio.testing.assert_checkpoints():
                await channel.send(batch)
        with trio.testing.assert_checkpoints():
            await channel.aclose()


async def test_so_is_every_call_of_a_peer(udp: ends.MakeSocket) -> None:
    async with serving.server() as served:
        channel = await served.new_peer(udp())
        with trio.testing.assert_checkpoints():
            await channel.send_packet(b"x")
        for batch in (PacketBatch([]), ends.batch_of([b"y"], None)):
            with trio.testing.assert_checkpoints():
                await channel.send(batch)


async def test_two_readers_of_a_client(udp: ends.MakeSocket, nursery: trio.Nursery) -> None:
    sock = udp()
    async with client_of(sock) as channel:
        nursery.start_soon(channel.receive)
        await trio.testing.wait_all_tasks_blocked()
        for call in (channel.receive, channel.receive_packet):
            with pytest.raises(trio.BusyResourceError):
                await call()
        tell(sock, channel, b"for the first")
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("how", ["receive", "receive_packet", "__anext__"])
async def test_a_client_that_is_closed_while_it_waits(how: str, udp: ends.MakeSocket) -> None:
    async with client_of(udp()) as channel:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await getattr(channel, how)()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            channel.close()
        channel.close()
        for call in (channel.send(PacketBatch([])), channel.send_packet(b"x")):
            with pytest.raises(trio.ClosedResourceError):
                await call
        check(channel)
