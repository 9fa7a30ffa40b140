# A thousand quiet sockets: one datagram each in turn, so that a loop wakes for one at a time.
#
# The client sends to the next socket when it hears that the last one's datagram was received. Every
# program tells it so by the same bare system call, which is in all figures. Both share a processor,
# for the reason that `_pingpong` gives.

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import ExitStack
from itertools import cycle, islice
from typing import TYPE_CHECKING

import trio

from snaptun_trio import PacketBufPool, UdpBatchReceiver, UdpReceiverGroup

from ._client import beside, greet, greeted, open_client
from ._loops import run_in_trio, run_on_loop
from ._stopwatch import Stopwatch
from ._traffic import open_socket, raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ._traffic import Address
    from ._worker import Contender

SOCKETS = 1_000
RECEIVE_BUFFER = 64 << 10
WARM_UP = 1_000
COUNT, QUICK_COUNT = 3_000, 1_000
GROUP = "receiver group"
RECEIVERS = "receiver and task each"


class Told:
    """Counts a datagram and tells the client. Whether it was the last."""

    def __init__(self, watch: Stopwatch, sock: socket.socket, client: Address) -> None:
        self._watch, self._sock, self._client = watch, sock, client

    def __call__(self) -> bool:
        self._sock.sendto(b"", self._client)
        return self._watch.tick()


async def receive_with_group(sockets: Sequence[socket.socket], told: Told) -> None:
    """A receiver for each socket, one pool, and one task for all: the documented loop."""
    pool = PacketBufPool()
    with UdpReceiverGroup([UdpBatchReceiver(sock, pool) for sock in sockets]) as group:
        async for _receiver, batch in group:
            for _packet, _address in batch:
                if told():
                    return


async def receive_with_receivers(sockets: Sequence[socket.socket], told: Told) -> None:
    """A receiver and a task for each socket, and one pool."""
    pool = PacketBufPool()
    async with trio.open_nursery() as nursery:

        async def receive(sock: socket.socket) -> None:
            async for batch in UdpBatchReceiver(sock, pool):
                for _packet, _address in batch:
                    if told():
                        nursery.cancel_scope.cancel()

        for sock in sockets:
            nursery.start_soon(receive, sock)


async def receive_with_trio_socket(sockets: Sequence[socket.socket], told: Told) -> None:
    """A task for each socket."""
    async with trio.open_nursery() as nursery:

        async def receive(sock: trio.socket.SocketType) -> None:
            while True:
                await sock.recvfrom(65_536)
                if told():
                    nursery.cancel_scope.cancel()

        for sock in sockets:
            nursery.start_soon(receive, trio.socket.from_stdlib_socket(sock))


class Receiving(asyncio.DatagramProtocol):
    """asyncio's protocol, whosever loop it is."""

    def __init__(self, told: Told, finished: asyncio.Event) -> None:
        self._told, self._finished = told, finished

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """Count one."""
        if self._told():
            self._finished.set()


async def receive_with_protocols(sockets: Sequence[socket.socket], told: Told) -> None:
    """asyncio, uvloop, aiofastnet."""
    loop, finished = asyncio.get_running_loop(), asyncio.Event()
    transports = []
    for sock in sockets:
        transport, _ = await loop.create_datagram_endpoint(
            lambda: Receiving(told, finished), sock=sock
        )
        transports.append(transport)
    await finished.wait()
    for transport in transports:
        transport.close()


IN_TRIO = {
    GROUP: receive_with_group,
    RECEIVERS: receive_with_receivers,
    "trio.socket": receive_with_trio_socket,
}


def serve(variant: str, client: Address, count: int) -> float:
    """In the child: receive so many. CPU nanoseconds of each."""
    raise_file_limit(SOCKETS + 100)
    watch = Stopwatch(WARM_UP, count)
    with ExitStack() as stack, watch.counting():
        told = Told(watch, stack.enter_context(open_socket(socket.AF_INET)), client)
        sockets = []
        for number in range(SOCKETS):
            sock = open_socket(socket.AF_INET, receive_buffer=RECEIVE_BUFFER)
            sockets.append(stack.enter_context(sock))
            greet(sock, client, number)
        if variant in IN_TRIO:
            run_in_trio(lambda: IN_TRIO[variant](sockets, told))
        else:
            run_on_loop(variant, lambda: receive_with_protocols(sockets, told))
    return watch.ns_each


def play(client: socket.socket, count: int) -> None:
    """Send to one socket after the other."""
    servers = dict(greeted(client) for _ in range(SOCKETS))
    if len(servers) != SOCKETS:
        raise RuntimeError(f"only {len(servers)} sockets are there")
    packet = bytes(100)
    for number in islice(cycle(range(SOCKETS)), count):
        client.sendto(packet, servers[number])
        client.recv(64)


def sit(contender: Contender, variant: str, *, quick: bool) -> float:
    """CPU nanoseconds a datagram."""
    count = QUICK_COUNT if quick else COUNT
    with open_client() as client:
        served = contender.submit(serve, variant, client.getsockname(), count)
        with beside(served, max(os.sched_getaffinity(0))):
            play(client, WARM_UP + count)
        return served.result()
