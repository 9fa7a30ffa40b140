# Sockets on the loopback device, and what moves datagrams on them in the tests.
#
# Everything arrives at once there and in order, but not always before the send call returns: so
# whoever looks for datagrams waits for so many of them, and never for a time. Only a hang runs
# into `PATIENCE`.

from __future__ import annotations

import contextlib
import functools
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING, Protocol

import attrs
import pytest
import trio

from snaptun_trio import PacketBatch, PacketTrain, UdpBatchReceiver, UdpBatchSender

if TYPE_CHECKING:
    from collections.abc import Iterator

    from snaptun_trio import Address

# include/uapi/linux/udp.h
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104

PATIENCE = 60.0
"""Seconds until a test that hangs is given up."""

Datagrams = list[tuple[bytes, "Address | None"]]


class MakeSocket(Protocol):
    """What the fixture ``udp`` is."""

    def __call__(self, host: str = "127.0.0.1", **options: int) -> socket.socket: ...


def bound_socket(
    host: str = "127.0.0.1", *, protocol: int = 0, receive_buffer: int = 4 << 20
) -> socket.socket:
    """A non-blocking UDP socket, bound to ``host`` and a port of the kernel's choice."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM, protocol)
    try:
        sock.setblocking(False)
        # The kernel grants less to an ordinary user; what a test has in flight is less still.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, 0))
    except OSError as error:
        sock.close()
        if ":" in host or protocol:
            pytest.skip(f"no such socket can be made here: {error}")
        raise
    return sock


@functools.cache
def kernel_knows(option: int) -> bool:
    """Whether the kernel has this option of UDP sockets."""
    if sys.platform != "linux":
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.getsockopt(SOL_UDP, option)
        except OSError:
            return False
    return True


def deafen(sock: socket.socket) -> Address:
    """Let nobody listen at this socket's address, and nobody else come to: returns that address.

    Once it is closed another process could be given the port. So it stays, and hears one peer only
    that never speaks; for all others the kernel answers that the port is unreachable.
    """
    address = address_of(sock)
    sock.connect((address[0], 9))
    return address


def address_of(sock: socket.socket | trio.socket.SocketType) -> Address:
    """Where a socket is bound to."""
    address: Address = sock.getsockname()
    return address


@attrs.frozen
class Pair:
    """A sender and a receiver, and the receiver's address."""

    sender: UdpBatchSender
    receiver: UdpBatchReceiver
    target: Address

    @property
    def source(self) -> Address:
        """Where the sender's datagrams come from."""
        address: Address = self.sender.socket.getsockname()
        return address


@contextlib.contextmanager
def make_pair(
    outgoing: socket.socket,
    incoming: socket.socket,
    *,
    gso: bool = True,
    gro: bool = True,
    batch_size: int = 64,
) -> Iterator[Pair]:
    """A sender on one socket, a receiver on the other."""
    with (
        UdpBatchSender(outgoing, gso=gso, batch_size=batch_size) as sender,
        UdpBatchReceiver(incoming, gro=gro) as receiver,
    ):
        yield Pair(sender, receiver, address_of(incoming))


def wait_until_readable(sock: socket.socket | trio.socket.SocketType) -> None:
    """Block until a datagram is there."""
    ready, _, _ = select.select([sock.fileno()], [], [], PATIENCE)
    assert ready, "no datagram came"


def collect_batches(receiver: UdpBatchReceiver, count: int) -> list[PacketBatch]:
    """The batches of the next ``count`` datagrams, which must end with a batch."""
    batches: list[PacketBatch] = []
    seen = 0
    while seen < count:
        try:
            batch = receiver.receive_nowait()
        except trio.WouldBlock:
            wait_until_readable(receiver.socket)
            continue
        batches.append(batch)
        seen += len(batch)
    assert seen == count, f"{seen - count} datagrams too many"
    return batches


def collect_trains(receiver: UdpBatchReceiver, count: int) -> list[PacketTrain]:
    """The trains of the next ``count`` datagrams."""
    return [train for batch in collect_batches(receiver, count) for train in batch.trains]


def collect(receiver: UdpBatchReceiver, count: int) -> Datagrams:
    """The next ``count`` datagrams, each with its address, from a receiver that has no more."""
    return [datagram for batch in collect_batches(receiver, count) for datagram in batch]


def payloads(receiver: UdpBatchReceiver, count: int) -> list[bytes]:
    """The payloads of the next ``count`` datagrams, from a receiver that has no more."""
    return [packet for packet, _ in collect(receiver, count)]


def nothing_waits(receiver: UdpBatchReceiver) -> bool:
    """Whether a receive would have to wait."""
    try:
        receiver.receive_nowait()
    except trio.WouldBlock:
        return True
    return False


def expect_only(pair: Pair, expected: list[bytes]) -> None:
    """These datagrams wait at the receiver, in this order, and no others.

    A last one is sent behind them, so that a datagram too many cannot be late.
    """
    fence = b"the fence behind everything else"
    with socket.socket(pair.receiver.socket.family, socket.SOCK_DGRAM) as sock:
        sock.sendto(fence, pair.target)
    found: list[bytes] = []
    while fence not in found:
        try:
            found += [packet for packet, _ in pair.receiver.receive_nowait()]
        except trio.WouldBlock:
            wait_until_readable(pair.receiver.socket)
    assert found == [*expected, fence]


def read_plainly(sock: socket.socket, count: int) -> list[bytes]:
    """The next ``count`` datagrams, without the library, at a socket that has no more."""
    found: list[bytes] = []
    while len(found) < count:
        wait_until_readable(sock)
        found.append(sock.recv(65_535))
    with pytest.raises(BlockingIOError):
        sock.recv(65_535)
    return found


def batch_of(packets: list[bytes], target: Address | None) -> PacketBatch:
    """The packets in as few trains as the kernel allows."""
    return PacketBatch(PacketTrain.pack(packets, target))


def numbered(count: int, size: int, start: int = 0) -> list[bytes]:
    """So many datagrams of one size, no two alike."""
    return [
        (number.to_bytes(4, "big") * (size // 4 + 1))[:size]
        for number in range(start, start + count)
    ]


@contextlib.contextmanager
def children_take_ctrl_c() -> Iterator[None]:
    """Processes that are started here get SIGINT with its usual meaning.

    A shell has its background jobs ignore it, and what is ignored is inherited: a program that is
    started so would never notice.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
