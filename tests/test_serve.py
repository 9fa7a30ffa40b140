# serve_udp: handlers, what one that raises does, and the end.
#
# On a scripted socket, so that who is heard when is the test's choice. What the kernel adds to that
# is in `test_serve_sockets`.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from snaptun_trio import PacketBatch, serve_udp
from snaptun_trio.testing import ScriptedSocket

from . import ends, serving
from .serving import RefusedError, echo, fail, finish, peer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from snaptun_trio import Address, UdpChannel, UdpServer


# -- the usual


async def test_each_peer_has_a_handler_of_its_own_and_its_answers() -> None:
    sock = ScriptedSocket()
    async with serving.server(echo, sock) as served:
        await served.feed((b"a", peer(1)), (b"b", peer(2)), (b"c", peer(1)))
        await served.feed((b"d", peer(2)))
        assert sorted(sock.sent) == [
            (b"a", peer(1)),
            (b"b", peer(2)),
            (b"c", peer(1)),
            (b"d", peer(2)),
        ]
        seen = served.statistics()
        assert (seen.peers, seen.handlers, seen.peers_admitted) == (2, 2, 2)
        assert [one.statistics().datagrams_sent for one in served.server.peers] == [2, 2]
        assert seen.datagrams_delivered == 4
        assert {one.address for one in served.server.peers} == {peer(1), peer(2)}
    assert served.server.local_address == ("192.0.2.1", 9000)
    assert served.statistics().peers == 0


async def test_a_slow_handler_holds_up_nobody_and_its_queue_is_bounded() -> None:
    sock = ScriptedSocket()

    async def slow_or_not(channel: UdpChannel) -> None:
        if channel.address == peer(1):
            await trio.sleep_forever()
        await echo(channel)

    async with serving.server(slow_or_not, sock, peer_queue=5) as served:
        for _ in range(10):
            await served.feed((b"a", peer(1)), (b"b", peer(2)))
        assert sock.sent == [(b"b", peer(2))] * 10
        seen = served.statistics()
        assert (seen.datagrams_waiting, seen.datagrams_dropped) == (5, 5)
        dropped = [one.statistics().datagrams_dropped for one in served.server.peers]
        assert sorted(dropped) == [0, 5]


async def test_a_peer_whose_handler_has_returned_is_a_new_one_when_it_comes_back() -> None:
    async with serving.server(port=ScriptedSocket()) as served:
        await served.feed((b"a", peer(1)), (b"b", peer(1)))
        first = await served.next_channel()
        served.dismiss(first)
        await trio.testing.wait_all_tasks_blocked()
        seen = served.statistics()
        assert (seen.peers, seen.handlers, seen.datagrams_discarded) == (0, 0, 2)
        await served.feed((b"c", peer(1)))
        second = await served.next_channel()
        assert second is not first
        assert await second.receive_packet() == b"c"
        with pytest.raises(trio.ClosedResourceError):
            await first.send_packet(b"too late")


async def test_a_channel_that_its_handler_closes_is_forgotten_at_once() -> None:
    async with serving.server(port=ScriptedSocket()) as served:
        await served.feed((b"a", peer(1)))
        first = await served.next_channel()
        first.close()
        assert not served.server.peers
        await served.feed((b"b", peer(1)))
        second = await served.next_channel()
        assert served.statistics().handlers == 2
        served.dismiss(first)
        await trio.testing.wait_all_tasks_blocked()
        assert served.server.peers == (second,)


async def test_a_channel_that_outlives_its_handler_is_accounted_for(
    nursery: trio.Nursery,
) -> None:
    """Its reader was handed something in the very turn in which the handler returned."""
    async with serving.server(port=ScriptedSocket()) as served:
        await served.feed((b"a", peer(1)))
        channel = await served.next_channel()
        await channel.receive()

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await channel.receive()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        served.dismiss(channel)
        await served.feed((b"b", peer(1)))
        assert channel.statistics().datagrams_waiting == 0


# -- handlers that raise


async def fail_in(channel: UdpChannel) -> None:
    await channel.receive()
    raise RefusedError(channel.address)


async def test_a_handler_that_raises_ends_everything_and_is_not_wrapped() -> None:
    sock = ScriptedSocket()
    sock.receives.append(PacketBatch.pack([(b"x", peer(1)), (b"y", peer(2))]))

    async def handler(channel: UdpChannel) -> None:
        await (fail_in if channel.address == peer(1) else echo)(channel)

    with pytest.raises(RefusedError):
        await serve_udp(handler, sock)
    assert sock.fileno() == -1


async def test_with_on_error_the_server_goes_on() -> None:
    told: list[Address] = []

    def on_error(error: Exception, channel: UdpChannel) -> None:
        assert isinstance(error, RefusedError)
        told.append(channel.address)

    async with serving.server(fail_in, ScriptedSocket(), on_error=on_error) as served:
        await served.feed((b"x", peer(1)), (b"y", peer(2)))
        seen = await served.feed((b"x", peer(1)))
        assert sorted(told) == [peer(1), peer(1), peer(2)]
        assert (seen.peers, seen.handlers, seen.peers_admitted) == (0, 0, 3)


