"""A server with a loop of its own on every address of the machine: python own_loop.py PORT"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import trio

from snaptun_trio import (
    PacketBatch,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
    open_udp_socket,
)

if TYPE_CHECKING:
    from snaptun_trio import Address


def answers_to(questions: PacketBatch[Address]) -> PacketBatch:
    """Each in capitals, from the address that was asked."""
    return PacketBatch(
        [
            answer
            for train in questions.trains
            for answer in train.reply([packet.upper() for packet in train])
        ]
    )


async def main(port: int) -> None:
    with await open_udp_socket((None, port)) as sock:
        receiver = UdpBatchReceiver(sock, packet_info=True)  # without it reply() cannot know
        sender = UdpBatchSender(sock)
        print("answering on port", sender.local_address[1], flush=True)
        async for batch in receiver:
            with contextlib.suppress(SendBatchError):  # whom nothing can be sent to
                await sender.send(answers_to(batch))


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
