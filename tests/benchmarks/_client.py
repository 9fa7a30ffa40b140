# The other end of a program that is measured: a plain blocking socket in a process of its own.
#
# The server knows the client's address and greets it, so that the client learns the server's. What
# is lost ends the row with an error: nobody sends twice, and no figure is made from what is left.

from __future__ import annotations

import os
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ._traffic import HANG_GUARD, open_socket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from ._traffic import Address

GREETING = b"here"


def greet(sock: socket.socket, client: Address, number: int = 0) -> None:
    """In the server: tell the client where this socket is."""
    sock.sendto(GREETING + struct.pack("!H", number), client)


def greeted(client: socket.socket) -> tuple[int, Address]:
    """Wait for a greeting: the socket's number and address."""
    greeting, server = client.recvfrom(64)
    if not greeting.startswith(GREETING):
        raise RuntimeError("a datagram from elsewhere")
    return struct.unpack("!H", greeting[len(GREETING) :])[0], server


def open_client() -> socket.socket:
    """A blocking socket that does not wait for ever for what is lost.

    The kernel keeps the time; Python's own time limit would cost a system call a datagram.
    """
    sock = open_socket(socket.AF_INET)
    sock.setblocking(True)
    limit = struct.pack("ll", int(HANG_GUARD), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    return sock


@contextmanager
def on_processor(processor: int) -> Iterator[None]:
    """Run the client's process there for a while."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        yield
    finally:
        os.sched_setaffinity(0, processors)


@contextmanager
def beside(server: Future[float], processor: int) -> Iterator[None]:
    """The client's part goes in here. If it fails, the server's own error says more."""
    with on_processor(processor):
        try:
            yield
        except OSError as error:
            server.result(2 * HANG_GUARD)
            raise RuntimeError(
                f"the server served all, but the client missed something: {error}"
            ) from error
