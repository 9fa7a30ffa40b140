# Both ends of QUIC for the tests: the documentation's server and client, on sockets or in memory.

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import trio
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from snaptun_trio import open_udp_socket

from . import ends
from .examples import example

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from snaptun_trio import PacketBatch, UdpChannel

SERVER, CLIENT, FILES = example("quic_server"), example("quic_client"), example("quic_files")
QUIC = example("quic")
HOST = "127.0.0.1"
MOVES = {"get": FILES.get, "put": FILES.put}


class Files:
    """A certificate, its key, and the configurations that they go into."""

    def __init__(self, certificate: str, key: str) -> None:
        self.certificate, self.key = certificate, key

    def server(self, **options: Any) -> QuicConfiguration:  # noqa: ANN401
        configuration = QuicConfiguration(
            is_client=False, alpn_protocols=[SERVER.ALPN], **{"idle_timeout": 30.0, **options}
        )
        configuration.load_cert_chain(self.certificate, self.key)
        return configuration

    def client(self, **options: Any) -> QuicConfiguration:  # noqa: ANN401
        options = {"alpn_protocols": [CLIENT.ALPN], "server_name": HOST, **options}
        configuration = QuicConfiguration(**options)
        configuration.load_verify_locations(self.certificate)
        return configuration


def hash_of(size: int) -> str:
    digest = hashlib.sha256()
    for piece in FILES.content(size):
        digest.update(piece)
    return digest.hexdigest()


async def moved(connection: Any, verb: str, size: int) -> str:  # noqa: ANN401
    async with connection.open_stream() as stream:
        told: str = await MOVES[verb](stream, size)
        return told


@contextlib.asynccontextmanager
async def serving(
    files: Files,
    handler: Callable[[Any], Awaitable[None]] = SERVER.answer_streams,
    *,
    host: str = HOST,
    idle_timeout: float = 30.0,
    **options: Any,  # noqa: ANN401
) -> AsyncGenerator[Any, None]:
    """A server on loopback, cancelled at the end of the block."""
    with await open_udp_socket((host, 0)) as sock:
        server = SERVER.Server(sock, files.server(idle_timeout=idle_timeout), handler, **options)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            try:
                yield server
            finally:
                nursery.cancel_scope.cancel()
    assert not server.connections
    assert not server.routes


def port_of(server: Any) -> int:  # noqa: ANN401
    port: int = server.receiver.local_address[1]
    return port


async def until(holds: Callable[[], object]) -> None:
    """Wait for what only looking can tell."""
    with trio.fail_after(ends.PATIENCE):
        while not holds():
            await trio.lowlevel.checkpoint()


@contextlib.asynccontextmanager
async def in_memory(
    files: Files,
    near: UdpChannel,
    far: UdpChannel,
    send: Callable[[PacketBatch], Awaitable[None]],
    answer: Callable[[PacketBatch], Awaitable[None]],
    **options: Any,  # noqa: ANN401
) -> AsyncGenerator[tuple[Any, Any], None]:
    """A client and a server that has no other, on two channels: their connections."""
    quic = QuicConnection(configuration=files.client(**options))
    quic.connect((near.address, None), now=trio.current_time())
    client = QUIC.Connection(quic, send)
    behind = QuicConnection(
        configuration=files.server(**options),
        original_destination_connection_id=quic.original_destination_connection_id,
    )
    server = QUIC.Connection(behind, answer)

    async def serve() -> None:
        batch = await far.receive()
        server.feed([(packet, (far.address, None)) for packet, _ in batch])
        nursery.start_soon(receive, far, server)
        async with trio.open_nursery() as serving:
            serving.start_soon(SERVER.answer_streams, server)
            await server.run()

    async def receive(channel: UdpChannel, connection: Any) -> None:  # noqa: ANN401
        async for batch in channel:
            connection.feed([(packet, (channel.address, None)) for packet, _ in batch])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        nursery.start_soon(client.run)
        nursery.start_soon(receive, near, client)
        await client.wait_connected()
        yield client, server
        nursery.cancel_scope.cancel()


class Rebinding:
    """A way to a server that is a NAT: it may lose its binding, and take another port."""

    def __init__(self, server_port: int) -> None:
        self._target = (HOST, server_port)
        self._client: Any = None
        self.passed = 0

    async def run(self, *, task_status: trio.TaskStatus[int]) -> None:
        self.front = await open_udp_socket((HOST, 0))
        self.back = await open_udp_socket((HOST, 0))
        with self.front:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._answers, self.back)
                task_status.started(self.front.getsockname()[1])
                while True:
                    packet, self._client = await self.front.recvfrom(65536)
                    await self.back.sendto(packet, self._target)
                    self.passed += 1

    async def rebind(self) -> None:
        """From here on another port of ours; what comes to the old one is lost."""
        fresh = await open_udp_socket((HOST, 0))
        self._bound.cancel()
        self.back = fresh
        self._nursery.start_soon(self._answers, self.back)

    async def _answers(self, sock: trio.socket.SocketType) -> None:
        with sock, trio.CancelScope() as self._bound:
            while True:
                packet, _ = await sock.recvfrom(65536)
                await self.front.sendto(packet, self._client)
                self.passed += 1
