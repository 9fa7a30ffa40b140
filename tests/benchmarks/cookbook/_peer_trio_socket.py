# The tutorial's DNS server on trio's own socket: a program by itself.
#
# `python _peer_trio_socket.py HOST PORT`

from __future__ import annotations

import socket
import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[3] / "docs" / "examples"))

from dns_message import answer_to

BUFFER = 4 << 20  # as `open_udp_socket` asks for


async def serve(host: str, port: int) -> None:
    """Answer DNS questions until killed."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        await sock.bind((host, port))
        print("running on port", port, flush=True)
        while True:
            question, client = await sock.recvfrom(65_536)
            reply = answer_to(question)
            if reply is not None:
                await sock.sendto(reply, client)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1], int(sys.argv[2]))
