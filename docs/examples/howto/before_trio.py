from __future__ import annotations

import socket
import sys

import trio


async def main(port: int) -> None:
    with trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        await sock.bind(("::", port))
        print("answering on port", sock.getsockname()[1], flush=True)
        while True:
            packet, address = await sock.recvfrom(65_535)
            await sock.sendto(packet.upper(), address)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
