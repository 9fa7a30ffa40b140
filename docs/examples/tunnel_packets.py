"""The TUN side of tunnel.py: the device, and super-packets that are cut and joined again.

A device with IFF_VNET_HDR gives and takes packets with a struct virtio_net_hdr before them, and as
TUNSETOFFLOAD allows also super-packets: many TCP segments, or UDP datagrams of one flow, under one
header. The constants are those of include/uapi/linux/if_tun.h and virtio_net.h.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 0x01, 0x02, 0x04
TUN_F_USO4, TUN_F_USO6 = 0x20, 0x40  # from Linux 6.2 on
NEEDS_CSUM = 1  # the checksum is that of the pseudo header alone
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4 = 0, 1, 4, 5
VIRTIO = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
LARGEST = VIRTIO.size + 65_535

FOLLOWS = 2  # beside NEEDS_CSUM in the first note: the packet goes on where the one before ended
TCP_CSUM, TCP_FIN_PSH, TCP_CWR, IPV4_DF = 16, 0x09, 0x80, 0x40
HALF, WORD = struct.Struct("!H"), struct.Struct("!I")

Noted: TypeAlias = tuple[bytes | bytearray, bytes]
"""An IP packet, and three bytes: NEEDS_CSUM and FOLLOWS, csum_start, csum_offset. They go with it,
so that its checksum need not be computed, as AEAD has a better one, and joining is no guesswork."""


@contextlib.contextmanager
def open_tun(name: str) -> Generator[tuple[int, bool], None, None]:
    """A TUN device, made or taken over: its descriptor, and whether it takes UDP super-packets."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
        takes_udp = True
        try:
            fcntl.ioctl(tun, TUNSETOFFLOAD, tcp | TUN_F_USO4 | TUN_F_USO6)
        except OSError:
            takes_udp = False
            fcntl.ioctl(tun, TUNSETOFFLOAD, tcp)
        yield tun, takes_udp
    finally:
        os.close(tun)


def cut(frame: bytes) -> list[Noted]:
    """What was read from the device, as packets that fit its MTU.

    Raises:
      ValueError: the headers are longer than a note can say; nothing that is seen in practice.
    """
    fields: tuple[int, ...] = VIRTIO.unpack_from(frame)
    flags, kind, _, size, start, offset = fields
    packet = frame[VIRTIO.size :]
    if kind == GSO_NONE:
        return [(packet, bytes((flags & NEEDS_CSUM, start, offset)))]
    length = headers(packet, start, offset)
    head = bytearray(packet[:length])
    is_tcp = offset == TCP_CSUM
    sequence = int.from_bytes(head[start + 4 : start + 8], "big") - length
    marks = head[start + 13] if is_tcp else 0
    # IPv4 that may be fragmented needs a number for each datagram (RFC 6864).
    is_numbered = head[0] >> 4 == 4 and not head[6] & IPV4_DF
    number = int.from_bytes(head[4:6], "big")
    notes, following = (
        bytes((NEEDS_CSUM, start, offset)),
        bytes((NEEDS_CSUM | FOLLOWS, start, offset)),
    )
    pieces: list[Noted] = []
    for place in range(length, len(packet), size):
        segment = packet[place : place + size]
        is_last = place + size >= len(packet)
        if is_tcp:
            WORD.pack_into(head, start + 4, (sequence + place) % 2**32)
            keep = 0xFF if is_last else ~TCP_FIN_PSH
            head[start + 13] = marks & keep
            marks &= ~TCP_CWR  # is for the first alone
        if is_numbered:
            HALF.pack_into(head, 4, (number + len(pieces)) % 2**16)
        if is_numbered or is_last or not pieces:  # the others have the first one's length
            set_lengths(head, len(segment), start, offset)
        pieces.append((head + segment, following if pieces else notes))
    return pieces


def join(opened: Iterable[tuple[bytes, bytes]], *, udp: bool) -> Iterator[list[bytes]]:
    """What to write to the device: each list is one frame, for `os.writev`.

    Args:
      opened: packets in the order in which they came, each with the header of its message: the
        notes, then a number that is one more than that of the packet sealed before it.
      udp: whether the device takes super-packets of UDP.
    """
    run: list[bytes] = []
    notes, number = b"", 0
    for packet, header in opened:
        here = int.from_bytes(header[4:], "big")
        follows = header[1] & FOLLOWS and here == number + 1
        if run and follows and (udp or notes[2] == TCP_CSUM):
            run.append(packet)
        else:
            yield from frames_of(run, notes)
            run, notes = [packet], header[1:4]
        number = here
    yield from frames_of(run, notes)


def frames_of(run: list[bytes], notes: bytes) -> Iterator[list[bytes]]:
    if len(run) > 1:
        try:
            joined = super_packet(run, *notes[1:])
        except (IndexError, OverflowError):
            pass  # the peer said what is not so: let the kernel judge each of them
        else:
            yield joined
            return
    for packet in run:
        flags, start, offset = notes
        yield [VIRTIO.pack(flags & NEEDS_CSUM, GSO_NONE, 0, 0, start, offset), packet]


def super_packet(run: list[bytes], start: int, offset: int) -> list[bytes]:
    first = run[0]
    length = headers(first, start, offset)
    head = bytearray(first[:length])
    payloads = [packet[length:] for packet in run]
    kind = GSO_UDP_L4
    if offset == TCP_CSUM:
        kind = GSO_TCPV4 if first[0] >> 4 == 4 else GSO_TCPV6
        head[start + 13] |= run[-1][start + 13]
    set_lengths(head, sum(map(len, payloads)), start, offset)
    virtio = VIRTIO.pack(NEEDS_CSUM, kind, length, len(payloads[0]), start, offset)
    return [virtio, bytes(head), *payloads]


def headers(packet: bytes, start: int, offset: int) -> int:
    """The bytes before the payload: the kernel's hdr_len is only a hint and may say more."""
    return start + ((packet[start + 12] >> 4) * 4 if offset == TCP_CSUM else 8)


def set_lengths(head: bytearray, payload: int, start: int, offset: int) -> None:
    """Put in what depends on the length: the lengths themselves, and the checksums."""
    inner = len(head) - start + payload
    if head[0] >> 4 == 4:
        head[2:4] = (start + inner).to_bytes(2, "big")
        head[10:12] = b"\0\0"
        head[10:12] = (0xFFFF - ones_complement_sum(head[:start])).to_bytes(2, "big")
        addresses = head[12:20]
    else:
        head[4:6] = (start - 40 + inner).to_bytes(2, "big")
        addresses = head[8:40]
    protocol = 6 if offset == TCP_CSUM else 17
    if protocol == 17:
        head[start + 4 : start + 6] = inner.to_bytes(2, "big")
    pseudo = addresses + bytes((0, protocol)) + inner.to_bytes(2, "big")
    head[start + offset : start + offset + 2] = ones_complement_sum(pseudo).to_bytes(2, "big")


def ones_complement_sum(data: bytes | bytearray) -> int:
    """RFC 1071's sum of 16-bit words: what is left of the whole number after division by 0xFFFF."""
    return int.from_bytes(data, "big") % 0xFFFF
