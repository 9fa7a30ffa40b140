# The options of a borrowed socket: what we switch on, and what we can ask of it.
#
# An offload that a system does not have is switched off here, once, and the caller is told; an
# option that a program asked for by name and cannot have is an error. Nothing here moves data.

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING

import trio

from .._brief import brief
from . import _abi, _sockaddr

if TYPE_CHECKING:
    from .._train import Address
    from ._interface import Socket

_LINUX = sys.platform == "linux"


def check_socket(sock: object, wanted: str = "a trio or standard library socket") -> Socket:
    """Make sure that this is a socket we can move datagrams on.

    Args:
      sock: what was given.
      wanted: what could have been given.

    Raises:
      TypeError: it is neither a `trio.socket.SocketType` nor a `socket.socket`.
      ValueError: it is not a UDP socket of IPv4 or IPv6, it is closed, or it would block.
    """
    if not isinstance(sock, trio.socket.SocketType | socket.socket):
        raise TypeError(f"{wanted} is needed, not {brief(sock, 80)}")
    if sock.fileno() < 0:
        raise ValueError("the socket is closed")
    if sock.type != socket.SOCK_DGRAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise ValueError(f"a UDP socket of IPv4 or IPv6 is needed, not {brief(sock, 120)}")
    if isinstance(sock, socket.socket) and sock.gettimeout() != 0:
        raise ValueError("the socket must not block: sock.setblocking(False)")
    return sock


# What a socket of our own asks for, in bytes; the kernel caps it (net.core.rmem_max, wmem_max).
# The default of 212 992 holds four trains of 50 x 1200 bytes on the way in. On the way out it is
# used up by 256 small datagrams to one absent neighbour, and then nobody is served for 3 seconds.
_SOCKET_BUFFER = 4 << 20


