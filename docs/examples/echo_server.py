import sys

import trio

from snaptun_trio import UdpChannel, serve_udp


async def echo(channel: UdpChannel) -> None:
    async for batch in channel:  # from one peer: each has a task of its own
        await channel.send(batch)


async def main(port: int) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_udp, echo, port)
        print("echoing on port", server.local_address[1], flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
