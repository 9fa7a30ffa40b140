# Control messages: what the kernel says beside a datagram, and what we ask beside one.
#
# `decode` and `encode` serve both backends. Received bytes are not trusted: a length that lies
# ends the walk, and nothing is read beyond the buffer. This file must not know sockets or slabs.

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from .._train import ECN
from . import _abi, _sockaddr

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HEADER = _abi.CMSG
_INT = struct.Struct("=i")
_TIMESPEC = struct.Struct("=qq")  # __kernel_timespec, include/uapi/linux/time_types.h
_IN_PKTINFO = struct.Struct("=i4s4s")  # include/uapi/linux/in.h
_IN6_PKTINFO = struct.Struct("=16si")  # include/uapi/linux/ipv6.h

_TIME_LENGTH = _abi.CMSG_HEADER + _TIMESPEC.size
_TIME_SIZE = _abi.cmsg_align(_TIME_LENGTH)
_TIME_HEADER = _HEADER.pack(_TIME_LENGTH, _abi.SOL_SOCKET, _abi.SO_TIMESTAMPNS)

# What the first byte of an address says: from 224 on no single host has it (RFC 1112, section 4);
# and 255 is an IPv6 group (RFC 4291, section 2.7).
_GROUPS = 224
_GROUPS_IPV6 = 255

ControlMessage = tuple[int, int, bytes]  # level, type, data: as socket.recvmsg gives it


class Ancillary(NamedTuple):
    """What control messages said of a train."""

    segment_size: int | None = None
    ecn: ECN | None = None
    local_address: str | None = None
    interface_index: int | None = None
    timestamp_ns: int | None = None


NOTHING = Ancillary()
Told = tuple[ECN | None, str | None, int | None, int | None]  # the same without the size
_ECN = tuple(ECN)  # to look one up takes 6 ns, to call the class 320


