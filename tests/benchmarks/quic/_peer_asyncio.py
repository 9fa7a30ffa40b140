# aioquic's own server and client, on asyncio's loop or uvloop's: a program by itself.
#
# The protocol is that of docs/examples/quic_files.py, in asyncio's streams. It knows nothing of the
# benchmark, nor of snaptun_trio.
# `python _peer_asyncio.py LOOP serve HOST PORT CERTIFICATE KEY`
# `python _peer_asyncio.py LOOP get|put HOST PORT AUTHORITY BYTES CONNECTIONS`

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

from aioquic.asyncio.client import connect
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALPN = "files"
PATTERN = random.Random(1).randbytes(250_007)
READ = 1 << 18
BUFFER = 4 << 20  # what the others' sockets have; with the system's default many lose datagrams


def content(size: int) -> Iterator[bytes]:
    """So many bytes, the same ones each time, piece by piece."""
    whole, rest = divmod(size, len(PATTERN))
    for _ in range(whole):
        yield PATTERN
    yield PATTERN[:rest]


def enlarge(transport: asyncio.DatagramTransport | None) -> None:
    """Give a socket the buffers that a server would be given."""
    assert transport is not None
    sock = transport.get_extra_info("socket")
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)


async def hash_of(reader: asyncio.StreamReader) -> str:
    """Of all that comes."""
    digest = hashlib.sha256()
    while more := await reader.read(READ):
        digest.update(more)
    return digest.hexdigest()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One stream."""
    verb, number = (await reader.readline()).split()
    if verb == b"GET":
        for piece in content(int(number)):
            writer.write(piece)
    else:
        writer.write((await hash_of(reader)).encode())
    writer.write_eof()


async def run_server(host: str, port: int, certificate: str, key: str) -> None:
    """Serve until SIGTERM."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=[ALPN], idle_timeout=30.0)
    configuration.load_cert_chain(certificate, key)
    tasks: set[asyncio.Task[None]] = set()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(answer(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    server = await serve(host, port, configuration=configuration, stream_handler=handle)
    transport = server._transport
    enlarge(transport)
    assert transport is not None
    print("serving on port", transport.get_extra_info("sockname")[1], flush=True)
    await ended.wait()
    server.close()


async def move(verb: str, host: str, port: int, authority: str, size: int) -> str:
    """One connection with one stream; returns the hash."""
    configuration = QuicConfiguration(alpn_protocols=[ALPN], server_name=host)
    configuration.load_verify_locations(authority)
    async with connect(host, port, configuration=configuration) as connection:
        enlarge(connection._transport)
        reader, writer = await connection.create_stream()
        writer.write(b"%s %d\n" % (verb.upper().encode(), size))
        if verb == "put":
            for piece in content(size):
                writer.write(piece)
        writer.write_eof()
        return (await reader.read()).decode() if verb == "put" else await hash_of(reader)


async def run_clients(
    verb: str, host: str, port: int, authority: str, size: int, connections: int
) -> None:
    """So many at once; tells what it took."""
    began, cpu = time.monotonic(), time.process_time_ns()
    hashes = await asyncio.gather(
        *(move(verb, host, port, authority, size) for _ in range(connections))
    )
    used, seconds = time.process_time_ns() - cpu, time.monotonic() - began
    print(json.dumps({"cpu_ns": used, "seconds": seconds, "hashes": hashes}))


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The maker of the loop."""
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return None


if __name__ == "__main__":
    loop, verb, host, port, *rest = sys.argv[1:]
    # Freeing one large block teaches malloc not to map each large block anew. Without it asyncio,
    # whose transport asks for 256 KiB a datagram, would look much slower than it mostly is.
    bytearray(1 << 19)
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        if verb == "serve":
            runner.run(run_server(host, int(port), *rest))
        else:
            authority, size, connections = rest
            runner.run(run_clients(verb, host, int(port), authority, int(size), int(connections)))
