from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import trio

from snaptun_trio import PacketBatch, PacketTrain, open_batch_pump

if TYPE_CHECKING:
    from snaptun_trio import Address


def answer(batch: PacketBatch[Address]) -> PacketBatch:
    """`datagram_received`, for all that came at once; what it returns is sent."""
    trains: list[PacketTrain] = []
    for train in batch.trains:
        trains += train.reply([packet.upper() for packet in train])
    return PacketBatch(trains)


async def main(port: int) -> None:
    async with open_batch_pump(("::", port), packet_info=True, handler=answer) as pump:
        print("answering on port", pump.local_address[1], flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
