# The columns of a received batch: the slab as the kernel left it, read whole.
#
# Nothing here loops over messages while all of them look alike, and nothing makes an object for
# each of them until trains or packets are asked for. This file reads what `_headers` lays out and
# what a receive call wrote; it must not make system calls.

from __future__ import annotations

from array import array
from itertools import chain, repeat
from typing import TYPE_CHECKING, final

from .._coalesce import datagram_count
from .._train import make_train
from . import _abi, _cmsg, _sockaddr

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._train import Address, PacketTrain
    from ._headers import MessageHeaders
    from ._slab import Slab


def alike(column: memoryview) -> bool:
    """Whether all items of a column are equal: each compared with the next, in C."""
    return column[1:] == column[:-1]


def segment_sizes(headers: MessageHeaders, count: int) -> tuple[memoryview, bool]:
    """The segment size of each of the first ``count`` messages, in bytes, and what was beside it.

    A message without a UDP_GRO control message is one datagram: its segment size is its length.
    The second result says whether no message had any other control message.
    """
    lengths = headers.lengths[:count]
    control_lengths = headers.control_lengths[:count]
    if alike(control_lengths):
        if not control_lengths[0]:
            return lengths, True
        plain = True
        found = None
        for level, kind, start, _ in _cmsg.walk(headers.control(0)):
            if not (
                alike(headers.control_column(start - _abi.CMSG_HEADER, "L")[:count])
                and alike(headers.control_column(start - 8, "I")[:count])
                and alike(headers.control_column(start - 4, "I")[:count])
            ):
                break
            if (level, kind) == (_abi.SOL_UDP, _abi.UDP_GRO):
                found = headers.control_column(start, "I")[:count]
            else:
                plain = False
        else:
            return (lengths if found is None else found), plain
    return _mixed_segment_sizes(headers, count)


def _mixed_segment_sizes(headers: MessageHeaders, count: int) -> tuple[memoryview, bool]:
    """The plain way of `segment_sizes`: message by message."""
    sizes = headers.lengths[:count].tolist()
    controls = headers.control_lengths[:count].tolist()
    # Where GRO's is the only control message its header has one fixed place; ask there first.
    levels = headers.control_column(8, "I")[:count].tolist()
    kinds = headers.control_column(12, "I")[:count].tolist() if _abi.WORD == 8 else levels
    values = headers.control_column(16, "I")[:count].tolist()
    only_gro = _abi.cmsg_space(4)
    plain = True
    for index, length in enumerate(controls):
        if not length:
            continue
        if (length, levels[index], kinds[index]) == (only_gro, _abi.SOL_UDP, _abi.UDP_GRO):
            sizes[index] = values[index]
        else:
            plain = False
            told = _cmsg.decode(_cmsg.parse(headers.control(index))).segment_size
            sizes[index] = sizes[index] if told is None else told
    return memoryview(array("I", sizes)), plain


