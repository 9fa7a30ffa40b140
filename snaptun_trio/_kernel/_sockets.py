# Sockets: whether a borrowed one is fit, and how one of our own is opened, adopted and closed.
#
# Nothing here waits, and no name is resolved: that is for `_sockets` above.

from __future__ import annotations

import contextlib
import os
import socket
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

import trio

from .._brief import brief
from .._coalesce import MAX_PAYLOAD_IPV4
from . import _abi, _sockaddr
from ._interface import Socket

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .._train import Address

_KEPT = 2 if sys.platform == "linux" else 1
# What a UDP socket may say of its protocol: nothing, UDP or UDP-Lite. An ICMP socket looks the same
# but for that.
_UDP = (0, socket.IPPROTO_UDP, 136)


def check_socket(sock: object, wanted: str = "a trio or standard library socket") -> Socket:
    """Make sure that this is a socket we can move datagrams on.

    Args:
      sock: what was given.
      wanted: what could have been given.

    Raises:
      TypeError: it is neither a `trio.socket.SocketType` nor a `socket.socket`.
      ValueError: it is not a UDP socket of IPv4 or IPv6, it is closed, or it would block.
    """
    if not isinstance(sock, Socket):
        raise TypeError(f"{wanted} is needed, not {brief(sock, 80)}")
    if sock.fileno() < 0:
        raise ValueError("the socket is closed")
    if sock.type != socket.SOCK_DGRAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise ValueError(f"a UDP socket of IPv4 or IPv6 is needed, not {brief(sock, 120)}")
    if isinstance(sock, socket.socket) and sock.gettimeout() != 0:
        raise ValueError("the socket must not block: sock.setblocking(False)")
    return sock


class SocketOptions(NamedTuple):
    """What a socket of our own is opened with, see `open_udp_socket`."""

    reuse_port: bool
    receive_buffer: int
    send_buffer: int
    fragment: bool


