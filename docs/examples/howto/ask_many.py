"""Asks one server many questions at a time, from many tasks, on one socket."""

from __future__ import annotations

import random
import secrets
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio

from snaptun_trio import UdpChannel, open_udp_channel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

NUMBER = 4  # bytes in front of each question, which the answer repeats
FIRST_PATIENCE = 0.5  # seconds; twice as long after each try
TRIES = 4


class Asker:
    """A client that any number of tasks may use at once."""

    def __init__(self, channel: UdpChannel) -> None:
        self._channel = channel
        self._waiting: dict[bytes, trio.MemorySendChannel[bytes]] = {}

    async def ask(self, question: bytes) -> bytes:
        """The answer to a question.

        Raises:
          trio.TooSlowError: there was none, however often it was asked.
        """
        number = secrets.token_bytes(NUMBER)  # nobody off the path can guess it
        put, answer = trio.open_memory_channel[bytes](1)
        self._waiting[number] = put
        try:
            for attempt in range(TRIES):
                await self._channel.send_packet(number + question)
                # Tasks that were all let down at once must not all ask again at once.
                patience = FIRST_PATIENCE * 2**attempt * random.uniform(0.8, 1.2)
                with trio.move_on_after(patience):
                    return await answer.receive()
            raise trio.TooSlowError
        finally:
            del self._waiting[number]

    async def listen(self) -> None:
        """Hand out answers, until cancelled."""
        async for batch in self._channel:
            for answer, _ in batch:
                self._hand_out(answer)

    def _hand_out(self, answer: bytes) -> None:
        put = self._waiting.get(answer[:NUMBER])
        if put is None:
            return  # late, or nobody's
        with suppress(trio.WouldBlock):  # a second answer to the same question
            put.send_nowait(answer[NUMBER:])


@asynccontextmanager
async def open_asker(host: str, port: int) -> AsyncGenerator[Asker, None]:
    """A client of a server."""
    # Somebody on the path may say no to an earlier question: its task knows how long to go on.
    opening = open_udp_channel(host, port, report_errors=False)
    async with await opening as channel, trio.open_nursery() as nursery:
        asker = Asker(channel)
        nursery.start_soon(asker.listen)
        yield asker
        nursery.cancel_scope.cancel()


async def main(host: str, port: int, words: list[str]) -> None:
    async def show(word: str) -> None:
        try:
            print((await asker.ask(word.encode())).decode())
        except trio.TooSlowError:
            print(f"no answer to {word}")

    async with open_asker(host, port) as asker, trio.open_nursery() as nursery:
        for word in words:
            nursery.start_soon(show, word)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3:])
