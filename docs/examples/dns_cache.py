"""A DNS server that asks another one what it does not know: HOST PORT SERVER SERVER_PORT"""

from __future__ import annotations

import math
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio
from client import ask
from dns_message import question_in
from dns_server import GRACE, note

from snaptun_trio import UdpChannel, UdpServer, open_udp_channel, serve_udp

if TYPE_CHECKING:
    from snaptun_trio import Address

MOST, FRESH = 10_000, 30.0  # answers that are remembered, and for how many seconds
AT_ONCE = 200  # questions that the other server is asked, each from a socket of its own


class Cache:
    def __init__(self, server: str, port: int) -> None:
        self._server = server, port
        self._known: dict[bytes, tuple[float, bytes]] = {}  # question: until when, and the answer
        self._room = trio.Semaphore(AT_ONCE)

    def answer(self, message: bytes, _: Address) -> bytes | tuple[()] | None:
        """What is known is answered at once; what is not is left to `look_up`."""
        question = question_in(message)
        if question is None or message[2] >= 0x80:
            return ()  # junk, or itself an answer
        until, answer = self._known.get(question, (-math.inf, b""))
        return message[:2] + answer if trio.current_time() < until else None

    async def look_up(self, channel: UdpChannel) -> None:
        """Ask the other server what one client asks; a slow question holds up no other."""
        async with trio.open_nursery() as nursery:
            async for batch in channel:
                for message, _ in batch:
                    await self._room.acquire()
                    nursery.start_soon(self._find, channel, message)

    async def _find(self, channel: UdpChannel, message: bytes) -> None:
        try:
            async with await open_udp_channel(*self._server) as server:
                answer = await ask(server, message)
        except (OSError, trio.TooSlowError):
            return  # the client will ask again
        finally:
            self._room.release()
        question = question_in(message)
        if question is not None and question == question_in(answer):
            if len(self._known) >= MOST:
                self._known.pop(next(iter(self._known)))
            self._known[question] = trio.current_time() + FRESH, answer[2:]
            await channel.send_packet(answer)


async def main(host: str, port: int, server: str, server_port: int) -> None:
    cache = Cache(server, server_port)
    serve = partial(serve_udp, cache.look_up, port, host=host, answer=cache.answer, on_error=note)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as handlers, trio.open_nursery() as serving:
            dns: UdpServer = await serving.start(partial(serve, handler_nursery=handlers))
            print("answering on {} port {}".format(*dns.local_address), flush=True)
            async for _ in signals:
                break
            serving.cancel_scope.cancel()  # nothing more is received
            handlers.cancel_scope.deadline = trio.current_time() + GRACE


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
