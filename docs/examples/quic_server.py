"""A QUIC server, until SIGTERM or Control-C: python quic_server.py HOST PORT CERTIFICATE KEY"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING

import trio
from aioquic.buffer import (  # type: ignore[attr-defined]
    Buffer,  # pyright: ignore[reportPrivateImportUsage]
)
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler
from quic import Connection
from quic_files import RefusedError, answer

from snaptun_trio import (
    QueueFullError,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
    open_udp_socket,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quic import Path, Stream

ALPN = "files"
HANDSHAKE = 10.0  # seconds that a new peer has for it
SHORTEST_ID = 8  # bytes that a client has to choose at random (RFC 9000, 7.2)
LONG_HEADER = 0x80
QUEUE = 256  # datagrams, of all connections, that leave with one call


class Server:
    """Many connections on one socket.

    Args:
      max_connections: at most so many. From half of them on a newcomer has to show first that it
        receives at its address (Retry), so spoofers cannot have more than that half.
    """

    def __init__(
        self,
        sock: trio.socket.SocketType,
        configuration: QuicConfiguration,
        handler: Callable[[Connection], Awaitable[None]],
        *,
        max_connections: int = 10_000,
    ) -> None:
        self.configuration = configuration
        self.max_connections = max_connections
        self.connections: set[Connection] = set()
        self.routes: dict[bytes, Connection] = {}
        self._handler = handler
        self._tokens = QuicRetryTokenHandler()
        # On a wildcard address an answer has to leave from the one that was asked.
        wildcard = ip_address(sock.getsockname()[0]).is_unspecified
        self.receiver = UdpBatchReceiver(sock, packet_info=wildcard)
        self.sender = UdpBatchSender(sock, batch_size=QUEUE)

    async def run(self) -> None:
        """Serve until cancelled; then all connections are closed."""
        with self.receiver, self.sender:
            async with trio.open_nursery() as nursery:
                async for batch in self.receiver:
                    parts: dict[Connection, list[tuple[bytes, Path]]] = {}
                    for train in batch.trains:
                        path = train.address, train.local_address
                        for packet in train:
                            connection = self._connection_of(packet, path, nursery)
                            if connection is not None:
                                parts.setdefault(connection, []).append((packet, path))
                    for connection, part in parts.items():
                        connection.feed(part)
                    if not self.sender.is_empty:
                        with contextlib.suppress(SendBatchError, trio.WouldBlock):
                            self.sender.try_flush_best_effort()

    def _connection_of(self, packet: bytes, path: Path, nursery: trio.Nursery) -> Connection | None:
        """Whose a datagram is, by its destination connection id: the address may change."""
        if packet and not packet[0] & LONG_HEADER:  # nearly all
            return self.routes.get(packet[1 : 1 + self.configuration.connection_id_length])
        try:
            header = pull_quic_header(
                Buffer(data=packet), host_cid_length=self.configuration.connection_id_length
            )
        except ValueError:
            return None
        connection = self.routes.get(header.destination_cid)
        if connection is not None or len(packet) < SMALLEST_MAX_DATAGRAM_SIZE:
            return connection  # to a shorter one no answer would be shorter than the question
        if header.packet_type == QuicPacketType.VERSION_NEGOTIATION:
            return None  # which is an answer, and not answered
        if header.version not in self.configuration.supported_versions:
            self._reply(
                encode_quic_version_negotiation(
                    source_cid=header.destination_cid,
                    destination_cid=header.source_cid,
                    supported_versions=self.configuration.supported_versions,
                ),
                path,
            )
            return None
        if (
            header.packet_type != QuicPacketType.INITIAL
            or len(header.destination_cid) < SHORTEST_ID
            or len(self.connections) >= self.max_connections
        ):
            return None
        return self._newcomer(header, path, nursery)

    def _newcomer(self, header: QuicHeader, path: Path, nursery: trio.Nursery) -> Connection | None:
        original, retry_source = header.destination_cid, None
        if header.token:
            try:
                original = self._tokens.validate_token(
                    address=path[0],
                    destination_cid=header.destination_cid,
                    token=header.token,
                    now=trio.current_time(),
                )
            except ValueError:
                return None
            retry_source = header.destination_cid
        elif len(self.connections) >= self.max_connections // 2:
            self._ask_again(header, path)
            return None
        quic = QuicConnection(
            configuration=self.configuration,
            original_destination_connection_id=original,
            retry_source_connection_id=retry_source,
        )
        connection = Connection(quic, self.sender.send, self.routes)
        self.routes[header.destination_cid] = self.routes[quic.host_cid] = connection
        self.connections.add(connection)
        nursery.start_soon(self._attend, connection, header.destination_cid)
        return connection

    def _ask_again(self, header: QuicHeader, path: Path) -> None:
        """A Retry: only who receives at this address can send its token back."""
        assert header.version is not None
        source = os.urandom(SHORTEST_ID)
        token = self._tokens.create_token(
            address=path[0],
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=source,
            now=trio.current_time(),
        )
        retry = encode_quic_retry(
            version=header.version,
            source_cid=source,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )
        self._reply(retry, path)

    def _reply(self, packet: bytes, path: Path) -> None:
        """Queued for the end of the batch: what receives for all must not wait for the socket."""
        address, local = path
        with contextlib.suppress(QueueFullError):
            self.sender.try_queue_packet(packet, address, local_address=local)

    async def _attend(self, connection: Connection, first_id: bytes) -> None:
        """The life of a connection."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._handle, connection)
                await connection.run()
                nursery.cancel_scope.cancel()
        except Exception:  # one peer's trouble: the server goes on
            logging.exception("connection %s", first_id.hex())
        finally:
            self.connections.discard(connection)
            for number in [n for n, other in self.routes.items() if other is connection]:
                del self.routes[number]

    async def _handle(self, connection: Connection) -> None:
        with trio.move_on_after(HANDSHAKE) as scope:
            with contextlib.suppress(ConnectionError):
                await connection.wait_connected()
                scope.deadline = float("inf")
                await self._handler(connection)
        connection.close()


async def answer_streams(connection: Connection) -> None:
    """A task for each stream of a connection."""

    async def answer_one(stream: Stream) -> None:
        async with stream:
            try:
                await answer(stream)
            except (RefusedError, trio.BrokenResourceError):
                stream.abort()

    async with trio.open_nursery() as nursery:
        async for stream in connection.streams:
            nursery.start_soon(answer_one, stream)


async def main(host: str, port: int, certificate: str, key: str) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=[ALPN], idle_timeout=30.0)
    configuration.load_cert_chain(certificate, key)  # pyright: ignore[reportUnknownMemberType]
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        with await open_udp_socket((host, port)) as sock:
            server = Server(sock, configuration, answer_streams)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.run)
                print("serving on port", sock.getsockname()[1], flush=True)
                async for _ in signals:
                    break
                nursery.cancel_scope.cancel()
    print(server.sender.statistics().datagrams_sent, "datagrams sent")


if __name__ == "__main__":
    _, host, port, certificate, key = sys.argv
    trio.run(main, host, int(port), certificate, key)
