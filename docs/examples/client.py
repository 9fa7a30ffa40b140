"""Asks a server, again and again until it answers: python client.py HOST PORT WORD"""

from __future__ import annotations

import secrets
import sys

import trio

from snaptun_trio import UdpChannel, open_udp_channel

FIRST_PATIENCE = 0.5  # seconds; twice as long after each try
TRIES = 4


async def ask(channel: UdpChannel, question: bytes) -> bytes:
    """The answer to a question: it begins with the same two bytes.

    Raises:
      trio.TooSlowError: there is none.
      OSError: the path or the server's machine said no, such as `ConnectionRefusedError`.
    """
    for attempt in range(TRIES):
        await channel.send_packet(question)
        with trio.move_on_after(FIRST_PATIENCE * 2**attempt):
            async for batch in channel:
                for answer, _ in batch:
                    if answer[:2] == question[:2]:  # and not a late one, to an earlier question
                        return answer
    raise trio.TooSlowError


async def main(host: str, port: int, word: str) -> None:
    question = secrets.token_bytes(2) + word.encode()
    async with await open_udp_channel(host, port) as channel:
        try:
            answer = await ask(channel, question)
        except ConnectionRefusedError:
            sys.exit(f"nobody listens on {host} port {port}")
        except trio.TooSlowError:
            sys.exit(f"no answer from {host} port {port}")
        print(answer[2:].decode())


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3])