def open_socket(
    local: Address, remote: Address | None, options: SocketOptions
) -> trio.socket.SocketType:
    """A UDP socket that is bound to a numeric address, and connected to one if need be.

    Nothing is left open where it fails.

    Raises:
      OSError: the system refuses; the message says which option, and its value.
      TypeError, ValueError: an address is not numeric.
    """
    sock = socket.socket(_sockaddr.family_of(local), socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if local[0] == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if options.reuse_port:
            with _named("reuse_port=True"):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with _named(f"local={local}"):
            sock.bind(local)
        return _finish(sock, remote, options)
    except BaseException:
        sock.close()
        raise


def open_connected(remote: Address, options: SocketOptions) -> socket.socket:
    """A UDP socket that is connected to a numeric address, from whatever address of ours.

    It is none of trio's, for whoever opens thousands and waits for them in another way: to open and
    to close it takes a fourth of the time. Nothing is left open where it fails.

    Raises:
      OSError: the system refuses.
      TypeError, ValueError: the address is not numeric.
    """
    sock = socket.socket(_sockaddr.family_of(remote), socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.receive_buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer)
        if options.fragment:
            _allow_fragments(sock)
        sock.connect(remote)
    except BaseException:
        sock.close()
        raise
    return sock


def adopt_socket(
    fd: int, remotes: Sequence[Address], options: SocketOptions
) -> trio.socket.SocketType:
    """The UDP socket of a descriptor that this process inherited, ours from here on.

    Where it fails the descriptor stays open, and its owner's.

    Args:
      fd: the descriptor.
      remotes: the addresses to try to connect it to, in this order; empty for none.
      options: what it gets beside those that it has.

    Raises:
      OSError: there is no socket of this number, or the system refuses an option.
      ValueError: it is not a UDP socket, not bound, or not of the family of any of ``remotes``.
    """
    told = f"local={fd}, a file descriptor"
    with _named(f"{told}; a port is (None, {fd})"):
        sock = socket.socket(fileno=fd)
    try:
        if (
            sock.type != socket.SOCK_DGRAM
            or sock.family not in (socket.AF_INET, socket.AF_INET6)
            or sock.proto not in _UDP
        ):
            raise ValueError(f"{told}: a UDP socket of IPv4 or IPv6 is needed, not {sock!r}")
        if not sock.getsockname()[1]:
            raise ValueError(f"{told}: the socket is not bound")
        fitting = [to for to in remotes if can_reach(sock.getsockname(), to)]
        if remotes and not fitting:
            raise ValueError(f"remote={remotes[0]} is not of the family of {told}")
        sock.setblocking(False)
        os.set_inheritable(fd, False)
        for remote in fitting[:-1]:
            try:
                return _finish(sock, remote, options)
            except OSError:
                continue  # the next one says so, if it fails as well
        return _finish(sock, fitting[-1] if fitting else None, options)
    except BaseException:
        sock.detach()
        raise


def can_reach(local: Address, remote: Address) -> bool:
    """Whether a socket that is bound to ``local`` can be connected to ``remote``.

    One that is bound to "::" speaks IPv4 as well.
    """
    return local[0] == "::" or (":" in local[0]) == (":" in remote[0])


def _finish(
    sock: socket.socket, remote: Address | None, options: SocketOptions
) -> trio.socket.SocketType:
    """What an inherited socket and a new one get alike."""
    for name, option, wanted in (
        ("receive_buffer", socket.SO_RCVBUF, options.receive_buffer),
        ("send_buffer", socket.SO_SNDBUF, options.send_buffer),
    ):
        # Linux keeps twice what it was asked for, and tells that.
        if sock.getsockopt(socket.SOL_SOCKET, option) < wanted * _KEPT:
            with _named(f"{name}={wanted}"):
                sock.setsockopt(socket.SOL_SOCKET, option, wanted)
    if options.fragment:
        with _named("fragment=True"):
            _allow_fragments(sock)
    if remote is not None:
        with _named(f"remote={remote}"):
            sock.connect(_sockaddr.mapped(remote, int(sock.family)))
    return trio.socket.from_stdlib_socket(sock)


def _allow_fragments(sock: socket.socket) -> None:
    # OMIT cuts at the interface's MTU, clears DF for the routers behind it, and ignores ICMP, which
    # strangers can forge to have everything cut small. It is also nobody's default, as DONT is for
    # IPv4 where net.ipv4.ip_no_pmtu_disc is set; so a sender knows that somebody wants it.
    # IPv6's routers never cut: there the sender has to believe the ICMP message that asks for it,
    # which cannot ask for less than 1280 bytes (RFC 8200, 5).
    if sys.platform == "linux":
        sock.setsockopt(_abi.SOL_IP, _abi.IP_MTU_DISCOVER, _abi.IP_PMTUDISC_OMIT)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(_abi.SOL_IPV6, _abi.IPV6_MTU_DISCOVER, _abi.IP_PMTUDISC_DONT)


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Let an error of the system say what was asked of it, which the kernel does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {what}") from None


def close_socket(sock: Socket) -> None:
    """Close a socket, and wake every task that waits for it."""
    if isinstance(sock, socket.socket) and sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
    sock.close()


# What every IPv6 path carries, less the headers of IPv6 and UDP (RFC 8200, section 5).
_EVERY_PATH = 1280 - 40 - 8


def path_mtu(address: Address) -> int:
    """The largest UDP payload, in bytes, that the routing table promises on the way to an address.

    Nothing is sent. The least that every IPv6 path carries, where the system does not say it.
    """
    if sys.platform != "linux":
        return _EVERY_PATH
    mapped = ip_address(address[0].partition("%")[0])
    ipv4 = mapped if mapped.version == 4 else mapped.ipv4_mapped
    if ipv4 is not None:
        address, level, option, headers = (str(ipv4), address[1]), _abi.SOL_IP, _abi.IP_MTU, 28
    else:
        level, option, headers = _abi.SOL_IPV6, _abi.IPV6_MTU, 48
    family = socket.AF_INET6 if ipv4 is None else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            told = probe.getsockopt(level, option) - headers
    except OSError:
        return _EVERY_PATH
    return min(told, MAX_PAYLOAD_IPV4)  # which a sender takes for either


def is_wildcard(sock: Socket) -> bool:
    """Whether a socket is bound to every address of the machine."""
    return ip_address(sock.getsockname()[0].partition("%")[0]).is_unspecified


def switched_off(offload: str) -> bool:
    """Whether the operator switched "GSO" or "GRO" off in the environment.

    Raises:
      ImportError: the variable has a value that means nothing.
    """
    name = f"SNAPTUN_TRIO_{offload}"
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise ImportError(f"{name}={value}: it is 0, which is off, 1 or empty")
    return value == "0"


class DescriptorLimits(NamedTuple):
    """How many descriptors this process may have open; `None` where the system sets no limit."""

    now: int | None
    """The soft limit, which a program may raise ..."""
    ever: int | None
    """... up to the hard one."""


def descriptor_limits() -> DescriptorLimits:
    """What the system says of it; nothing, where it does not."""
    try:
        import resource
    except ImportError:
        return DescriptorLimits(None, None)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DescriptorLimits(*[None if n == resource.RLIM_INFINITY else n for n in limits])
