"""Moves bytes to or from a QUIC server: python quic_client.py HOST PORT CA get|put BYTES"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from quic import Connection
from quic_files import get, put

from snaptun_trio import open_udp_channel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from snaptun_trio import UdpChannel

ALPN = "files"


@asynccontextmanager
async def connect(
    host: str, port: int, configuration: QuicConfiguration
) -> AsyncGenerator[Connection]:
    """A connection to a server, closed at the end of the block.

    Raises:
      ConnectionError: there is none, or the server does not want it; in an exception group, as
        all that comes out of a nursery.
    """
    async with await open_udp_channel(host, port) as channel, trio.open_nursery() as nursery:
        quic = QuicConnection(configuration=configuration)
        quic.connect((channel.address, None), now=trio.current_time())
        connection = Connection(quic, channel.send)
        nursery.start_soon(connection.run)
        nursery.start_soon(receive, channel, connection)
        await connection.wait_connected()
        yield connection
        nursery.cancel_scope.cancel()  # upon which `run` closes it


async def receive(channel: UdpChannel, connection: Connection) -> None:
    """Feed a connection with all that comes through a channel."""
    path = channel.address, None
    heard = False
    while True:
        try:
            batch = await channel.receive()
        except OSError:  # an ICMP message, which anybody can make up
            if not heard:
                raise
            continue
        heard = True
        connection.feed([(packet, path) for packet, _ in batch])


async def main(host: str, port: int, authority: str, verb: str, size: int) -> None:
    configuration = QuicConfiguration(alpn_protocols=[ALPN], server_name=host)
    configuration.load_verify_locations(authority)
    move = {"get": get, "put": put}[verb]
    try:
        async with connect(host, port, configuration) as connection:
            async with connection.open_stream() as stream:
                print(await move(stream, size))
    except* ConnectionError as group:
        sys.exit(f"{host} port {port}: {group.exceptions[0]}")


if __name__ == "__main__":
    _, host, port, authority, verb, size = sys.argv
    trio.run(main, host, int(port), authority, verb, int(size))
