"""The DNS server as a service: on what systemd hands over, or else as a worker on a port."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial

import trio
from dns_server import GRACE, answer, note

from snaptun_trio import open_udp_socket, serve_udp


def inherited() -> list[int]:
    """The descriptors that systemd hands over, see sd_listen_fds(3); none without it."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    return list(range(3, 3 + int(os.environ.get("LISTEN_FDS", "0"))))


async def main(port: int) -> None:
    sockets = [await open_udp_socket(descriptor) for descriptor in inherited()]
    if not sockets:
        sockets = [await open_udp_socket((None, port), reuse_port=True)]
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as handlers, trio.open_nursery() as serving:
            for sock in sockets:
                serve = partial(serve_udp, handler_nursery=handlers, on_error=note)
                server = await serving.start(serve, answer, sock)
                print("answering on port", server.local_address[1], flush=True)
            async for _ in signals:
                break
            serving.cancel_scope.cancel()
            handlers.cancel_scope.deadline = trio.current_time() + GRACE


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