async def echo_by_packet(channel: UdpChannel) -> None:
    while True:
        await channel.send_packet(await channel.receive_packet())


async def echo_in_a_task(channel: UdpChannel) -> None:
    async for batch in channel:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.send, batch)


async def echo_by_packet_in_a_task(channel: UdpChannel) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo_by_packet, channel)


@pytest.mark.parametrize("handler", [echo, echo_by_packet, echo_in_a_task])
async def test_a_peer_that_cannot_be_answered_ends_nobody_but_itself(
    handler: Callable[[UdpChannel], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """Anybody can forge a source address, and a handler may have no word about it."""
    sock = ScriptedSocket()
    sock.answer = lambda packets, address: errno.EHOSTUNREACH * (address != peer(1))
    async with serving.server(handler, sock) as served:
        await served.feed((b"a", peer(1)))
        for number in range(2, 5):
            seen = await served.feed((b"forged", peer(number)))
            assert (seen.peers_unreachable, seen.handlers) == (number - 1, 1)
        await served.feed((b"b", peer(1)))
        assert sock.sent == [(b"a", peer(1)), (b"b", peer(1))]
    assert len(caplog.records) == 1
    assert "its peer cannot be sent to" in caplog.text


async def test_on_error_is_asked_about_a_peer_that_cannot_be_answered_too() -> None:
    told: list[type[Exception]] = []
    sock = ScriptedSocket()
    sock.answer = lambda packets, address: errno.EHOSTUNREACH
    on_error = lambda error, channel: told.append(type(error))  # noqa: E731
    async with serving.server(echo_by_packet, sock, on_error=on_error) as served:
        seen = await served.feed((b"forged", peer(1)))
        assert (told, seen.peers_unreachable) == ([OSError], 1)


@pytest.mark.parametrize("asked", [True, False])
async def test_an_error_beside_a_cancellation_is_settled_like_any_other(asked: bool) -> None:
    """The server is cancelled, one task of a handler heeds that, and another one meets an error."""
    sock = ScriptedSocket()
    sock.answer = lambda packets, address: errno.EHOSTUNREACH
    told: list[BaseException] = []

    async def speak(channel: UdpChannel) -> None:
        with trio.CancelScope(shield=True):
            await finish(channel)
            await channel.send_packet(b"bye")

    async def handler(channel: UdpChannel) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak, channel)
            nursery.start_soon(trio.sleep_forever)

    on_error = (lambda error, channel: told.append(error)) if asked else None
    async with serving.server(handler, sock, on_error=on_error) as served:
        await served.feed((b"x", peer(1)))
    assert served.statistics().peers_unreachable == 1
    assert len(told) == asked
    for error in told:
        assert isinstance(error, ExceptionGroup)
        assert [type(one) for one in error.exceptions] == [OSError]


async def test_an_error_beside_a_cancellation_that_is_no_peers_goes_up() -> None:
    async def handler(channel: UdpChannel) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                fail()

    with pytest.RaisesGroup(RefusedError):
        async with serving.server(handler, ScriptedSocket()) as served:
            await served.feed((b"x", peer(1)))


@pytest.mark.parametrize("handler", [echo_by_packet, echo_by_packet_in_a_task])
async def test_a_peers_silence_ends_nobody_but_itself(
    handler: Callable[[UdpChannel], Awaitable[None]], autojump_clock: trio.testing.MockClock
) -> None:
    """A handler that only ever asks for the next packet is told that there is none."""
    async with serving.server(handler, ScriptedSocket(), idle_timeout=5) as served:
        await served.feed((b"a", peer(1)))
        await trio.sleep(4)
        await served.feed((b"b", peer(2)))
        await trio.sleep(2)
        seen = served.statistics()
        assert (seen.peers, seen.handlers, seen.peers_expired, seen.peers_unreachable) == (
            1,
            1,
            1,
            0,
        )


async def test_the_end_of_another_channel_is_the_handlers_own() -> None:
    sock = ScriptedSocket()
    sock.receives.append(PacketBatch.pack([(b"x", peer(1))]))

    async def handler(channel: UdpChannel) -> None:
        raise trio.EndOfChannel

    with pytest.raises(trio.EndOfChannel):
        await serve_udp(handler, sock)


async def test_another_error_of_the_same_kind_is_the_handlers_own() -> None:
    sock = ScriptedSocket()
    sock.receives.append(PacketBatch.pack([(b"x", peer(1))]))

    async def handler(channel: UdpChannel) -> None:
        await channel.receive()
        raise OSError(errno.EHOSTUNREACH, "of another socket")

    with pytest.raises(OSError, match="of another socket"):
        await serve_udp(handler, sock)


@pytest.mark.parametrize("how", ["raises", "is async"])
async def test_an_on_error_that_fails_ends_everything(how: str) -> None:
    async def on_error(error: Exception, channel: UdpChannel) -> None:
        pass

    sock = ScriptedSocket()
    sock.receives.append(PacketBatch.pack([(b"x", peer(1))]))
    chosen: Any = fail if how == "raises" else lambda error, channel: on_error(error, channel)
    with pytest.raises(RefusedError if how == "raises" else TypeError):
        await serve_udp(fail_in, sock, on_error=chosen)


async def test_in_a_nursery_of_the_programs_a_handler_that_raises_ends_that(
    nursery: trio.Nursery,
) -> None:
    sock = ScriptedSocket()
    over: list[type[BaseException]] = []

    async def serve(handlers: trio.Nursery, task_status: trio.TaskStatus[UdpServer]) -> None:
        try:
            await serve_udp(fail_in, sock, handler_nursery=handlers, task_status=task_status)
        except RuntimeError as error:
            over.append(type(error))

    server: UdpServer | None = None
    with pytest.raises(BaseExceptionGroup) as info:
        async with trio.open_nursery() as handlers:
            server = await nursery.start(serve, handlers)
            sock.receives.append(PacketBatch.pack([(b"x", peer(1))]))
            sock.wake()
            await trio.sleep_forever()
    assert info.group_contains(RefusedError)
    # The server itself goes on, until there is nobody to run a handler for a newcomer.
    assert server is not None
    assert not over
    sock.receives.append(PacketBatch.pack([(b"y", peer(2)), (b"z", peer(3))]))
    sock.wake()
    await trio.testing.wait_all_tasks_blocked()
    assert over == [RuntimeError]
    seen = serving.check_law(server.statistics())
    assert (seen.datagrams_received, seen.datagrams_discarded, seen.handlers) == (3, 2, 0)
    assert sock.fileno() == -1


# -- the end


async def test_a_cancelled_server_cancels_its_handlers_and_closes_the_socket() -> None:
    sock = ScriptedSocket()
    cancelled: list[Address] = []

    async def handler(channel: UdpChannel) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(channel.address)

    async with serving.server(handler, sock) as served:
        await served.feed((b"x", peer(1)), (b"y", peer(2)))
    assert sorted(cancelled) == [peer(1), peer(2)]
    assert sock.fileno() == -1
    assert served.statistics().datagrams_discarded == 2


async def test_a_handler_that_heeds_no_cancellation_hears_of_the_end() -> None:
    sock = ScriptedSocket()

    async def handler(channel: UdpChannel) -> None:
        with trio.CancelScope(shield=True):
            await finish(channel)
            await channel.send_packet(b"bye")

    async with serving.server(handler, sock) as served:
        await served.feed((b"x", peer(1)))
    assert sock.sent == [(b"bye", peer(1))]
    assert sock.fileno() == -1


async def test_handlers_in_a_nursery_of_the_programs_send_on_after_the_server(
    nursery: trio.Nursery,
) -> None:
    sock = ScriptedSocket()
    go_on = trio.Event()

    async def handler(channel: UdpChannel) -> None:
        await finish(channel)
        await channel.send_packet(b"bye")
        await go_on.wait()
        await channel.send(ends.batch_of([b"bye"], None))

    async with serving.server(handler, sock, handler_nursery=nursery) as served:
        await served.feed((b"x", peer(1)), (b"y", peer(2)))
        assert sock.sent == []
    await trio.testing.wait_all_tasks_blocked()
    assert len(sock.sent) == 2
    assert sock.fileno() != -1
    assert served.statistics().handlers == 2
    go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    assert len(sock.sent) == 4
    assert sock.fileno() == -1
    assert served.statistics().handlers == 0


async def test_what_a_cancelled_handler_was_sending_goes_at_the_end() -> None:
    """The socket was full then, and is not any more."""
    sock = ScriptedSocket()
    sock.sends.append(errno.EAGAIN)

    async def handler(channel: UdpChannel) -> None:
        await channel.send_packet(b"accepted")

    async with serving.server(handler, sock) as served:
        await served.feed((b"x", peer(1)))
        assert (sock.sent, served.statistics().sender.datagrams_queued) == ([], 1)
    assert sock.sent == [(b"accepted", peer(1))]
    sender = served.statistics().sender
    assert (sender.datagrams_sent, sender.datagrams_discarded) == (1, 0)


async def test_what_the_socket_does_not_take_even_then_is_discarded_and_counted() -> None:
    sock = ScriptedSocket()
    sock.sends += [errno.EAGAIN] * 3

    async def handler(channel: UdpChannel) -> None:
        await channel.send_packet(b"accepted")

    async with serving.server(handler, sock) as served:
        await served.feed((b"x", peer(1)))
    assert sock.sent == []
    assert served.statistics().sender.datagrams_discarded == 1


async def test_control_c_may_interrupt_a_handler() -> None:
    protected: list[bool] = []

    async def handler(channel: UdpChannel) -> None:
        protected.append(trio.lowlevel.currently_ki_protected())
        await channel.receive()
        protected.append(trio.lowlevel.currently_ki_protected())

    async with serving.server(handler, ScriptedSocket()) as served:
        await served.feed((b"x", peer(1)))
    assert protected == [False, False]
