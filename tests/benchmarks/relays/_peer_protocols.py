# A relay of asyncio protocols, on asyncio's own loop or uvloop's: a program by itself.
#
# A transport for each client, as everybody writes it. With a header it adds a byte to what clients
# send and takes one off what comes back. It knows nothing of the benchmark.
# `python _peer_protocols.py LOOP plain|header LISTEN_PORT TARGET_PORT`

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"
HEADER = b"D"
Client: TypeAlias = tuple[str | Any, int]


class Link(asyncio.DatagramProtocol):
    """The way to the target, for one client."""

    def __init__(self, front: asyncio.DatagramTransport, client: Client) -> None:
        self._front, self._client = front, client

    def datagram_received(self, data: bytes, addr: Client) -> None:
        """An answer."""
        self._front.sendto(data, self._client)


class HeaderLink(Link):
    """One that takes a byte off."""

    def datagram_received(self, data: bytes, addr: Client) -> None:
        """An answer."""
        self._front.sendto(data[1:], self._client)


class Front(asyncio.DatagramProtocol):
    """The side of the clients."""

    _link = Link

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._links: dict[Client, asyncio.DatagramTransport] = {}
        self._early: dict[Client, list[bytes]] = {}
        self._opening: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Keep the transport for the answers."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Client) -> None:
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

    async def _open(self, client: Client) -> None:
        link, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self._link(self._transport, client), remote_addr=self._target
        )
        self._links[client] = link
        for data in self._early.pop(client):
            link.sendto(data)


class HeaderFront(Front):
    """One that adds a byte."""

    _link = HeaderLink

    def datagram_received(self, data: bytes, addr: Client) -> None:
        """A client's datagram."""
        link = self._links.get(addr)
        if link is not None:
            link.sendto(HEADER + data)
        else:
            super().datagram_received(HEADER + data, addr)


async def relay(kind: type[Front], listen: tuple[str, int], target: tuple[str, int]) -> None:
    """Relay until SIGTERM."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    front, _ = await loop.create_datagram_endpoint(lambda: kind(target), local_addr=listen)
    await ended.wait()
    front.close()


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The maker of the loop."""
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return None


if __name__ == "__main__":
    # Freeing one large block teaches malloc not to map each large block anew. Without it asyncio,
    # whose transport asks for 256 KiB a datagram, would look much slower than it mostly is.
    bytearray(1 << 19)
    with asyncio.Runner(loop_factory=loop_factory(sys.argv[1])) as runner:
        front_of = {"plain": Front, "header": HeaderFront}[sys.argv[2]]
        runner.run(relay(front_of, (HOST, int(sys.argv[3])), (HOST, int(sys.argv[4]))))
