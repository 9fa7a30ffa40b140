# The tutorial's DNS server on asyncio's own loop or uvloop's with a task for each peer, as
# `serve_udp` has: at most so many, each with a bounded queue, until it is silent for too long.
#
# A program by itself: `python _peer_tasks.py LOOP HOST PORT`

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.benchmarks.cookbook._peer_protocols import (  # which knows where the next one is
    Peer,
    Protocol,
    endpoint,
    keep_large_blocks,
    loop_factory,
)

# isort: split
from dns_message import answer_to

MOST_PEERS, MOST_WAITING, IDLE_TIMEOUT = 10_000, 256, 60.0  # the defaults of serve_udp
LOOK_INTERVAL = 1.0


class Asker:
    """One peer, and the task that answers it."""

    def __init__(self, server: Server, address: Peer) -> None:
        self.questions: asyncio.Queue[bytes] = asyncio.Queue(MOST_WAITING)
        self.heard = 0.0
        self.task = asyncio.create_task(self._answer(server, address))

    async def _answer(self, server: Server, address: Peer) -> None:
        try:
            while True:
                reply = answer_to(await self.questions.get())
                if reply is not None:
                    server.transport.sendto(reply, address)
        except Exception as error:
            logging.warning("%s: %r", address, error)
        finally:
            server.peers.pop(address, None)


class Server(Protocol):
    """All peers."""

    def __init__(self) -> None:
        self.peers: dict[Peer, Asker] = {}
        self.dropped = self.shed = 0
        self._loop = asyncio.get_running_loop()

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        """A question."""
        asker = self.peers.get(addr)
        if asker is None:
            if len(self.peers) >= MOST_PEERS:
                self.shed += 1
                return
            asker = self.peers[addr] = Asker(self, addr)
        asker.heard = self._loop.time()
        try:
            asker.questions.put_nowait(data)
        except asyncio.QueueFull:
            self.dropped += 1

    async def expire(self) -> None:
        """End the tasks of peers that are silent, for ever."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            silent_since = self._loop.time() - IDLE_TIMEOUT
            for asker in [one for one in self.peers.values() if one.heard < silent_since]:
                asker.task.cancel()


async def main(host: str, port: str) -> None:
    """Answer DNS questions until killed."""
    server = Server()
    await endpoint(server, (host, int(port)))
    print("running on port", port, flush=True)
    await server.expire()


if __name__ == "__main__":
    keep_large_blocks()
    with asyncio.Runner(loop_factory=loop_factory(sys.argv[1])) as runner:
        runner.run(main(*sys.argv[2:]))
