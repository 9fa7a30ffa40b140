# A server with many clients, each of which waits for its answer before it asks again.
#
# With the library a task for each client reads and writes through a channel of its own; beside it
# the same server without tasks, and the protocols of the other loops, which have none either. The
# clients are sockets of one process, on a processor of its own where there are two.

from __future__ import annotations

import os
import select
import socket
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import trio

from snaptun_trio import serve_udp

from . import _program_dns as dns
from ._client import beside, greet, greeted, open_client
from ._loops import run_in_trio, run_on_loop
from ._stopwatch import Stopwatch
from ._traffic import HANG_GUARD, open_socket, raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from snaptun_trio import UdpChannel

    from ._traffic import Address
    from ._worker import Contender

    Handler = Callable[[UdpChannel], Awaitable[None]]

FEW, MANY = 20, 1_000
WARM_UP = 2_000
COUNT, QUICK_COUNT = 10_000, 2_500
SERVE, BATCHES = "serve_udp, a task for each peer", "serve_udp, by batch"
AT_ONCE = "serve_udp, answer="


async def serve_with_tasks(sock: socket.socket, watch: Stopwatch) -> None:
    """`serve_udp`, and one packet at a time."""
    finished = trio.Event()

    async def answer_one(channel: UdpChannel) -> None:
        while True:
            request = await channel.receive_packet()
            await channel.send_packet(dns.answer(request))
            if watch.tick():
                finished.set()

    await serve_until(finished, answer_one, sock)


async def serve_with_batches(sock: socket.socket, watch: Stopwatch) -> None:
    """`serve_udp`, and all that a peer sent at a time."""
    finished = trio.Event()

    async def answer_all(channel: UdpChannel) -> None:
        async for questions in channel:
            await channel.send(dns.answers_to(questions))
            if watch.tick(len(questions)):
                finished.set()

    await serve_until(finished, answer_all, sock)


async def serve_at_once(sock: socket.socket, watch: Stopwatch) -> None:
    """`serve_udp`, whose tasks are asked nothing."""
    finished = trio.Event()

    def answer(request: bytes, _: Address) -> bytes:
        if watch.tick():
            finished.set()
        return dns.answer(request)

    async def not_asked(channel: UdpChannel) -> None:
        raise AssertionError(channel)

    await serve_until(finished, not_asked, sock, answer)


async def serve_until(
    finished: trio.Event,
    handler: Handler,
    sock: socket.socket,
    answer: Callable[[bytes, Address], bytes] | None = None,
) -> None:
    """Serve on a socket until all is served."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_udp, answer=answer), handler, sock)
        await finished.wait()
        nursery.cancel_scope.cancel()


IN_TRIO = {
    SERVE: serve_with_tasks,
    BATCHES: serve_with_batches,
    AT_ONCE: serve_at_once,
    dns.BY_PACKET: dns.serve_by_packet,
    "trio.socket": dns.serve_with_trio_socket,
}


def serve(variant: str, client: Address, count: int) -> float:
    """In the child: answer so many. CPU nanoseconds of each."""
    watch = Stopwatch(WARM_UP, count)
    with open_socket(socket.AF_INET) as sock, watch.counting():
        greet(sock, client)
        if variant in IN_TRIO:
            run_in_trio(lambda: IN_TRIO[variant](sock, watch))
        else:
            run_on_loop(variant, lambda: dns.serve_with_protocol(sock, watch))
    return watch.ns_each


def play(server: Address, peers: int, count: int) -> None:
    """Ask so many times, each of so many peers one question at a time."""
    with ExitStack() as stack:
        sockets, waits_for = {}, {}
        poll = stack.enter_context(select.epoll())
        for _ in range(peers):
            sock = stack.enter_context(open_socket(socket.AF_INET, receive_buffer=64 << 10))
            sock.setblocking(False)
            sock.connect(server)
            sockets[sock.fileno()] = sock
            poll.register(sock.fileno(), select.EPOLLIN)
        asked = answered = 0
        for number, sock in sockets.items():
            waits_for[number] = asked & 0xFFFF
            sock.send(dns.query(waits_for[number]))
            asked += 1
        while answered < count:
            ready = poll.poll(HANG_GUARD)
            if not ready:
                raise RuntimeError(f"{count - answered} answers are missing")
            for number, _ in ready:
                reply = sockets[number].recv(512)
                if int.from_bytes(reply[:2], "big") != waits_for.pop(number):
                    raise RuntimeError("an answer to another question")
                answered += 1
                if asked < count:
                    waits_for[number] = asked & 0xFFFF
                    sockets[number].send(dns.query(waits_for[number]))
                    asked += 1


def sit(contender: Contender, variant: str, *, quick: bool, peers: int) -> float:
    """CPU nanoseconds of a request."""
    count = QUICK_COUNT if quick else COUNT
    raise_file_limit(peers + 100)
    with open_client() as client:
        served = contender.submit(serve, variant, client.getsockname(), count)
        with beside(served, min(os.sched_getaffinity(0))):
            _, server = greeted(client)
            play(server, peers, WARM_UP + count)
        return served.result()
