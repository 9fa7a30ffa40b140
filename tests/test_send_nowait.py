# UdpChannel.send_packets_nowait: what nobody waits for leaves all the same, from any channel.

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio
import trio.testing

from snaptun_trio import UdpBatchSender, open_udp_channel, open_udp_socket, serve_udp
from snaptun_trio._client import ClientChannel
from snaptun_trio.testing import ScriptedSocket, impair, memory_channel_pair

from . import ends, serving
from .test_send_packets import KINDS, PACKETS, arrived, breaks, pair
from .test_sender import check_law

if TYPE_CHECKING:
    from collections.abc import Iterator

    from snaptun_trio import Address, UdpChannel, UdpServer

pytestmark = pytest.mark.usefixtures("backend")

FEW, MANY = [b"one", b"three"], ends.numbered(40, 4)
EITHER = pytest.mark.parametrize("packets", [FEW, MANY], ids=["few", "many"])


class FullSocket:
    """A scripted socket that takes nothing, and then so much."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        self.room = 0
        self.sock = ScriptedSocket(**options)
        self.sock.answer = self._answer

    def _answer(self, packets: list[bytes], _: Address | None) -> int:
        if self.room < len(packets):
            return errno.EAGAIN
        self.room -= len(packets)
        return 0

    def take(self, datagrams: int) -> None:
        self.room = datagrams
        self.sock.wake()

    @property
    def sent(self) -> list[bytes]:
        return [packet for packet, _ in self.sock.sent]


@pytest.mark.core
@pytest.mark.parametrize("packets", PACKETS)
@pytest.mark.parametrize("kind", KINDS)
async def test_all_arrive_in_their_order(kind: str, packets: list[bytes]) -> None:
    async with pair(kind) as (channel, far):
        before = channel.statistics().datagrams_sent
        with trio.testing.assert_no_checkpoints():
            channel.send_packets_nowait(iter(packets))
        assert await arrived(far, len(packets)) == packets
        assert channel.statistics().datagrams_sent - before == len(packets)


@pytest.mark.parametrize("kind", KINDS)
async def test_they_keep_their_order_among_those_that_are_waited_for(kind: str) -> None:
    async with pair(kind) as (channel, far):
        channel.send_packets_nowait([b"1", b"2"])
        await channel.send_packet(b"3")
        channel.send_packets_nowait(ends.numbered(20, 4))
        await channel.send_packets([b"4", b"5"])
        assert await arrived(far, 25) == [b"1", b"2", b"3", *ends.numbered(20, 4), b"4", b"5"]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_wrong_is_told_and_nothing_is_sent(kind: str) -> None:
    async with pair(kind) as (channel, _):

        def closes() -> Iterator[bytes]:
            yield b"one"
            channel.close()

        before = channel.statistics()
        wrong: Any
        for wrong, error in (
            (b"one packet", TypeError),
            ([b"one", "text"], TypeError),
            (None, TypeError),
            ([b"one", bytes(65_528)], ValueError),
            (breaks(), ZeroDivisionError),
        ):
            with pytest.raises(error):
                channel.send_packets_nowait(wrong)
        channel.send_packets_nowait([])
        assert channel.statistics() == before
        with pytest.raises(trio.ClosedResourceError):
            channel.send_packets_nowait(closes())
        for packets in ([], [b"one"]):
            with pytest.raises(trio.ClosedResourceError):
                channel.send_packets_nowait(packets)


# -- a server's


@EITHER
async def test_a_server_sends_a_few_in_the_next_turn_with_what_others_send(
    backend: str, packets: list[bytes]
) -> None:
    sock = ScriptedSocket()
    async with serving.server(port=sock) as served:
        await served.feed(*((b"hello", serving.peer(n)) for n in range(3)))
        for channel in served.server.peers:
            channel.send_packets_nowait(packets)
        assert len(sock.sent) == (0 if packets is FEW else 3 * len(packets)), "many go at once"
        await trio.testing.wait_all_tasks_blocked()
        assert len(sock.sent) == 3 * len(packets)
        if backend == "linux" and packets is FEW:
            assert served.statistics().sender.send_calls == 1


@EITHER
async def test_what_a_full_socket_does_not_take_leaves_when_it_does(packets: list[bytes]) -> None:
    full = FullSocket()
    async with serving.server(port=full.sock) as served:
        await served.feed((b"hello", serving.peer(1)))
        (channel,) = served.server.peers
        channel.send_packets_nowait(packets)
        for room in (1, 100):  # of a train all or nothing is taken
            await trio.testing.wait_all_tasks_blocked()
            assert served.statistics().sender.datagrams_queued == len(packets) - len(full.sent)
            full.take(room)
        await trio.testing.wait_all_tasks_blocked()
        assert full.sent == packets


async def test_where_too_much_waits_nothing_more_is_taken() -> None:
    full = FullSocket()
    async with serving.server(port=full.sock) as served:
        await served.feed((b"a", serving.peer(1)), (b"b", serving.peer(2)))
        one, other = served.server.peers
        most = served.server._sender.batch_size
        for _ in range(most // 2):
            one.send_packets_nowait([b"x", b"y"])
        with pytest.raises(trio.WouldBlock):
            one.send_packets_nowait([b"x", b"y"])
        for packets in (FEW, MANY):
            with pytest.raises(trio.WouldBlock):
                other.send_packets_nowait(packets)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.send_packets, FEW)
            await trio.testing.wait_all_tasks_blocked()
            full.take(1)
            await trio.testing.wait_all_tasks_blocked()
            full.take(most + 100)
        await trio.testing.wait_all_tasks_blocked()
        assert full.sent == [b"x", b"y"] * (most // 2) + FEW
        assert one.statistics().datagrams_sent == most
        assert other.statistics().datagrams_sent == len(FEW)


async def test_nobody_who_waits_for_room_is_overtaken() -> None:
    full = FullSocket()
    async with serving.server(port=full.sock) as served:
        await served.feed((b"a", serving.peer(1)), (b"b", serving.peer(2)))
        one, other = served.server.peers
        served.server._sender._shared._most = 2
        one.send_packets_nowait([b"x", b"y"])
        await trio.testing.wait_all_tasks_blocked()  # or this one would wait as who sends
        served.nursery.start_soon(other.send_packets, FEW)
        await trio.testing.wait_all_tasks_blocked()
        served.server._sender._shared._most = 3  # there is room, but for whom it is known
        with pytest.raises(trio.WouldBlock):
            one.send_packets_nowait([b"z"])
        full.take(4)
        await trio.testing.wait_all_tasks_blocked()
        assert full.sent == [b"x", b"y", *FEW]


async def test_what_is_queued_while_the_servers_task_waits_for_the_socket_leaves_too() -> None:
    full = FullSocket()
    async with serving.server(port=full.sock) as served:
        await served.feed((b"a", serving.peer(1)))
        (channel,) = served.server.peers
        channel.send_packets_nowait([b"one"])
        await trio.testing.wait_all_tasks_blocked()
        channel.send_packets_nowait([b"two"])
        for _ in range(2):
            full.take(1)
            await trio.testing.wait_all_tasks_blocked()
        assert full.sent == [b"one", b"two"]


async def test_where_many_wait_for_room_the_others_have_their_turn_all_the_same() -> None:
    full = FullSocket()
    sent = []

    async def watch() -> None:
        while len(full.sent) < len(peers) + 1:
            sent.append(len(full.sent))
            await trio.lowlevel.checkpoint()

    async with serving.server(port=full.sock) as served:
        peers = [serving.peer(n) for n in range(500)]
        await served.feed(*((b"hello", peer) for peer in peers))
        served.server._sender._shared._most = most = 50
        channels = served.server.peers
        channels[0].send_packets_nowait([b"first"])
        await trio.testing.wait_all_tasks_blocked()
        for channel in channels:
            served.nursery.start_soon(channel.send_packet, b"answer")
        await trio.testing.wait_all_tasks_blocked()
        served.nursery.start_soon(watch)
        full.take(1000)
        await trio.testing.wait_all_tasks_blocked()
        sent.append(len(full.sent))
        assert max(after - before for before, after in itertools.pairwise(sent)) <= 2 * most


async def test_the_task_that_there_was_no_memory_to_wake_is_woken_by_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*_: object) -> NoReturn:
        raise MemoryError

    sock = ScriptedSocket()
    async with serving.server(port=sock) as served:
        await served.feed((b"a", serving.peer(1)))
        (channel,) = served.server.peers
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(trio.lowlevel, "reschedule", no_memory)
            channel.send_packets_nowait([b"one"])
        channel.send_packets_nowait([b"two"])
        await trio.testing.wait_all_tasks_blocked()
        assert [packet for packet, _ in sock.sent] == [b"one", b"two"]


@EITHER
@pytest.mark.parametrize("whose", ["client", "server"])
async def test_what_a_cancelled_send_left_is_not_in_the_way_for_ever(
    whose: str, packets: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = ends.numbered(2000, 4)
    full = FullSocket(remote_address=serving.peer(1) if whose == "client" else None)

    async def opened(*_: object, **__: object) -> ScriptedSocket:
        await trio.lowlevel.checkpoint()
        return full.sock

    async def go_on(channel: UdpChannel) -> None:
        with trio.CancelScope() as scope:
            trio.lowlevel.spawn_system_task(lambda: cancelling(scope))
            await channel.send_packets(left)
        full.take(5000)
        await trio.testing.wait_all_tasks_blocked()
        with contextlib.suppress(trio.WouldBlock):  # a server's leave in the next turn
            channel.send_packets_nowait([b"perhaps"])
        await trio.testing.wait_all_tasks_blocked()
        channel.send_packets_nowait(packets)
        await trio.testing.wait_all_tasks_blocked()
        assert [one for one in full.sent if one != b"perhaps"] == left + packets

    async def cancelling(scope: trio.CancelScope) -> None:
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()

    if whose == "client":
        monkeypatch.setattr("snaptun_trio._client.open_udp_socket", opened)
        async with await open_udp_channel("192.0.2.9", 1) as channel:
            await go_on(channel)
    else:
        async with serving.server(port=full.sock) as served:
            await served.feed((b"a", serving.peer(1)))
            await go_on(*served.server.peers)


@EITHER
async def test_a_refusal_is_counted_and_logged_and_ends_nobody(
    packets: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    sock = ScriptedSocket()
    sock.answer = lambda _, address: errno.EPERM if address == serving.peer(1) else 0
    async with serving.server(port=sock) as served:
        await served.feed((b"a", serving.peer(1)), (b"b", serving.peer(2)))
        one, other = served.server.peers
        with caplog.at_level(logging.WARNING, "snaptun_trio"):
            for _ in range(3):
                one.send_packets_nowait(packets)
                other.send_packets_nowait(packets)
                await trio.testing.wait_all_tasks_blocked()
        assert dict(served.statistics().sender.failures) == {errno.EPERM: 3 * len(packets)}
        assert [packet for packet, _ in sock.sent] == packets * 3
        assert served.statistics().peers == 2
        (line,) = [record.message for record in caplog.records]
        assert "192.0.2.9" in line
        assert not served.server._sender._flush.unclaimed
        check_law(served.server._sender)


async def test_the_mtu_learns_from_a_refusal_that_nobody_was_told_of() -> None:
    sock = ScriptedSocket()
    sock.answer = lambda packets, _: errno.EMSGSIZE if len(packets[0]) > 1000 else 0
    async with serving.server(port=sock) as served:
        await served.feed((b"a", serving.peer(1)), (b"b", serving.peer(2)))
        one, other = served.server.peers
        before = other.mtu
        one.send_packets_nowait([bytes(1001)])
        await trio.testing.wait_all_tasks_blocked()
        assert (one.mtu, other.mtu) == (1000, before)


async def test_it_is_never_another_ones_refusal() -> None:
    sock = ScriptedSocket()
    sock.answer = lambda _, address: errno.EPERM if address == serving.peer(1) else 0
    async with serving.server(port=sock) as served:
        await served.feed((b"a", serving.peer(1)), (b"b", serving.peer(2)))
        one, other = served.server.peers
        one.send_packets_nowait([b"x"])
        await other.send_packets([b"y"])  # in the same turn
        assert [packet for packet, _ in sock.sent] == [b"y"]


async def test_a_handler_that_ends_has_sent_it() -> None:
    async def answer(channel: UdpChannel) -> None:
        channel.send_packets_nowait([await channel.receive_packet()])

    sock = ScriptedSocket()
    async with serving.server(answer, sock) as served:
        await served.feed((b"a", serving.peer(1)))
        assert sock.sent == [(b"a", serving.peer(1))]


@EITHER
async def test_a_server_that_ends_at_once_has_sent_it(packets: list[bytes]) -> None:
    sock = ScriptedSocket()
    async with trio.open_nursery() as nursery:

        async def answer(channel: UdpChannel) -> None:
            channel.send_packets_nowait(packets)
            nursery.cancel_scope.cancel()

        await nursery.start(serve_udp, answer, sock)
        sock.receives.append(ends.batch_of([b"a"], serving.peer(1)))
        sock.wake()
    assert [packet for packet, _ in sock.sent] == packets


async def test_the_socket_is_closed_under_it(udp: ends.MakeSocket) -> None:
    async def answer(channel: UdpChannel) -> None:
        channel.send_packets_nowait(FEW)
        sock.close()
        await trio.sleep_forever()

    sock = await open_udp_socket(("127.0.0.1", 0))
    udp().sendto(b"a", sock.getsockname())
    with pytest.raises(trio.ClosedResourceError):  # and not a group of two
        await serve_udp(answer, sock)


async def one_that_outlives(
    handlers: trio.Nursery, nursery: trio.Nursery, full: FullSocket
) -> tuple[UdpServer, UdpChannel, trio.Event]:
    """A server, the channel of a handler that goes on without it, and what lets that one return."""
    channels: list[UdpChannel] = []
    leave = trio.Event()

    async def handler(channel: UdpChannel) -> None:
        channels.append(channel)
        await leave.wait()

    serve = partial(serve_udp, handler, full.sock, handler_nursery=handlers)
    server: UdpServer = await nursery.start(serve)
    full.sock.receives.append(ends.batch_of([b"a"], serving.peer(1)))
    full.sock.wake()
    await trio.testing.wait_all_tasks_blocked()
    return server, channels[0], leave


@EITHER
async def test_after_the_server_has_stopped_a_handler_still_sends(packets: list[bytes]) -> None:
    full = FullSocket()
    async with trio.open_nursery() as handlers:
        async with trio.open_nursery() as nursery:
            server, channel, leave = await one_that_outlives(handlers, nursery, full)
            nursery.cancel_scope.cancel()
        full.take(1)
        channel.send_packets_nowait([b"at once"])
        assert full.sent == [b"at once"]
        channel.send_packets_nowait(packets)
        channel.send_packets_nowait([b"and this"])
        await trio.testing.wait_all_tasks_blocked()
        assert full.sent == [b"at once"]
        full.take(100)
        await trio.testing.wait_all_tasks_blocked()
        assert full.sent == [b"at once", *packets, b"and this"]
        leave.set()
    sender = server.statistics().sender
    assert (sender.datagrams_sent, sender.datagrams_discarded) == (len(packets) + 2, 0)


@EITHER
@pytest.mark.parametrize("when", ["before", "while it waits for the socket", "in the same turn"])
async def test_what_is_left_when_the_server_stops_leaves_all_the_same(
    packets: list[bytes], when: str
) -> None:
    full = FullSocket()
    async with trio.open_nursery() as handlers:
        async with trio.open_nursery() as nursery:
            _, channel, leave = await one_that_outlives(handlers, nursery, full)
            if when == "in the same turn":
                nursery.cancel_scope.cancel()
            channel.send_packets_nowait(packets)
            if when == "while it waits for the socket":
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        full.take(100)
        await trio.testing.wait_all_tasks_blocked()
        sent = list(full.sent)  # before the last handler returns, which sends what is left
        leave.set()
    assert sent == packets


@EITHER
async def test_it_leaves_from_the_address_that_was_asked(
    packets: list[bytes], udp: ends.MakeSocket
) -> None:
    async def answer(channel: UdpChannel) -> None:
        async for _ in channel:
            channel.send_packets_nowait(packets)

    sock = udp()
    async with serving.server(answer, host="0.0.0.0") as served:
        asked = "127.0.0.2", served.address[1]
        sock.sendto(b"a", asked)
        await served.until(lambda seen: seen.sender.datagrams_sent == len(packets))
    assert {sock.recvfrom(100)[1] for _ in packets} == {asked}


# -- a client's


@EITHER
async def test_a_client_sends_at_once(packets: list[bytes], udp: ends.MakeSocket) -> None:
    sock = udp()
    async with await open_udp_channel(*sock.getsockname()[:2]) as channel:
        channel.send_packets_nowait(packets)
        assert [sock.recv(100) for _ in packets] == packets


async def client_of(sock: ScriptedSocket, monkeypatch: pytest.MonkeyPatch) -> UdpChannel:
    async def opened(*_: object, **__: object) -> ScriptedSocket:
        await trio.lowlevel.checkpoint()
        return sock

    monkeypatch.setattr("snaptun_trio._client.open_udp_socket", opened)
    return await open_udp_channel("192.0.2.9", 1)


async def test_a_clients_mtu_learns_from_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    sock = ScriptedSocket(remote_address=serving.peer(1))
    sock.answer = lambda packets, _: errno.EMSGSIZE if len(packets[0]) > 1000 else 0
    async with await client_of(sock, monkeypatch) as channel:
        channel.send_packets_nowait([bytes(1001), b"x"])
        assert channel.mtu == 1000


async def test_what_a_clients_socket_does_not_take_leaves_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = FullSocket(remote_address=serving.peer(1))
    async with await client_of(full.sock, monkeypatch) as channel:
        channel.send_packets_nowait(FEW)
        await trio.testing.wait_all_tasks_blocked()
        channel.send_packets_nowait([b"more"])
        for room in (1, 1, 1):
            assert len(full.sent) < 3
            full.take(room)
            await trio.testing.wait_all_tasks_blocked()
        assert full.sent == [*FEW, b"more"]
        full.room = 1
        channel.send_packets_nowait([b"at once again"])
        assert full.sent == [*FEW, b"more", b"at once again"]
        channel.send_packets_nowait([b"never"])
        await trio.testing.wait_all_tasks_blocked()
    await trio.testing.wait_all_tasks_blocked()
    counted = channel.statistics().sender
    assert counted is not None
    assert (counted.datagrams_sent, counted.datagrams_discarded) == (4, 1)


async def test_a_clients_refusal_is_counted(udp: ends.MakeSocket) -> None:
    sock = udp()
    async with await open_udp_channel(*sock.getsockname()[:2]) as channel:
        channel.send_packets_nowait([b"one", bytes(65_520), b"two"])
        assert [sock.recv(100) for _ in range(2)] == [b"one", b"two"]
        counted = channel.statistics().sender
        assert counted is not None
        assert dict(counted.failures) == {errno.EMSGSIZE: 1}
        assert isinstance(channel, ClientChannel)
        assert not channel._sender._flush.unclaimed, "kept for whom?"


# -- of the testing kit


async def test_a_delay_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_channel_pair()
    impair(near, delay=2.0).send_packets_nowait(FEW)
    start = trio.current_time()
    assert await far.receive_packet() == FEW[0]
    assert trio.current_time() - start == 2.0


async def test_through_an_impaired_sender_which_has_no_address() -> None:
    sock = ScriptedSocket(remote_address=serving.peer(1))
    impair(UdpBatchSender(sock), duplicate=1).send_packets_nowait(FEW)
    assert sock.sent == [(packet, None) for packet in (FEW[0], FEW[0], FEW[1], FEW[1])]


async def test_an_impaired_sender_tells_no_refusal_and_what_it_does_not_take_leaves() -> None:
    full = FullSocket(remote_address=serving.peer(1))
    sender = UdpBatchSender(full.sock)
    channel = impair(sender)
    channel.send_packets_nowait(FEW)
    await trio.testing.wait_all_tasks_blocked()
    full.take(len(FEW))
    await trio.testing.wait_all_tasks_blocked()
    assert full.sent == FEW
    full.sock.answer = lambda *_: errno.EPERM
    channel.send_packets_nowait(FEW)
    assert dict(sender.statistics().failures) == {errno.EPERM: len(FEW)}


async def test_through_an_impaired_channel_that_is_full() -> None:
    full = FullSocket()
    async with serving.server(port=full.sock) as served:
        await served.feed((b"a", serving.peer(1)))
        served.server._sender._shared._most = 1
        (channel,) = served.server.peers
        bad = impair(channel)
        bad.send_packets_nowait([b"x"])
        with pytest.raises(trio.WouldBlock):
            bad.send_packets_nowait([b"y"])
        assert [one.packet for one in bad.log] == [b"x", b"y"]
        full.take(9)
        await trio.testing.wait_all_tasks_blocked()
        assert full.sent == [b"x"]
