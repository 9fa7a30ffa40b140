"""Moves bytes to or from a QUIC server: python quic_client.py HOST PORT CA get|put BYTES"""

from __future__ import annotations

import sys

import trio
from aioquic.quic.configuration import QuicConfiguration
from quic import connect
from quic_files import get, put

ALPN = "files"


async def main(host: str, port: int, authority: str, verb: str, size: int) -> None:
    configuration = QuicConfiguration(alpn_protocols=[ALPN], server_name=host)
    configuration.load_verify_locations(authority)
    move = {"get": get, "put": put}[verb]
    try:
        async with connect(host, port, configuration) as connection:
            async with connection.open_stream() as stream:
                print(await move(stream, size))
    except* (ConnectionError, trio.BrokenResourceError) as group:
        reason: BaseException = group
        while isinstance(reason, BaseExceptionGroup):  # of nurseries within nurseries
            reason = reason.exceptions[0]
        sys.exit(f"{host} port {port}: {reason}")


if __name__ == "__main__":
    _, host, port, authority, verb, size = sys.argv
    trio.run(main, host, int(port), authority, verb, int(size))
