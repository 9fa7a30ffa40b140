# The tutorial's DNS server as a handler of a pump, with no task for each peer: a program by itself.
#
# `python _pump_server.py HOST PORT`

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from snaptun_trio import PacketBatch, open_batch_pump

sys.path.insert(0, str(Path(__file__).parents[3] / "docs" / "examples"))

from dns_message import answer_to

if TYPE_CHECKING:
    from snaptun_trio import Address


def answers(batch: PacketBatch[Address]) -> PacketBatch:
    """Each question that has an answer gets it."""
    found = [(answer_to(question), client) for question, client in batch]
    return PacketBatch.pack((reply, client) for reply, client in found if reply is not None)


async def serve(host: str, port: int) -> None:
    """Answer DNS questions until killed."""
    async with open_batch_pump((host, port), handler=answers):
        print("running on port", port, flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(serve, sys.argv[1], int(sys.argv[2]))
