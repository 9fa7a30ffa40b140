# A relay that keeps a socket for each of its clients, as a NAT or a TURN server does.
#
# A client's first datagram makes the relay open a socket to the far end; from then on datagrams go
# through it both ways. The figure is the CPU time of everything, the opening too, for each round
# trip. Clients and the far end are one process beside it, which sees each answer arrive.

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from snaptun_trio import (
    PacketBufPool,
    UdpBatchReceiver,
    UdpBatchSender,
    UdpReceiverGroup,
    open_udp_socket,
)

from ._client import beside, greet, greeted, open_client
from ._loops import run_in_trio, run_on_loop
from ._stopwatch import Stopwatch
from ._traffic import open_socket, raise_file_limit

if TYPE_CHECKING:
    from typing import Any

    from ._traffic import Address
    from ._worker import Contender

CLIENTS = 200
ROUND_TRIPS, QUICK_ROUND_TRIPS = 10, 5
GROUP = "receiver group"


async def relay_with_group(sock: socket.socket, far_end: Address, watch: Stopwatch) -> None:
    """One task for all sockets."""
    pool = PacketBufPool()
    front, answers = UdpBatchReceiver(sock, pool), UdpBatchSender(sock)
    links: dict[Any, UdpBatchSender] = {}
    clients: dict[UdpBatchReceiver, Any] = {}
    with ExitStack() as stack, UdpReceiverGroup([front]) as group:

        async def open_link(client: Any) -> UdpBatchSender:  # noqa: ANN401  # an address
            outside = stack.enter_context(await open_udp_socket(remote=far_end))
            receiver = UdpBatchReceiver(outside, pool)
            clients[receiver] = client
            group.add(receiver)
            return UdpBatchSender(outside)

        async for receiver, batch in group:
            if receiver is not front:
                await answers.send(batch.to(clients[receiver]))
                if watch.tick(len(batch)):
                    return
                continue
            for client, questions in batch.by_address().items():
                if client not in links:
                    links[client] = await open_link(client)
                await links[client].send(questions.to(None))


class Link(asyncio.DatagramProtocol):
    """asyncio's way to the far end, for one client."""

    def __init__(self, front: Front, client: tuple[str | Any, int]) -> None:
        self._front, self._client = front, client

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """An answer."""
        self._front.answer(data, self._client)


class Front(asyncio.DatagramProtocol):
    """asyncio's side of the clients."""

    def __init__(self, far_end: Address, watch: Stopwatch) -> None:
        self._far_end, self._watch = far_end, watch
        self._links: dict[tuple[str | Any, int], asyncio.DatagramTransport] = {}
        self._early: dict[tuple[str | Any, int], list[bytes]] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self.finished = asyncio.Event()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Keep the transport for the answers."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """A client's datagram."""
        link = self._links.get(addr)
        if link is not None:
            link.sendto(data)
        elif addr in self._early:
            self._early[addr].append(data)
        else:
            self._early[addr] = [data]
            task = asyncio.create_task(self._open(addr))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, client: tuple[str | Any, int]) -> None:
        link, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: Link(self, client), remote_addr=self._far_end[:2]
        )
        self._links[client] = link
        for data in self._early.pop(client):
            link.sendto(data)

    def answer(self, data: bytes, client: tuple[str | Any, int]) -> None:
        """The far end's datagram for a client."""
        self._transport.sendto(data, client)
        if self._watch.tick():
            self.finished.set()

    def close(self) -> None:
        """Close all sockets."""
        for link in self._links.values():
            link.close()
        self._transport.close()


async def relay_with_protocols(sock: socket.socket, far_end: Address, watch: Stopwatch) -> None:
    """asyncio, uvloop, aiofastnet."""
    loop = asyncio.get_running_loop()
    _, front = await loop.create_datagram_endpoint(lambda: Front(far_end, watch), sock=sock)
    await front.finished.wait()
    front.close()


def serve(variant: str, far_end: Address, count: int) -> float:
    """In the child: relay so many answers. CPU nanoseconds of a round trip."""
    raise_file_limit(CLIENTS + 100)
    watch = Stopwatch(0, count)
    with open_socket(socket.AF_INET) as sock, watch.counting():
        greet(sock, far_end)
        watch.start()
        if variant == GROUP:
            run_in_trio(lambda: relay_with_group(sock, far_end, watch))
        else:
            run_on_loop(variant, lambda: relay_with_protocols(sock, far_end, watch))
    return watch.ns_each


def play(far_end: socket.socket, round_trips: int) -> None:
    """All clients ask, the far end answers all, each client gets its own answer."""
    _, relay = greeted(far_end)
    with ExitStack() as stack:
        clients = [stack.enter_context(open_client()) for _ in range(CLIENTS)]
        for client in clients:
            client.connect(relay)
        for trip in range(round_trips):
            for number, client in enumerate(clients):
                client.send(b"%d %d" % (trip, number))
            for _ in clients:
                far_end.sendto(*far_end.recvfrom(512))
            for number, client in enumerate(clients):
                if client.recv(512) != b"%d %d" % (trip, number):
                    raise RuntimeError("a client got another one's answer")


def sit(contender: Contender, variant: str, *, quick: bool) -> float:
    """CPU nanoseconds of a round trip."""
    round_trips = QUICK_ROUND_TRIPS if quick else ROUND_TRIPS
    raise_file_limit(CLIENTS + 100)
    with open_client() as far_end:
        served = contender.submit(serve, variant, far_end.getsockname(), CLIENTS * round_trips)
        with beside(served, min(os.sched_getaffinity(0))):
            play(far_end, round_trips)
        return served.result()
