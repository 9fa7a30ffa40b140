# Many of the documentation's clients in one process: a program by itself.
#
# `python _clients.py get|put HOST PORT AUTHORITY BYTES CONNECTIONS`; it finds docs/examples by
# PYTHONPATH.

from __future__ import annotations

import json
import sys
import time

import trio
from aioquic.quic.configuration import QuicConfiguration
from quic import connect
from quic_client import ALPN
from quic_files import get, put


async def main(
    verb: str, host: str, port: int, authority: str, size: int, connections: int
) -> None:
    """So many connections at once, with a stream each; tells what it took."""
    hashes: list[str] = []

    async def move() -> None:
        configuration = QuicConfiguration(alpn_protocols=[ALPN], server_name=host)
        configuration.load_verify_locations(authority)
        async with connect(host, port, configuration) as connection:
            async with connection.open_stream() as stream:
                hashes.append(await (get if verb == "get" else put)(stream, size))

    began, cpu = time.monotonic(), time.process_time_ns()
    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(move)
    used, seconds = time.process_time_ns() - cpu, time.monotonic() - began
    print(json.dumps({"cpu_ns": used, "seconds": seconds, "hashes": hashes}))


if __name__ == "__main__":
    verb, host, port, authority, size, connections = sys.argv[1:]
    trio.run(main, verb, host, int(port), authority, int(size), int(connections))
