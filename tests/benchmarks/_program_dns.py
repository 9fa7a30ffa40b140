# A server of requests and answers, much as DNS: each request is looked at and gets one answer.
#
# So many requests are always outstanding: the client sends the next one for each answer that it
# gets, on a processor of its own where there are two. How many of them a server finds waiting at a
# time is up to its own speed, as it is in life. Every answer is checked for being there once.

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING

import trio

from snaptun_trio import PacketBatch, UdpBatchReceiver, UdpBatchSender, open_batch_pump

from ._client import beside, greet, greeted, open_client
from ._loops import run_in_trio, run_on_loop
from ._stopwatch import Stopwatch
from ._traffic import open_socket

if TYPE_CHECKING:
    from typing import Any

    from ._traffic import Address
    from ._worker import Contender

WARM_UP = 1_000
COUNT, QUICK_COUNT = 10_000, 2_500
HANDLER, BY_PACKET = "handler pump", "receiver and sender, by packet"

HEADER = struct.Struct("!HHHHHH")
QUESTION = b"\7example\3com\0\0\1\0\1"
RECORD = b"\xc0\x0c\0\1\0\1\0\0\x0e\x10\0\4"  # the question's name, A, IN, an hour, four bytes
ZONE = {QUESTION: bytes((192, 0, 2, 1))}


def query(number: int) -> bytes:
    """A request."""
    return HEADER.pack(number, 0x0100, 1, 0, 0, 0) + QUESTION


def answer(request: bytes) -> bytes:
    """What every server here does with a request."""
    number, _, _, _, _, _ = HEADER.unpack_from(request)
    question = request[HEADER.size :]
    return HEADER.pack(number, 0x8180, 1, 1, 0, 0) + question + RECORD + ZONE[question]


def answers_to(questions: PacketBatch[Any]) -> PacketBatch:
    """A handler: each packet gets its answer, and they are packed together."""
    return PacketBatch.pack([(answer(packet), address) for packet, address in questions])


async def serve_with_handler(sock: socket.socket, watch: Stopwatch) -> None:
    """A pump with a handler."""
    finished = trio.Event()

    def handler(questions: PacketBatch[Any]) -> PacketBatch:
        answers = answers_to(questions)
        if watch.tick(len(answers)):
            finished.set()
        return answers

    async with open_batch_pump(sock, handler=handler):
        await finished.wait()


async def serve_by_packet(sock: socket.socket, watch: Stopwatch) -> None:
    """Receiver and sender, and a loop over the datagrams."""
    receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
    async for batch in receiver:
        for packet, address in batch:
            if sender.is_full:
                await sender.flush()
            sender.try_queue_packet(answer(packet), address)
        await sender.flush()
        if watch.tick(len(batch)):
            return


async def serve_with_trio_socket(sock: socket.socket, watch: Stopwatch) -> None:
    """`trio.socket`."""
    server = trio.socket.from_stdlib_socket(sock)
    while True:
        request, address = await server.recvfrom(65_536)
        await server.sendto(answer(request), address)
        if watch.tick():
            return


class Answering(asyncio.DatagramProtocol):
    """asyncio's protocol, whosever loop it is."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self.finished = asyncio.Event()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Keep the transport for the answers."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """Answer one."""
        self._transport.sendto(answer(data), addr)
        if self._watch.tick():
            self.finished.set()


async def serve_with_protocol(sock: socket.socket, watch: Stopwatch) -> None:
    """asyncio, uvloop, aiofastnet."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: Answering(watch), sock=sock)
    await protocol.finished.wait()
    transport.close()


IN_TRIO = {
    HANDLER: serve_with_handler,
    BY_PACKET: serve_by_packet,
    "trio.socket": serve_with_trio_socket,
}


def serve(variant: str, client: Address, count: int) -> float:
    """In the child: answer so many. CPU nanoseconds of each."""
    watch = Stopwatch(WARM_UP, count)
    with open_socket(socket.AF_INET) as sock, watch.counting():
        greet(sock, client)
        if variant in IN_TRIO:
            run_in_trio(lambda: IN_TRIO[variant](sock, watch))
        else:
            run_on_loop(variant, lambda: serve_with_protocol(sock, watch))
    return watch.ns_each


def play(client: socket.socket, count: int, outstanding: int) -> None:
    """Ask so many times, with so many requests under way."""
    _, server = greeted(client)
    client.connect(server)
    missing = set(range(count))
    for number in range(outstanding):
        client.send(query(number))
    for number in range(outstanding, count + outstanding):
        reply = client.recv(512)
        answered = int.from_bytes(reply[:2], "big")
        if answered not in missing:
            raise RuntimeError(f"request {answered} was answered twice")
        missing.remove(answered)
        if number < count:
            client.send(query(number))
    if missing:
        raise RuntimeError(f"{len(missing)} answers are missing")


def sit(contender: Contender, variant: str, *, quick: bool, outstanding: int) -> float:
    """CPU nanoseconds of a request."""
    count = QUICK_COUNT if quick else COUNT
    with open_client() as client:
        served = contender.submit(serve, variant, client.getsockname(), count)
        with beside(served, min(os.sched_getaffinity(0))):
            play(client, WARM_UP + count, outstanding)
        return served.result()
