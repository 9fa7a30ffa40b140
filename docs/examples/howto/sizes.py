"""Says what the system grants a client of a server: python sizes.py HOST PORT"""

from __future__ import annotations

import sys

import trio

from snaptun_trio import open_udp_channel


async def main(host: str, port: int) -> None:
    async with await open_udp_channel(host, port) as channel:
        counted = channel.statistics()
        print("a datagram may be", channel.mtu, "bytes long")
        if counted.receiver is not None and counted.sender is not None:
            print("the receive buffer is", counted.receiver.receive_buffer_size, "bytes")
            print("the send buffer is", counted.sender.send_buffer_size, "bytes")
            print("GRO:", counted.receiver.gro, "GSO:", counted.sender.gso)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
