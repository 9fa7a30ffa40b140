import sys

import trio

from snaptun_trio import open_udp_channel


async def main(port: int) -> None:
    async with await open_udp_channel("localhost", port) as channel:
        for _ in range(3):  # a question or its answer can be lost
            await channel.send_packet(b"hello")
            with trio.move_on_after(0.5):
                print(await channel.receive_packet())
                return
        print("no answer")


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
