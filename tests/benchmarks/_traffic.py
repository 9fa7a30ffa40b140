# Sockets on loopback, what comes into them and what goes out of them.
#
# Senders fill a socket's receive buffer in a shape of traffic; sinks take what a contender sends
# and can be asked how much it was. Nothing here is measured, so it is plain code. It knows no
# contender and no clock.

from __future__ import annotations

import resource
import select
import socket
import struct
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._shapes import Shape

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]

UDP_SEGMENT = 103  # linux/udp.h
UDP_GRO = 104
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
SO_MEMINFO = 55
IP_PKTINFO = 8  # linux/in.h
RMEM_ALLOC, RCVBUF, DROPS = 0, 1, 8  # the places in SO_MEMINFO, linux/sock_diag.h

RECEIVE_BUFFER = 4 << 20  # the kernel counts it as twice as much
ROOM = 192 << 10  # what 64 datagrams may take up, as the kernel accounts them
MOST_SENDERS = 64  # beyond it peers differ by address, not by socket
HANG_GUARD = 30.0


class Load(NamedTuple):
    """An amount of traffic."""

    datagrams: int
    nbytes: int


def open_socket(
    family: socket.AddressFamily,
    *,
    host: str | None = None,
    reuse_port: int | None = None,
    receive_buffer: int = RECEIVE_BUFFER,
) -> socket.socket:
    """A non-blocking UDP socket on loopback with a large receive buffer.

    The kernel chooses the port, unless there is one to share (0 for the first that will).
    """
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    if reuse_port is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if host is None:
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
    sock.bind((host, reuse_port or 0))
    return sock


def raise_file_limit(wanted: int) -> None:
    """Let this process open so many files, as far as it may. A process that may not finds out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def memory_info(sock: socket.socket) -> tuple[int, ...]:
    """The kernel's account of the socket's memory."""
    return struct.unpack("9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))


def payload(nbytes: int) -> bytes:
    """Bytes that were written. Memory that nobody touched would all be one page of zeros."""
    return b"x" * nbytes


class Sinks:
    """Sockets with room for all that a turn sends to them.

    They take trains whole (UDP_GRO), or loopback would split them at the sender's expense.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets
        for sock in sockets:
            sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)

    @property
    def addresses(self) -> list[Address]:
        """Where to send to."""
        return [sock.getsockname() for sock in self._sockets]

    def empty(self, nbytes: int) -> None:
        """Throw away what has come. Raises `RuntimeError` unless it was exactly so much."""
        left = nbytes
        nothing = bytearray(1)  # with MSG_TRUNC the kernel copies one byte and tells the length
        ready: Sequence[socket.socket] = self._sockets
        while True:
            for sock in ready:
                try:
                    while True:
                        left -= sock.recv_into(nothing, 0, socket.MSG_TRUNC)
                except BlockingIOError:
                    continue
            if left <= 0:
                break
            ready, _, _ = select.select(self._sockets, [], [], HANG_GUARD)
            if not ready:
                break
        if left:
            raise RuntimeError(f"{nbytes} bytes were to be sent, {nbytes - left} arrived")


class Traffic:
    """Sends a shape of traffic to a socket, as long as there is room for it.

    Several targets share one port: the kernel spreads the traffic among them.
    """

    def __init__(self, shape: Shape, *targets: socket.socket) -> None:
        self.shape = shape
        self._targets = targets
        self._to: Address = targets[0].getsockname()
        if shape.peers <= MOST_SENDERS:
            self.senders = [open_socket(targets[0].family) for _ in range(shape.peers)]
            self._sources: list[list[tuple[int, int, bytes]]] = [[]]
            for sender in self.senders:
                sender.connect(self._to)
        else:
            self.senders = [open_socket(socket.AF_INET, host="")]
            self._sources = [[from_address(number)] for number in range(shape.peers)]

    def send(self, trains: int, most_datagrams: int | None = None) -> Load:
        """Send up to so many trains. Returns what waits in the target now."""
        sent = nbytes = unchecked = 0
        dropped = self._dropped()
        for (size, segments), sender, source in zip(
            self.shape.pattern(trains), cycle(self.senders), cycle(self._sources), strict=False
        ):
            if most_datagrams is not None and sent + segments > most_datagrams:
                break
            if unchecked + segments > 64 or not sent:
                unchecked = 0
                if not self._has_room():
                    break
            data, control = payload(size * segments), source
            if segments > 1:
                control = [*source, (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", size))]
            if source:
                sender.sendmsg([data], control, 0, self._to)
            elif control:
                sender.sendmsg([data], control)
            else:
                sender.send(data)
            sent += segments
            nbytes += len(data)
            unchecked += segments
        if self._dropped() != dropped:
            raise RuntimeError("the kernel dropped datagrams while the socket was filled")
        return Load(sent, nbytes)

    def _dropped(self) -> int:
        return sum(memory_info(target)[DROPS] for target in self._targets)

    def _has_room(self) -> bool:
        infos = [memory_info(target) for target in self._targets]
        return all(info[RMEM_ALLOC] + ROOM <= info[RCVBUF] for info in infos)

    def close(self) -> None:
        """Close the senders."""
        for sender in self.senders:
            sender.close()


def from_address(peer: int) -> tuple[int, int, bytes]:
    """The control message that makes a datagram come from 127.1.x.y."""
    address = bytes((127, 1, peer >> 8, peer & 255))
    return (socket.IPPROTO_IP, IP_PKTINFO, struct.pack("i4s4s", 0, address, bytes(4)))
