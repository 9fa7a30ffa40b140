# Raw socket addresses <-> Address, cached.
#
# The caches are bounded: a stranger chooses the addresses that we decode, and may choose a new one
# for every datagram. This file knows the two internet families and nothing of sockets.

from __future__ import annotations

import socket
import struct
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from .._brief import brief
from .._train import check_address

if TYPE_CHECKING:
    from .._train import Address

AF_INET = int(socket.AF_INET)
AF_INET6 = int(socket.AF_INET6)

# Entries of each cache. 16 384 peers at a few hundred bytes are some megabytes, and a flood of
# strangers turns over the same entries.
CACHE_SIZE = 16_384

_INET = AF_INET.to_bytes(2, sys.byteorder)  # what an IPv4 name begins with
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, an IPv4 peer on an IPv6 socket (RFC 4291)

_IN = struct.Struct("=H2s4s8x")  # sockaddr_in: include/uapi/linux/in.h
_IN6 = struct.Struct("=H2sI16sI")  # sockaddr_in6: include/uapi/linux/in6.h


@lru_cache(CACHE_SIZE)
def decode(raw: bytes) -> Address | None:
    """The address in a raw ``sockaddr`` of a received message.

    `None` where there is none: a name of no length, or of another family.
    """
    family = int.from_bytes(raw[:2], _BYTE_ORDER)
    if family == AF_INET and len(raw) >= _IN.size:
        _, port, host = _IN.unpack(raw[: _IN.size])
        return socket.inet_ntop(socket.AF_INET, host), int.from_bytes(port, "big")
    if family == AF_INET6 and len(raw) >= _IN6.size:
        _, port, flowinfo, host, scope_id = _IN6.unpack(raw[: _IN6.size])
        return (
            socket.inet_ntop(socket.AF_INET6, host),
            int.from_bytes(port, "big"),
            socket.ntohl(flowinfo),
            scope_id,
        )
    return None


@lru_cache(CACHE_SIZE)
def encode(address: Address, family: int) -> bytes:
    """The raw ``sockaddr`` for an address on a socket of this family.

    An IPv4 host on an IPv6 socket becomes the mapped address, as the kernel wants it.

    Raises:
      ValueError: the host is not numeric, is of the wrong family, or a number is out of range.
      TypeError: the address is not a tuple of the right types.
    """
    check_address(address)
    host, port = address[0], address[1]
    flowinfo, scope_id = address[2:] if len(address) == 4 else (0, 0)
    port_bytes = port.to_bytes(2, "big")
    if family == AF_INET:
        return _IN.pack(AF_INET, port_bytes, numeric(host, socket.AF_INET))
    if family == AF_INET6:
        packed = (
            numeric(host, socket.AF_INET6)
            if ":" in host
            else _MAPPED + numeric(host, socket.AF_INET)
        )
        return _IN6.pack(AF_INET6, port_bytes, socket.htonl(flowinfo), packed, scope_id)
    raise ValueError(f"sockets of address family {family} are not supported")


_NUMBERS = {int}


def name_of(address: Address, family: int) -> bytes:
    """The raw ``sockaddr`` for an address that a program gave us.

    Raises:
      TypeError, ValueError: see `encode`.
    """
    if type(address) is tuple:
        if len(address) == 2:  # by far the most of them
            if type(address[1]) is int:
                return encode(address, family)
        elif _NUMBERS.issuperset(map(type, address[1:])):
            return encode(address, family)
    # Not through the cache, to which 80.0 and True are as good as 80 and 1.
    return encode.__wrapped__(address, family)


def family_of(address: Address) -> int:
    """The family of an address that a program gave us.

    Raises:
      TypeError, ValueError: see `encode`.
    """
    host = address[0] if isinstance(address, tuple) and address else None
    family = AF_INET6 if isinstance(host, str) and ":" in host else AF_INET
    name_of(address, family)
    return family


def mapped(address: Address, family: int) -> Address:
    """The address as the standard library wants it on a socket of this family."""
    if family == AF_INET6 and ":" not in address[0]:
        return (f"::ffff:{address[0]}", address[1], 0, 0)
    return address[:2] if family == AF_INET else address


def is_ipv4(raw: bytes) -> bool:
    """Whether a raw ``sockaddr`` leads over IPv4: an IPv4 address, or a mapped one."""
    return raw.startswith(_INET) or raw[8:20] == _MAPPED


def numeric(host: str, family: socket.AddressFamily, whose: str = "socket") -> bytes:
    """The bytes of a numeric host.

    Args:
      host: the numeric host, of a program.
      family: the only family that is right here.
      whose: what asks for that family, for the message.

    Raises:
      ValueError: it is not one of this family.
    """
    packed = _pton(host, family)
    if packed is not None:
        return packed
    needed, other, version = (
        ("IPv4", socket.AF_INET6, "IPv6")
        if family == socket.AF_INET
        else ("IPv6", socket.AF_INET, "IPv4")
    )
    if _pton(host, other) is not None:
        reason = f"is an {version} address, and the {whose} is of {needed}"
    elif _pton(host.partition("%")[0], socket.AF_INET6) is not None:
        reason = "has a scope in it: it is the fourth element of an IPv6 address, a number"
    else:
        reason = "is not a numeric IP host; names are not resolved on the data path"
    raise ValueError(f"{brief(host)} {reason}")


def _pton(host: str, family: socket.AddressFamily) -> bytes | None:
    try:
        return socket.inet_pton(family, host)
    except (OSError, ValueError):  # ValueError: not a host at all, but something with a NUL in it
        return None


_BYTE_ORDER: Literal["little", "big"] = sys.byteorder
