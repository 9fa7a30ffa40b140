# anyio on trio as a contender: one datagram a call.

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from anyio.abc import UDPSocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._scene import Scene

NAME = "anyio"
MOST_DATAGRAMS = 512


async def look(scene: Scene) -> None:
    """Receive every datagram."""
    async with await UDPSocket.from_socket(scene.sock) as sock:
        for turn in scene.receiving_turns():
            for _ in range(turn.datagrams):
                await sock.receive()


async def send(scene: Scene) -> None:
    """Send every datagram."""
    packets = [(packet, (address[0], address[1])) for packet, address in scene.packets()]
    async with await UDPSocket.from_socket(scene.sock) as sock:
        for _ in scene.sending_turns():
            for item in packets:
                await sock.send(item)


async def pump(scene: Scene) -> None:
    """Receive every datagram and send it on to the sink."""
    sink = scene.sink_address[0], scene.sink_address[1]
    async with await UDPSocket.from_socket(scene.sock) as sock:
        for turn in scene.forwarding_turns():
            for _ in range(turn.datagrams):
                packet, _ = await sock.receive()
                await sock.send((packet, sink))


async def echo(scene: Scene) -> None:
    """Receive every datagram and send it back."""
    async with await UDPSocket.from_socket(scene.sock) as sock:
        for turn in scene.answering_turns():
            for _ in range(turn.datagrams):
                await sock.send(await sock.receive())


def on_trio(work: Callable[[Scene], Awaitable[None]]) -> Callable[[Scene], None]:
    """The work as a plain function that runs anyio."""
    return lambda scene: anyio.run(work, scene, backend="trio")


WORKS = {work.__name__: on_trio(work) for work in (look, send, pump, echo)}