def open_socket(address: Address) -> trio.socket.SocketType:
    """A UDP socket that is bound to a numeric local address.

    Raises:
      OSError: the address cannot be bound.
      TypeError, ValueError: it is not a numeric address.
    """
    sock = socket.socket(_sockaddr.family_of(address), socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if address[0] == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            if sock.getsockopt(socket.SOL_SOCKET, name) < _SOCKET_BUFFER:
                sock.setsockopt(socket.SOL_SOCKET, name, _SOCKET_BUFFER)
        try:
            sock.bind(address)
        except OSError as error:  # the kernel does not say which address
            raise OSError(error.errno, f"{error.strerror}: {address}") from None
        return trio.socket.from_stdlib_socket(sock)
    except BaseException:
        sock.close()
        raise


def close_socket(sock: Socket) -> None:
    """Close a socket, and wake every task that waits for it."""
    if isinstance(sock, socket.socket) and sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
    sock.close()


def check_bound(sock: Socket) -> None:
    """Refuse a socket without a port.

    The kernel would look for one on the first send, and where all are taken it answers EAGAIN while
    it says that the socket is writable: a loop without end, a millisecond of kernel time each turn.

    Raises:
      ValueError: the socket is neither bound nor connected.
    """
    try:
        port = sock.getsockname()[1]
    except OSError:  # Windows has no name for a socket that was never bound
        port = 0
    if not port:
        raise ValueError("the socket must be bound, or connected, before it can send")


def switched_off(offload: str) -> bool:
    """Whether the operator switched "GSO" or "GRO" off in the environment."""
    return os.environ.get(f"SNAPTUN_TRIO_{offload}") == "0"


def _option(sock: Socket, level: int, name: int) -> int | None:
    """An integer option, `None` where the system does not know it."""
    try:
        return sock.getsockopt(level, name)
    except OSError:
        return None


def gro_enabled(sock: Socket) -> bool:
    """Whether the kernel hands out trains on this socket."""
    return _LINUX and bool(_option(sock, _abi.SOL_UDP, _abi.UDP_GRO))


def enable_gro(sock: Socket) -> bool:
    """Ask for trains. Returns whether there will be any.

    It is never switched off again: with trains queued that would glue their datagrams together
    without a trace.
    """
    if not _LINUX:
        return False
    try:
        sock.setsockopt(_abi.SOL_UDP, _abi.UDP_GRO, 1)
    except OSError:
        return False
    return True


def gso_available(sock: Socket) -> bool:
    """Whether the kernel can segment trains on this socket.

    Only asked, not tried: a UDP_SEGMENT left set on the socket would segment every plain send of
    the program that lent it to us.

    Raises:
      ValueError: UDP_SEGMENT is set on the socket.
    """
    if not _LINUX:
        return False
    value = _option(sock, _abi.SOL_UDP, _abi.UDP_SEGMENT)
    if value:
        raise ValueError("UDP_SEGMENT is set on the socket; it would segment every plain send")
    return value is not None


def forbid_fragmentation(sock: Socket) -> None:
    """Set DF on everything sent, and let nothing but the interface's MTU refuse a datagram.

    Without it the kernel sends trains with DF clear and overlapping IPv4 identifications, so that
    fragments of different datagrams can be put together to a wrong one; and an oversize datagram
    would be fragmented when it goes alone and refused when it goes in a train. PROBE also ignores
    what strangers' ICMP messages claim about the path's MTU (RFC 8899, section 4.1).
    """
    if not _LINUX:
        return
    # A dual-stack socket reaches IPv4 peers under the IPv4 option. Where a sandbox refuses, sends
    # work all the same.
    for level, name in (
        (_abi.SOL_IP, _abi.IP_MTU_DISCOVER),
        (_abi.SOL_IPV6, _abi.IPV6_MTU_DISCOVER),
    ):
        if level == _abi.SOL_IP or sock.family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                sock.setsockopt(level, name, _abi.IP_PMTUDISC_PROBE)


def report(sock: Socket, *, ecn: bool, packet_info: bool, timestamps: bool) -> None:
    """Switch on the control messages that fill a train's ancillary fields.

    Raises:
      ValueError: this system cannot report one of them.
    """
    wanted: list[tuple[str, int, int]] = []
    ipv6 = sock.family == socket.AF_INET6
    if ecn:
        # IPv4 peers of a dual-stack socket are reported under the IPv4 option only.
        wanted.append(("ecn", _abi.SOL_IP, _abi.IP_RECVTOS))
        if ipv6:
            wanted.append(("ecn", _abi.SOL_IPV6, _abi.IPV6_RECVTCLASS))
    if packet_info:
        # The IPv4 option alone tells of an IPv4 broadcast which address of ours it came to.
        wanted.append(("packet_info", _abi.SOL_IP, _abi.IP_PKTINFO))
        if ipv6:
            wanted.append(("packet_info", _abi.SOL_IPV6, _abi.IPV6_RECVPKTINFO))
    if timestamps:
        wanted.append(("timestamps", _abi.SOL_SOCKET, _abi.SO_TIMESTAMPNS))
    for flag, level, name in wanted:
        if not _LINUX:
            raise ValueError(f"{flag}=True: only Linux reports it")
        try:
            sock.setsockopt(level, name, 1)
        except OSError as error:
            raise ValueError(f"{flag}=True: this system cannot report it ({error})") from error


def peer_of(sock: Socket) -> Address | None:
    """Whom the socket is connected to; `None` where it is not."""
    try:
        peer: Address = sock.getpeername()
    except OSError:
        return None
    return peer


def hears_errors(sock: Socket) -> bool:
    """Whether errors about earlier datagrams can be pending at this socket.

    They can where it is connected, or its owner switched IP_RECVERR on.
    """
    return peer_of(sock) is not None or (
        _LINUX
        and bool(
            _option(sock, _abi.SOL_IP, _abi.IP_RECVERR)
            or (sock.family == socket.AF_INET6 and _option(sock, _abi.SOL_IPV6, _abi.IPV6_RECVERR))
        )
    )


def kernel_drops(sock: Socket) -> int | None:
    """What the kernel dropped from the socket's queue: buffers, see `ReceiverStatistics`."""
    if not _LINUX:
        return None
    words = struct.Struct(f"={_abi.SK_MEMINFO_VARS}I")
    try:
        raw = sock.getsockopt(_abi.SOL_SOCKET, _abi.SO_MEMINFO, words.size)
    except OSError:
        return None
    return int(words.unpack(raw)[_abi.SK_MEMINFO_DROPS]) if len(raw) == words.size else None


def receive_buffer_size(sock: Socket) -> int:
    """SO_RCVBUF, 0 where the socket is closed."""
    return _option(sock, socket.SOL_SOCKET, socket.SO_RCVBUF) or 0


def send_buffer_size(sock: Socket) -> int:
    """SO_SNDBUF, 0 where the socket is closed."""
    return _option(sock, socket.SOL_SOCKET, socket.SO_SNDBUF) or 0
