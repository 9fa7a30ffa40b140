# The columns of a received batch: the slab as the kernel left it, read whole.
#
# Nothing here loops over messages while all of them look alike, and nothing makes an object for
# each of them until trains or packets are asked for. This file reads what `_headers` lays out and
# what a receive call wrote; it must not make system calls.

from __future__ import annotations

from array import array
from itertools import chain, repeat
from typing import TYPE_CHECKING, final

from .._batch import TrainColumns
from .._coalesce import datagram_count, split
from .._train import make_train
from . import _abi, _cmsg, _sockaddr
from ._headers import constant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._batch import Losses
    from .._train import Address, PacketTrain
    from ._headers import MessageHeaders
    from ._slab import Layout, Slab, Token


# Where a control message has its level and type, and what the UDP_GRO one (an int) takes alone.
_LEVEL = _abi.cmsghdr.cmsg_level.offset
_TYPE = _abi.cmsghdr.cmsg_type.offset
_GRO_ALONE = _abi.cmsg_space(4)
_SOL_UDP = constant("I", _abi.SOL_UDP, _abi.MAX_BATCH_SIZE)
_UDP_GRO = constant("I", _abi.UDP_GRO, _abi.MAX_BATCH_SIZE)


def alike(column: memoryview) -> bool:
    """Whether all items of a column are equal: each compared with the next, in C."""
    return column[1:] == column[:-1]


def segment_sizes(headers: MessageHeaders, count: int) -> tuple[memoryview, bool]:
    """The segment size of each of the first ``count`` messages, in bytes, and what was beside it.

    A message without a UDP_GRO control message is one datagram: its segment size is its length.
    The second result says whether no message had any other control message.
    """
    control_lengths = headers.control_lengths[:count]
    length = control_lengths[0]
    if alike(control_lengths):
        if not length:
            return headers.lengths[:count], True
        if (
            length == _GRO_ALONE
            and headers.control_column(_LEVEL, "I")[:count] == _SOL_UDP[:count]
            and headers.control_column(_TYPE, "I")[:count] == _UDP_GRO[:count]
        ):
            return headers.control_column(_abi.CMSG_HEADER, "I")[:count], True
        sizes = _sizes_in_one_layout(headers, count)
        if sizes is not None:
            return sizes, False
    return _mixed_segment_sizes(headers, count)


def _sizes_in_one_layout(headers: MessageHeaders, count: int) -> memoryview | None:
    """The segment sizes where all messages have the control messages of the first, in its order.

    `None` where they do not.
    """
    found = headers.lengths[:count]
    for level, kind, start, _ in _cmsg.walk(headers.control(0)):
        header = start - _abi.CMSG_HEADER
        if not (
            alike(headers.control_column(header, "L")[:count])
            and alike(headers.control_column(header + _LEVEL, "I")[:count])
            and alike(headers.control_column(header + _TYPE, "I")[:count])
        ):
            return None
        if (level, kind) == (_abi.SOL_UDP, _abi.UDP_GRO):
            found = headers.control_column(start, "I")[:count]
    return found


def _mixed_segment_sizes(headers: MessageHeaders, count: int) -> tuple[memoryview, bool]:
    """The plain way of `segment_sizes`: message by message."""
    sizes = headers.lengths[:count].tolist()
    controls = headers.control_lengths[:count].tolist()
    # Where GRO's is the only control message its parts have one fixed place; ask there first.
    levels = headers.control_column(_LEVEL, "I")[:count].tolist()
    kinds = headers.control_column(_TYPE, "I")[:count].tolist()
    values = headers.control_column(_abi.CMSG_HEADER, "I")[:count].tolist()
    gro_alone = (_GRO_ALONE, _abi.SOL_UDP, _abi.UDP_GRO)
    plain = True
    for index, length in enumerate(controls):
        if not length:
            continue
        if (length, levels[index], kinds[index]) == gro_alone:
            sizes[index] = values[index]
        else:
            plain = False
            told = _cmsg.decode(_cmsg.parse(headers.control(index))).segment_size
            sizes[index] = sizes[index] if told is None else told
    return memoryview(array("I", sizes)), plain


