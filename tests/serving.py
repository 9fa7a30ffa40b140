# A server for the tests: `serve_udp` in a nursery, and what its handlers do, step by step.
#
# The handler that it has by default hands its channel to the test and waits to be dismissed, so
# that a test plays the handler. Whoever waits for something of the server's waits in `until`, which
# looks again at each turn of the scheduler: what the kernel delivers has no event of its own.

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from snaptun_trio import PacketBatch, open_udp_channel, serve_udp
from snaptun_trio.testing import ScriptedSocket

from . import ends

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from snaptun_trio import Address, ServerStatistics, UdpChannel, UdpServer


def peer(number: int) -> Address:
    return "192.0.2.9", 1000 + number


async def echo(channel: UdpChannel) -> None:
    async for batch in channel:
        await channel.send(batch)


async def finish(channel: UdpChannel) -> None:
    """A handler that takes all there is and then returns."""
    async for _ in channel:
        pass


class RefusedError(Exception):
    """What the tests' admit and handlers raise."""


def fail(*arguments: object) -> bool:
    raise RefusedError(arguments)


class Served:
    """A server that runs, and the clients that a test sends with."""

    def __init__(self) -> None:
        self.server: UdpServer
        self.nursery: trio.Nursery
        self.started: list[UdpChannel] = []
        self._taken = 0
        self._changed = trio.Event()
        self._dismissed: dict[UdpChannel, trio.Event] = {}

    @property
    def address(self) -> Address:
        return self.server.local_address

    async def handler(self, channel: UdpChannel) -> None:
        """Let the test be the handler, until it is dismissed."""
        self.started.append(channel)
        self._dismissed[channel] = trio.Event()
        self._changed.set()
        self._changed = trio.Event()
        await self._dismissed[channel].wait()

    def dismiss(self, channel: UdpChannel) -> None:
        """Let the handler of this channel return."""
        self._dismissed[channel].set()

    async def next_channel(self) -> UdpChannel:
        """The channel of the next peer for whom a handler was started."""
        while len(self.started) <= self._taken:
            await self._changed.wait()
        self._taken += 1
        return self.started[self._taken - 1]

    def statistics(self) -> ServerStatistics:
        """What the server counts, which adds up at any time."""
        return check_law(self.server.statistics())

    async def until(self, holds: Callable[[ServerStatistics], object]) -> ServerStatistics:
        """Wait until something can be seen in the statistics."""
        with trio.fail_after(ends.PATIENCE):
            while not holds(statistics := self.statistics()):
                await trio.lowlevel.checkpoint()
        return statistics

    async def until_received(self, datagrams: int) -> ServerStatistics:
        """Wait until so many datagrams have come in, ever."""
        return await self.until(lambda seen: seen.datagrams_received >= datagrams)

    async def feed(self, *pairs: tuple[bytes, Address | None]) -> ServerStatistics:
        """Let these come in with one call on a scripted socket, and everybody do what is to do."""
        self.feed_batch(PacketBatch.pack(pairs))
        await trio.testing.wait_all_tasks_blocked()
        return self.statistics()

    def feed_batch(self, batch: PacketBatch) -> None:
        """Let a batch come in with one call on a scripted socket."""
        sock = self.server._sender.socket
        assert isinstance(sock, ScriptedSocket)
        sock.receives.append(batch)
        sock.wake()

    async def new_peer(self, sock: socket.socket, *packets: bytes) -> UdpChannel:
        """Send from a new address, and wait for its handler."""
        for packet in packets or (b"hello",):
            sock.sendto(packet, self.address)
        return await self.next_channel()


@contextlib.asynccontextmanager
async def both_ends() -> AsyncIterator[tuple[UdpChannel, UdpChannel]]:
    """A client's channel, and a server's to it; to receive, the server's has to know of it."""
    async with server() as served:
        host, port = served.address[:2]
        async with await open_udp_channel(host, port) as client:
            await client.send_packet(b"hello")
            channel = await served.next_channel()
            assert await channel.receive_packet() == b"hello"
            yield client, channel


def check_law(statistics: ServerStatistics) -> ServerStatistics:
    """What came in is accounted for, at any time."""
    assert statistics.datagrams_received == (
        statistics.datagrams_delivered
        + statistics.datagrams_waiting
        + statistics.datagrams_dropped
        + statistics.datagrams_discarded
        + statistics.datagrams_answered
        + statistics.datagrams_refused
        + statistics.datagrams_shed
    ), statistics
    return statistics


@contextlib.asynccontextmanager
async def server(
    handler: Callable[[UdpChannel], Any] | None = None,
    port: Any = 0,  # noqa: ANN401
    **options: Any,  # noqa: ANN401
) -> AsyncIterator[Served]:
    """A server on loopback, or on a socket that is given; it ends with the block."""
    if isinstance(port, int):
        options.setdefault("host", "127.0.0.1")
    served = Served()
    async with trio.open_nursery() as nursery:
        served.nursery = nursery

        async def serve(*, task_status: trio.TaskStatus[UdpServer]) -> None:
            await serve_udp(
                handler or served.handler,
                port,
                task_status=task_status,
                **options,
            )

        served.server = await nursery.start(serve)
        try:
            yield served
        finally:
            nursery.cancel_scope.cancel()
    check_law(served.server.statistics())