@final
class SlabColumns:
    """The columns of the first ``count`` messages that a call filled in a slab.

    Attributes:
      lengths: the payload bytes of each train.
      segment_sizes: the segment size of each train, in bytes.
      even: whether all trains have one length and one segment size.
      plain: whether no train has control messages other than the segment size.
      longest: the bytes of the longest train.
      most_segments: the datagrams of the train that has most.
    """

    __slots__ = (
        "_memory",
        "_trains",
        "count",
        "datagrams",
        "even",
        "lengths",
        "longest",
        "most_segments",
        "nbytes",
        "plain",
        "segment_sizes",
        "slab",
        "truncated",
    )

    def __init__(self, slab: Slab, count: int) -> None:
        headers = slab.headers
        self.slab = slab
        self._memory = slab.lend().toreadonly()
        self._trains: tuple[PacketTrain, ...] | None = None
        self.count = count
        self.truncated = 0
        self.lengths = headers.lengths[:count]
        self.segment_sizes, self.plain = segment_sizes(headers, count)
        self.even = alike(self.lengths) and alike(self.segment_sizes)
        if self.even and (self.segment_sizes[0] or not self.lengths[0]):
            self.longest = self.lengths[0]
            self.most_segments = datagram_count(self.longest, self.segment_sizes[0])
            self.nbytes = self.longest * count
            self.datagrams = self.most_segments * count
        else:
            self._count_uneven()

    def _count_uneven(self) -> None:
        lengths = self.lengths.tolist()
        sizes = self.segment_sizes.tolist()
        if 0 in sizes:
            # A zero stride would split into datagrams without end; take the train for one datagram.
            sizes = [size or length for size, length in zip(sizes, lengths)]
            self.segment_sizes = memoryview(array("I", sizes))
        counts = [-(-length // size) if length else 1 for length, size in zip(lengths, sizes)]
        self.longest = max(lengths)
        self.most_segments = max(counts)
        self.nbytes = sum(lengths)
        self.datagrams = sum(counts)

    @property
    def one_source(self) -> bool:
        """Whether all trains came from one peer: the raw names compared as one block."""
        names = self.slab.headers.names[: self.count * _abi.NAME_SIZE]
        return names[_abi.NAME_SIZE :] == names[: -_abi.NAME_SIZE]

    def measure(self, start: int, stop: int) -> tuple[int, int]:
        if start == 0 and stop == self.count:
            return self.datagrams, self.nbytes
        if self.even:
            return (stop - start) * self.most_segments, (stop - start) * self.longest
        lengths = self.lengths[start:stop].tolist()
        sizes = self.segment_sizes[start:stop].tolist()
        return sum(map(datagram_count, lengths, sizes)), sum(lengths)

    def _addresses(self) -> list[Address | None]:
        headers = self.slab.headers
        if self.one_source:
            return [_sockaddr.decode(headers.name(0))] * self.count
        return [_sockaddr.decode(headers.name(index)) for index in range(self.count)]

    def packets(self) -> Iterator[tuple[bytes, Address | None]]:
        payload, stride = self.slab.payload, self.slab.stride
        lengths, sizes = self.lengths.tolist(), self.segment_sizes.tolist()
        starts = range(0, self.count * stride, stride)
        if self.most_segments == 1:
            packets = [payload[at : at + length] for at, length in zip(starts, lengths)]
            return zip(packets, self._addresses())
        return chain.from_iterable(
            zip(self._cut(at, length, size), repeat(address))
            for at, length, size, address in zip(starts, lengths, sizes, self._addresses())
        )

    def _cut(self, start: int, length: int, size: int) -> list[bytes]:
        payload = self.slab.payload  # a slice of an mmap is bytes at once, without a view between
        if length <= size:
            return [payload[start : start + length]]
        stop = start + length
        whole = stop - length % size
        packets = [payload[at : at + size] for at in range(start, whole, size)]
        if whole < stop:
            packets.append(payload[whole:stop])
        return packets

    def trains(self) -> tuple[PacketTrain, ...]:
        if self._trains is None:
            memory, stride = self._memory, self.slab.stride
            rows = zip(
                range(0, self.count * stride, stride),
                self.lengths.tolist(),
                self.segment_sizes.tolist(),
                self._addresses(),
            )
            if self.plain:
                self._trains = tuple(
                    [
                        make_train(memory[at : at + n], size, address)
                        for at, n, size, address in rows
                    ]
                )
            else:
                headers = self.slab.headers
                self._trains = tuple(
                    [
                        make_train(
                            memory[at : at + n], size, address, *_ancillary(headers, index)[1:]
                        )
                        for index, (at, n, size, address) in enumerate(rows)
                    ]
                )
        return self._trains


def _ancillary(headers: MessageHeaders, index: int) -> _cmsg.Ancillary:
    return _cmsg.decode(_cmsg.parse(headers.control(index)))
