"""Says something through such a relay: python relay_client.py HOST PORT WORD"""

from __future__ import annotations

import sys

import trio

from snaptun_trio import open_udp_channel


async def main(host: str, port: int, word: str) -> None:
    async with await open_udp_channel(host, port) as channel:
        for packet in (b"Pare you there?", b"D" + word.encode()):
            await channel.send_packet(packet)
            with trio.fail_after(2):  # or it is lost
                print((await channel.receive_packet()).decode())
        await channel.send_packet(b"B")


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3])
