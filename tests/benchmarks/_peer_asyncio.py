# asyncio's DatagramProtocol as a contender: one callback a datagram.
#
# The works take the loop's maker, so that another loop can run them (`_peer_uvloop`).

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import Any

    from ._scene import Scene
    from ._traffic import Address, Load

NAME = "asyncio"
MOST_DATAGRAMS = 512


class Draining(asyncio.DatagramProtocol):
    """Counts what comes in, and says when a turn's datagrams are all there."""

    transport: asyncio.DatagramTransport

    def __init__(self) -> None:
        self._left = 0

    def expect(self, datagrams: int) -> asyncio.Future[None]:
        """A future that is done after so many datagrams."""
        self._left = datagrams
        self._done = asyncio.get_running_loop().create_future()
        return self._done

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Keep the transport for sending."""
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """Count one."""
        self._left -= 1
        if not self._left:
            self._done.set_result(None)


class Forwarding(Draining):
    """Sends everything on to one address, or back where there is none."""

    def __init__(self, to: Address | None) -> None:
        super().__init__()
        self._to = to

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """Send one on and count it."""
        self.transport.sendto(data, self._to or addr)
        super().datagram_received(data, addr)


async def drain(scene: Scene, turns: Iterator[Load], protocol: Draining) -> None:
    """Go through the turns with this protocol on the scene's socket."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: protocol, sock=scene.sock)
    for turn in turns:
        await protocol.expect(turn.datagrams)
    transport.close()


async def look(scene: Scene) -> None:
    """Receive every datagram."""
    await drain(scene, scene.receiving_turns(), Draining())


async def send(scene: Scene) -> None:
    """Send every datagram."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Draining, sock=scene.sock)
    packets = scene.packets()
    for _ in scene.sending_turns():
        for packet, address in packets:
            transport.sendto(packet, address)
        await asyncio.sleep(0)
    transport.close()


async def pump(scene: Scene) -> None:
    """Receive every datagram and send it on to the sink."""
    await drain(scene, scene.forwarding_turns(), Forwarding(scene.sink_address))


async def echo(scene: Scene) -> None:
    """Receive every datagram and send it back."""
    await drain(scene, scene.answering_turns(), Forwarding(None))


def works(
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> dict[str, Callable[[Scene], None]]:
    """The works as plain functions that run them on such a loop."""

    def on_loop(work: Callable[[Scene], Awaitable[None]]) -> Callable[[Scene], None]:
        async def main(scene: Scene) -> None:
            await work(scene)

        def run(scene: Scene) -> None:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(main(scene))

        return run

    return {work.__name__: on_loop(work) for work in (look, send, pump, echo)}


WORKS = works()