@final
class SlabColumns:
    """The columns of the first ``count`` messages that a call filled in a slab.

    They hold the slab from `hold` on; until then whoever made them has to.

    Attributes:
      headers: what the kernel wrote beside the payloads.
      start, stride: where in the slab the trains are: the first, and the distance to the next.
      bases: the address of each train.
      lengths: the payload bytes of each train.
      segment_sizes: the segment size of each train, in bytes.
      even: whether all trains have one length and one segment size.
      plain: whether no train has control messages other than the segment size.
      longest: the bytes of the longest train.
      most_segments: the datagrams of the train that has most.
    """

    __slots__ = (
        "_token",
        "_trains",
        "_view",
        "bases",
        "count",
        "datagrams",
        "even",
        "headers",
        "lengths",
        "longest",
        "most_segments",
        "nbytes",
        "plain",
        "segment_sizes",
        "slab",
        "start",
        "stride",
    )

    losses: Losses | None = None

    def __init__(self, slab: Slab, layout: Layout, count: int) -> None:
        headers = self.headers = layout.headers
        self.slab = slab
        self.start, self.stride, self.bases = layout.start, layout.stride, layout.bases
        self._token: Token | None = None
        self._trains: tuple[PacketTrain, ...] | None = None
        self._view: memoryview | None = None  # for `train`, which may be asked for each of them
        self.count = count
        self.lengths = lengths = headers.lengths[:count]
        self.segment_sizes, self.plain = sizes, _ = segment_sizes(headers, count)
        length, size = lengths[0], sizes[0]
        self.even = (
            lengths[1:] == lengths[:-1]
            and (sizes is lengths or sizes[1:] == sizes[:-1])
            and (size > 0 or not length)
        )
        if self.even:
            self.longest = length
            self.most_segments = -(-length // size) if length else 1
            self.nbytes = length * count
            self.datagrams = self.most_segments * count
        else:
            self._count_uneven()

    def hold(self) -> SlabColumns:
        """Borrow the slab for as long as these columns live."""
        self._token = self.slab.lend()
        return self

    def copied(self) -> TrainColumns:
        """The same columns on memory of their own, which need no slab."""
        payload = self.slab.payload
        if self.plain:
            lengths = self.lengths.tolist()
            starts = range(self.start, self.start + self.count * self.stride, self.stride)
            return TrainColumns(
                [payload[at : at + length] for at, length in zip(starts, lengths)],
                lengths if self.segment_sizes is self.lengths else self.segment_sizes.tolist(),
                self._addresses(),
                single_size=self.single_size,
                one_block=self._one_block,
            )
        headers = self.headers
        return TrainColumns.of(
            tuple(
                [
                    make_train(payload[at : at + n], size, address, *_ancillary(headers, index)[1:])
                    for index, (at, n, size, address) in enumerate(self._rows())
                ]
            ),
            single_size=self.single_size,
        )

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
    def _family(self) -> int:
        return int(self.headers.families[0])

    @property
    def single_size(self) -> int:
        return self.longest if self.even and self.most_segments == 1 else 0

    @property
    def contiguous(self) -> bool:
        """Whether the trains lie back to back: single datagrams that came in packed."""
        # A whole train can have the expected size by chance; it is not a single datagram.
        return self.single_size == self.stride

    @property
    def one_source(self) -> bool:
        """Whether all trains came from one peer, by the raw names.

        Only what names a peer is compared. Behind it, in a slab that was used before, is what a
        longer name of the other family left there.
        """
        headers, count = self.headers, self.count
        return count == 1 or (
            alike(headers.name_lengths[:count])
            and all(alike(column[:count]) for column in headers.name_columns(self._family))
        )

    def check_family(self, family: int) -> None:
        """Make sure that a socket of this family can send to where the trains came from.

        One socket received them all, so one of them speaks for all.

        Raises:
          ValueError: it cannot.
        """
        if self._family != family:
            first = _sockaddr.decode(self.headers.name(0))
            if first is not None:
                _sockaddr.check(first, family)

    def measure(self, start: int, stop: int) -> tuple[int, int]:
        if start == 0 and stop == self.count:
            return self.datagrams, self.nbytes
        if self.even:
            return (stop - start) * self.most_segments, (stop - start) * self.longest
        lengths = self.lengths[start:stop].tolist()
        sizes = self.segment_sizes[start:stop].tolist()
        return sum(map(datagram_count, lengths, sizes)), sum(lengths)

    def _addresses(self) -> list[Address | None]:
        headers = self.headers
        size = _abi.NAME_SIZE
        raw = bytes(headers.names[: self.count * size])
        length = headers.name_lengths[0]
        if alike(headers.name_lengths[: self.count]) and length <= size:
            if raw == raw[:size] * self.count:
                return [_sockaddr.decode(raw[:length])] * self.count
            ends = range(length, len(raw) + length, size)
            return [_sockaddr.decode(raw[end - length : end]) for end in ends]
        return [_sockaddr.decode(headers.name(index)) for index in range(self.count)]

    def packets(self) -> Iterator[tuple[bytes, Address | None]]:
        if self.contiguous:
            block = split(self.slab.payload, self.stride, self.start, self.nbytes)
            return zip(block, self._addresses())
        if self.most_segments == 1:
            payload = self.slab.payload
            return iter([(payload[at : at + n], address) for at, n, _, address in self._rows()])
        return chain.from_iterable(self._packets_by_train())

    def _packets_by_train(self) -> Iterator[Iterator[tuple[bytes, Address | None]]]:
        # A generator of this object's, so that it holds the slab to its end even where nobody
        # holds the batch: ``for packet, address in await receiver.receive()``.
        payload = self.slab.payload
        for at, length, size, address in self._rows():
            yield zip(split(payload, size, at, length), repeat(address))

    def _rows(self) -> Iterator[tuple[int, int, int, Address | None]]:
        """Where each train begins in the slab, its length, its segment size, and its peer."""
        return zip(
            range(self.start, self.start + self.count * self.stride, self.stride),
            self.lengths.tolist(),
            self.segment_sizes.tolist(),
            self._addresses(),
        )

    def trains(self) -> tuple[PacketTrain, ...]:
        if self._trains is None:
            self._trains = self._make_trains()
        return self._trains

    def train(self, index: int) -> PacketTrain:
        if self._trains is not None:
            return self._trains[index]
        if self._view is None:
            self._view = self._memory
        start, length = self.start + index * self.stride, self.lengths[index]
        data = self._view[start : start + length]
        address = _sockaddr.decode(self.headers.name(index))
        told = _cmsg.NOTHING if self.plain else _ancillary(self.headers, index)
        return make_train(data, self.segment_sizes[index], address, *told[1:])

    @property
    def _memory(self) -> memoryview:
        assert self._token is not None
        return self.slab.view(self._token).toreadonly()

    @property
    def _one_block(self) -> bool:
        """Whether these are equal datagrams of one peer, back to back: that is what a train is."""
        return self.count > 1 and self.contiguous and self.plain and self.one_source

    def seen_trains(self) -> tuple[PacketTrain, ...]:
        if self._one_block:
            payload = self._memory[self.start : self.start + self.nbytes]
            return (make_train(payload, self.stride, self._addresses()[0]),)
        return self._make_trains()

    def _make_trains(self) -> tuple[PacketTrain, ...]:
        memory = self._memory
        if self.plain:
            return tuple(
                [make_train(memory[at : at + n], size, a) for at, n, size, a in self._rows()]
            )
        headers = self.headers
        return tuple(
            [
                make_train(memory[at : at + n], size, a, *_ancillary(headers, index)[1:])
                for index, (at, n, size, a) in enumerate(self._rows())
            ]
        )


def copied_single(slab: Slab, layout: Layout) -> TrainColumns:
    """What `SlabColumns.copied` says of one message, without the columns: that takes 4 us less."""
    headers = layout.headers
    length = headers.lengths[0]
    data = slab.payload[layout.start : layout.start + length]
    address = _sockaddr.decode(headers.name(0))
    told = _ancillary(headers, 0) if headers.control_lengths[0] else _cmsg.NOTHING
    size = told.segment_size or length
    single_size = length if size >= length else 0
    if told[1:] == _cmsg.NOTHING[1:]:
        return TrainColumns([data], [size], [address], single_size=single_size)
    train = make_train(data, size, address, *told[1:])
    return TrainColumns.of((train,), single_size=single_size)


def _ancillary(headers: MessageHeaders, index: int) -> _cmsg.Ancillary:
    return _cmsg.decode(_cmsg.parse(headers.control(index)))
