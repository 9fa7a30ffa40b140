# A relay of trio's own sockets: a program by itself.
#
# A socket and a task for each client, as everybody writes it. It knows nothing of the benchmark.
# `python _peer_trio_socket.py LISTEN_PORT TARGET_PORT`

from __future__ import annotations

import signal
import socket
import sys
from typing import Any

import trio

HOST = "127.0.0.1"
MOST_BYTES = 65_536


async def take_answers(
    link: trio.socket.SocketType, front: trio.socket.SocketType, client: tuple[Any, ...]
) -> None:
    """From the target to one client."""
    while True:
        await front.sendto(await link.recv(MOST_BYTES), client)


async def relay(listen: tuple[str, int], target: tuple[str, int]) -> None:
    """Relay until SIGTERM."""
    links: dict[tuple[Any, ...], trio.socket.SocketType] = {}
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as front:
        await front.bind(listen)
        async with trio.open_nursery() as nursery:

            async def take_questions() -> None:
                while True:
                    data, client = await front.recvfrom(MOST_BYTES)
                    link = links.get(client)
                    if link is None:
                        link = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                        links[client] = link
                        await link.connect(target)
                        nursery.start_soon(take_answers, link, front, client)
                    await link.send(data)

            nursery.start_soon(take_questions)
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel()
    for link in links.values():
        link.close()


if __name__ == "__main__":
    trio.run(relay, (HOST, int(sys.argv[1])), (HOST, int(sys.argv[2])))
