"""Workers on one port, each on a socket that outlives it: python supervisor.py PORT WORKERS"""

from __future__ import annotations

import logging
import os
import signal
import sys

import trio

from snaptun_trio import UdpChannel, open_udp_socket, serve_udp

AGAIN = 1.0  # seconds before a worker that ended is started again


async def answer(channel: UdpChannel) -> None:
    """Say who answers."""
    async for batch in channel:
        for packet, _ in batch:
            await channel.send_packet(b"%d: %b" % (os.getpid(), packet))


async def work(descriptor: int) -> None:
    """Serve on a socket that was inherited."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_udp, answer, await open_udp_socket(descriptor))
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()


async def keep(descriptor: int) -> None:
    """Have a worker on a socket, for ever. What comes while there is none waits in the socket."""
    command = [sys.executable, __file__, "--worker", str(descriptor)]
    while True:
        done = await trio.run_process(command, pass_fds=[descriptor], check=False)
        logging.warning("a worker ended with exit code %d", done.returncode)
        await trio.sleep(AGAIN)


async def supervise(port: int, workers: int) -> None:
    # All of them before the first worker, and never closed: the kernel shares out the peers by the
    # number of sockets, and so no peer ever moves.
    sockets: list[trio.socket.SocketType] = []
    for _ in range(workers):
        sockets.append(await open_udp_socket((None, port), reuse_port=True))
        port = sockets[0].getsockname()[1]
    print("listening on port", port, flush=True)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            for sock in sockets:
                nursery.start_soon(keep, sock.fileno())
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()  # trio sends each worker SIGTERM, and SIGKILL after 5 s


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        trio.run(work, int(sys.argv[2]))
    else:
        trio.run(supervise, int(sys.argv[1]), int(sys.argv[2]))