def walk(control: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Go through raw control messages: yields ``(level, type, start, stop)`` of each one's data.

    A message that claims less than its header, or more than there is, ends the walk.
    """
    offset = 0
    while offset + _HEADER.size <= len(control):
        length, level, kind = _HEADER.unpack_from(control, offset)
        if not _HEADER.size <= length <= len(control) - offset:
            return
        yield level, kind, offset + _abi.CMSG_HEADER, offset + length
        offset += _abi.cmsg_align(length)


def parse(control: bytes) -> list[ControlMessage]:
    """Raw control messages in the form of ``socket.recvmsg``."""
    return [(level, kind, control[start:stop]) for level, kind, start, stop in walk(control)]


def decode(messages: Iterable[ControlMessage]) -> Ancillary:
    """What the control messages of one train say. Unknown and short ones are passed over."""
    if not messages:
        return NOTHING
    segment_size = ecn = interface_index = timestamp_ns = None
    ipv4_host = ipv6_host = None
    for level, kind, data in messages:
        size = len(data)
        match level, kind:
            case _abi.SOL_UDP, _abi.UDP_GRO if size >= 4:
                # An int; net/ipv4/udp.c. Always positive from a sound kernel: zero would split into
                # datagrams without end, so what is not is passed over, here as in `_pool.c`.
                if (stride := _INT.unpack_from(data)[0]) > 0:
                    segment_size = stride
            case _abi.SOL_IP, _abi.IP_TOS if size >= 1:
                ecn = _ECN[data[0] & 3]  # one byte on reception, net/ipv4/ip_sockglue.c
            case _abi.SOL_IPV6, _abi.IPV6_TCLASS if size >= 4:
                ecn = _ECN[_INT.unpack_from(data)[0] & 3]
            case _abi.SOL_IP, _abi.IP_PKTINFO if size >= _IN_PKTINFO.size:
                interface_index, own, host = _IN_PKTINFO.unpack_from(data)
                if own != host and any(own) and host[0] < _GROUPS:
                    host = own  # a subnet's broadcast address, which is nobody's
                ipv4_host = socket.inet_ntop(socket.AF_INET, host)
            case _abi.SOL_IPV6, _abi.IPV6_PKTINFO if size >= _IN6_PKTINFO.size:
                host, interface_index = _IN6_PKTINFO.unpack_from(data)
                ipv6_host = socket.inet_ntop(socket.AF_INET6, host)
            case _abi.SOL_SOCKET, _abi.SO_TIMESTAMPNS if size >= _TIMESPEC.size:
                seconds, nanoseconds = _TIMESPEC.unpack_from(data)
                timestamp_ns = seconds * 1_000_000_000 + nanoseconds
            case _:
                pass
    # On an IPv6 socket both are said of what came over IPv4, and only one tells of a broadcast.
    local_address = ipv6_host if ipv4_host is None else ipv4_host
    if ipv4_host is not None and ipv6_host is not None:
        local_address = f"::ffff:{ipv4_host}"
    return Ancillary(segment_size, ecn, local_address, interface_index or None, timestamp_ns)


@lru_cache(256)
def _read_before(control: bytes) -> Told:
    return decode(parse(control))[1:]


def read(control: bytes) -> Told:
    """What `decode` of `parse` says of raw control messages, but for the size, and sooner.

    Marks and addresses are the same bytes again and again. The time is not, but the kernel says it
    before them (udp_recvmsg in net/ipv4/udp.c and net/ipv6/udp.c), and so the rest is.
    """
    if not control.startswith(_TIME_HEADER) or len(control) < _TIME_SIZE:
        return _read_before(control)
    ecn, host, interface, time = _read_before(control[_TIME_SIZE:])
    if time is None:
        seconds, nanoseconds = _TIMESPEC.unpack_from(control, _abi.CMSG_HEADER)
        time = seconds * 1_000_000_000 + nanoseconds
    return ecn, host, interface, time


@lru_cache(1024)
def encode(
    segment_size: int,
    ecn: int | None,
    local_address: str | None,
    interface_index: int | None,
    ipv4: bool,
) -> tuple[ControlMessage, ...]:
    """The control messages to send a train with. A ``segment_size`` of 0 asks for no segmentation.

    ``ipv4`` says how the train leaves: to an IPv4-mapped peer of an IPv6 socket only the IPv4 type
    of service counts, the traffic class is ignored in silence (net/ipv6/udp.c).

    Raises:
      ValueError: ``local_address`` is not a numeric host of the family the train leaves by.
    """
    messages: list[ControlMessage] = []
    if segment_size:
        messages.append((_abi.SOL_UDP, _abi.UDP_SEGMENT, struct.pack("=H", segment_size)))
    if ecn is not None:
        messages.append(
            (_abi.SOL_IP, _abi.IP_TOS, _INT.pack(ecn))
            if ipv4
            else (_abi.SOL_IPV6, _abi.IPV6_TCLASS, _INT.pack(ecn))
        )
    if local_address is not None or interface_index is not None:
        index = interface_index or 0
        if ipv4:
            host = (local_address or "0.0.0.0").removeprefix("::ffff:")
            packed = _sockaddr.numeric(host, socket.AF_INET, "peer")
            if packed[0] >= _GROUPS:
                packed = bytes(4)  # the kernel's choice: a group is nobody's source
            # The source goes into ipi_spec_dst; ipi_addr is for reception only (ip(7)).
            messages.append(
                (_abi.SOL_IP, _abi.IP_PKTINFO, _IN_PKTINFO.pack(index, packed, bytes(4)))
            )
        else:
            packed = _sockaddr.numeric(local_address or "::", socket.AF_INET6, "peer")
            if packed[0] == _GROUPS_IPV6:
                packed = bytes(16)
            messages.append((_abi.SOL_IPV6, _abi.IPV6_PKTINFO, _IN6_PKTINFO.pack(packed, index)))
    return tuple(messages)


@lru_cache(1024)
def serialise(messages: tuple[ControlMessage, ...]) -> bytes:
    """Control messages as the raw bytes of ``msg_control``."""
    return b"".join(
        _HEADER.pack(_abi.CMSG_HEADER + len(data), level, kind)
        + data.ljust(_abi.cmsg_align(len(data)), b"\0")
        for level, kind, data in messages
    )
