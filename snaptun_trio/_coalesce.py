# Packets into trains and back: pure functions, no I/O, no address.
#
# The rules are the kernel's (UDP_SEGMENT, net/ipv4/udp.c): the datagrams of a train have one size,
# a shorter one may end it, a zero-length one always goes alone (a zero tail cannot be expressed).
# This file must not know sockets, slabs or batches.

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from mmap import mmap

# Linux up to 6.8 takes 64 segments a message (UDP_MAX_SEGMENTS, include/linux/udp.h), newer ones
# 128. 64 goes everywhere, and quinn-udp, quiche and s2n-quic settled on it as well.
MAX_SEGMENTS = 64

# What a UDP payload can hold: 65 535 less the IPv4 and UDP headers (20 + 8), or less the UDP header
# alone, since IPv6 does not count its own header in the payload length (RFC 768, RFC 8200).
MAX_PAYLOAD_IPV4 = 65_507
MAX_PAYLOAD_IPV6 = 65_527

# Above these a train still goes, but a device splits it in software, because the link-layer header
# no longer fits beside it in 64 KiB: one read at the receiver became 66.
MAX_TRAIN_IPV4 = 65_493
MAX_TRAIN_IPV6 = 65_473


def datagram_count(length: int, segment_size: int) -> int:
    """The number of datagrams in a train of ``length`` bytes. An empty train is one datagram."""
    return -(-length // segment_size) if length else 1


def coalesce(
    sizes: Sequence[int], max_bytes: int, max_segments: int = MAX_SEGMENTS
) -> Iterator[tuple[int, int]]:
    """Cut a sequence of datagram sizes, in bytes, into trains.

    Yields the ``(start, stop)`` of each train, in order, without gaps. A datagram that is larger
    than ``max_bytes`` is a train of its own.
    """
    total = len(sizes)
    start = 0
    while start < total:
        size = sizes[start]
        if not size:
            yield start, start + 1
            start += 1
            continue
        limit = min(max_segments, max_bytes // size, total - start)
        stop = start + 1
        if limit > 1 and sizes[start : start + limit] == [size] * limit:
            # The usual case, decided by one comparison in C: no loop over the datagrams.
            stop = start + limit
        else:
            while stop < start + limit and sizes[stop] == size:
                stop += 1
        room = max_bytes - (stop - start) * size
        if (
            stop < total
            and stop - start < max_segments
            and 0 < sizes[stop] < size
            and sizes[stop] <= room
        ):
            stop += 1
        yield start, stop
        start = stop


def split(
    data: bytes | memoryview | mmap, segment_size: int, start: int = 0, length: int | None = None
) -> Sequence[bytes]:
    """Cut a train's payload into its datagrams. An empty payload is one empty datagram.

    The payload is ``length`` bytes of ``data`` from ``start`` on, by default all of them.
    """
    if length is None:
        length = len(data) - start
    if length <= segment_size:
        return [bytes(data[start : start + length])]
    whole, tail = divmod(length, segment_size)
    packets = _cutter(segment_size, whole).unpack_from(data, start)
    if tail:
        return [*packets, bytes(data[start + length - tail : start + length])]
    return packets


@lru_cache(256)
def _cutter(segment_size: int, count: int) -> struct.Struct:
    """Cuts so many datagrams in one call: 53 ns each of 1200 bytes, where a slice takes 129."""
    return struct.Struct(f"{segment_size}s" * count)


def segment_ranges(length: int, piece: int) -> Iterator[tuple[int, int]]:
    """Cut ``length`` bytes into ``(offset, size)`` pieces of ``piece`` bytes, the last shorter."""
    if not length:
        yield 0, 0
        return
    whole, tail = divmod(length, piece)
    yield from zip(range(0, whole * piece, piece), repeat(piece))
    if tail:
        yield whole * piece, tail


def joined(packets: list[bytes], max_bytes: int) -> list[tuple[bytes, int]]:
    """Packets for one peer as the data and the segment size of each train, order kept.

    Raises:
      ValueError: a packet is over 65 527 bytes.
    """
    sizes = list(map(len, packets))
    count, size = len(sizes), sizes[0] if sizes else 0
    if 0 < size * count <= max_bytes and count <= MAX_SEGMENTS and sizes.count(size) == count:
        return [(b"".join(packets), size)]  # the usual case: one, or a few of one size
    if max(sizes, default=0) > MAX_PAYLOAD_IPV6:
        raise ValueError(f"a packet of {max(sizes)} bytes is larger than any UDP datagram")
    return [
        (b"".join(packets[start:stop]), sizes[start]) for start, stop in coalesce(sizes, max_bytes)
    ]
