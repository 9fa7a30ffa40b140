# The tutorial's DNS server, whose handlers do not wait for their answers: a program by itself.
#
# `python _nowait_server.py HOST PORT`

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio

sys.path.insert(0, str(Path(__file__).parents[3] / "docs" / "examples"))

import dns_server
from dns_message import answer_to

if TYPE_CHECKING:
    from snaptun_trio import UdpChannel


async def answer(channel: UdpChannel) -> None:
    """Answer the questions of one peer."""
    async for batch in channel:
        replies = [reply for question, _ in batch if (reply := answer_to(question)) is not None]
        try:
            channel.send_packets_nowait(replies)
        except trio.WouldBlock:
            await channel.send_packets(replies)


if __name__ == "__main__":
    dns_server.answer = answer
    trio.run(dns_server.main, sys.argv[1], int(sys.argv[2]))
