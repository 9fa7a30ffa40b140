# `trio.socket` as a contender: one datagram a call.

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from ._scene import Scene

NAME = "trio.socket"
MOST_DATAGRAMS = 512


async def look(scene: Scene) -> None:
    """Receive every datagram."""
    sock = trio.socket.from_stdlib_socket(scene.sock)
    for turn in scene.receiving_turns():
        for _ in range(turn.datagrams):
            await sock.recvfrom(65_536)


async def send(scene: Scene) -> None:
    """Send every datagram."""
    sock = trio.socket.from_stdlib_socket(scene.sock)
    packets = scene.packets()
    for _ in scene.sending_turns():
        for packet, address in packets:
            await sock.sendto(packet, address)


async def pump(scene: Scene) -> None:
    """Receive every datagram and send it on to the sink."""
    sock = trio.socket.from_stdlib_socket(scene.sock)
    sink = scene.sink_address
    for turn in scene.forwarding_turns():
        for _ in range(turn.datagrams):
            packet, _ = await sock.recvfrom(65_536)
            await sock.sendto(packet, sink)


async def echo(scene: Scene) -> None:
    """Receive every datagram and send it back."""
    sock = trio.socket.from_stdlib_socket(scene.sock)
    for turn in scene.answering_turns():
        for _ in range(turn.datagrams):
            await sock.sendto(*await sock.recvfrom(65_536))


WORKS = {
    "look": lambda scene: trio.run(look, scene),
    "send": lambda scene: trio.run(send, scene),
    "pump": lambda scene: trio.run(pump, scene),
    "echo": lambda scene: trio.run(echo, scene),
}
