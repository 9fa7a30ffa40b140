# IP packets and UDP datagrams by hand: to write into a tun device, and to find the datagram in
# what is read from one. Right or wrong, as the test wants it.
#
# IPv4 without options and IPv6 without extension headers; that is all that a tun device of the
# suite ever sees. This file opens nothing.

from __future__ import annotations

import socket
import struct
from array import array

UDP_HEADER = 8
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")

# include/uapi/linux/virtio_net.h
_VIRTIO = struct.Struct("=BBHHHH")
VIRTIO_NET_HDR = _VIRTIO.size
VIRTIO_NEEDS_CSUM = 1
VIRTIO_GSO_UDP_L4 = 5


def ones_complement_sum(data: bytes) -> int:
    """The Internet checksum's sum, folded to 16 bits and not yet inverted."""
    if len(data) % 2:
        data += b"\0"
    words = array("H", data)
    words.byteswap()
    total = sum(words)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _pseudo_header(source: bytes, destination: bytes, length: int) -> bytes:
    return source + destination + struct.pack("!II", length, socket.IPPROTO_UDP)


def udp_packet(
    source: tuple[str, int],
    destination: tuple[str, int],
    payload: bytes,
    *,
    udp_length: int | None = None,
    ip_length: int | None = None,
    checksum: int | None = None,
    partial_checksum: bool = False,
    traffic_class: int = 0,
) -> bytes:
    """One IP packet with a UDP datagram in it, correct unless told otherwise.

    Args:
        udp_length: what the UDP header says instead of the truth.
        ip_length: what the IP header says instead of the truth.
        checksum: what the UDP header says instead of the truth; 0 is "none" with IPv4.
        partial_checksum: the pseudo header's sum only, as a GSO packet carries it.
    """
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    src = socket.inet_pton(family, source[0])
    dst = socket.inet_pton(family, destination[0])
    true_length = UDP_HEADER + len(payload)
    stated = true_length if udp_length is None else udp_length
    if checksum is None:
        pseudo = _pseudo_header(src, dst, true_length)
        if partial_checksum:
            checksum = ones_complement_sum(pseudo)
        else:
            header = _UDP.pack(source[1], destination[1], stated, 0)
            checksum = 0xFFFF & ~ones_complement_sum(pseudo + header + payload) or 0xFFFF
    udp = _UDP.pack(source[1], destination[1], stated, checksum) + payload
    if family == socket.AF_INET6:
        length = len(udp) if ip_length is None else ip_length
        first = 6 << 28 | traffic_class << 20
        return _IPV6.pack(first, length, socket.IPPROTO_UDP, 64, src, dst) + udp
    length = _IPV4.size + len(udp) if ip_length is None else ip_length
    fields = (0x45, traffic_class, length, 0, 0x4000, 64, socket.IPPROTO_UDP)
    header = _IPV4.pack(*fields, 0, src, dst)
    header = _IPV4.pack(*fields, 0xFFFF & ~ones_complement_sum(header), src, dst)
    return header + udp


def gso_packet(
    source: tuple[str, int],
    destination: tuple[str, int],
    payload: bytes,
    segment_size: int,
    *,
    flags: int = VIRTIO_NEEDS_CSUM,
    udp_length: int | None = None,
) -> bytes:
    """A virtio header and a packet that the kernel is to take for a coalesced train."""
    packet = udp_packet(source, destination, payload, partial_checksum=True, udp_length=udp_length)
    start = payload_offset(packet) - UDP_HEADER
    header = _VIRTIO.pack(flags, VIRTIO_GSO_UDP_L4, start + UDP_HEADER, segment_size, start, 6)
    return header + packet


def plain_virtio(packet: bytes) -> bytes:
    """A packet behind an empty virtio header."""
    return bytes(VIRTIO_NET_HDR) + packet


def is_udp(packet: bytes) -> bool:
    """Whether this IP packet is a whole UDP datagram."""
    if packet[0] >> 4 == 6:
        return packet[6] == socket.IPPROTO_UDP
    fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
    return packet[9] == socket.IPPROTO_UDP and not fragment


def payload_offset(packet: bytes) -> int:
    """Where the UDP payload of this IP packet begins."""
    return (_IPV6.size if packet[0] >> 4 == 6 else _IPV4.size) + UDP_HEADER
