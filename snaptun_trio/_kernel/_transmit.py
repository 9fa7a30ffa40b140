# Fills sendmmsg's headers from columns.
#
# Three ways, from the fastest to the most general, all with the same result:
#   1. a received batch leaves from the slab it arrived in: fields are copied array to array;
#   2. trains that exist as objects, each of which fits into a message: a few comprehensions;
#   3. anything else, message by message: trains over the kernel's limits are split, ancillary data
#      is encoded, and without GSO each datagram is a message of its own.
# The headers matter only during a call, so all senders share them. No system call is made here.

from __future__ import annotations

from array import array
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from .._batch import KEEP, TrainColumns
from .._coalesce import (
    MAX_PAYLOAD_IPV4,
    MAX_SEGMENTS,
    MAX_TRAIN_IPV4,
    MAX_TRAIN_IPV6,
)
from . import _abi, _cmsg, _sockaddr
from ._columns import SlabColumns
from ._headers import MessageHeaders, constant, sequence
from ._interface import Position, Sent
from ._memory import address_of, addresses_of
from ._pieces import Piece, pieces

if TYPE_CHECKING:
    from .._batch import Columns, Target
    from .._train import Address

# Below this average size, in bytes, many payloads are cheaper joined into one block, whose address
# then serves for all of them, than asked for their addresses one by one.
_JOIN_BELOW = 2048

_MESSAGES = _abi.MAX_BATCH_SIZE
_ZEROS = constant("L", 0, _MESSAGES)
_ONES = constant("L", 1, _MESSAGES)
_REQUESTS = constant("L", _abi.SEGMENT_CMSG_SPACE, _MESSAGES)
_NOTHING = TrainColumns([], [], [])
_NO_NAMES = constant("I", 0, _MESSAGES)


class Transmit:
    """Headers to send with on sockets of one family, and what they were last filled with.

    Attributes:
      messages: how many headers are filled.
      done: how many of them were sent or skipped.
    """

    def __init__(self, family: int) -> None:
        self.family = family
        self.headers = headers = MessageHeaders(_MESSAGES, _cmsg.MAX_ENCODED)
        self._own_names = sequence(headers.name_address, _abi.NAME_SIZE, _MESSAGES)
        self._first_name = constant("L", headers.name_address, _MESSAGES)
        self._name_lengths = constant("I", _sockaddr.NAME_LENGTHS[family], _MESSAGES)
        # Each control buffer begins with a request to segment, of which only the value changes.
        request = _cmsg.serialise(_cmsg.encode(1, None, None, None, ipv4=True))
        self._pristine = memoryview(request.ljust(_cmsg.MAX_ENCODED, b"\0") * _MESSAGES)
        self._written = _MESSAGES  # control buffers that hold something else
        self._segments = headers.control_column(_abi.CMSG_HEADER, "H")
        self._iovecs: dict[int, memoryview] = {}
        self.messages = self.done = 0
        self._columns: Columns = _NOTHING
        self._start = Position(0)
        # What the messages carry: whole trains from the start to ``_stop``, ``_merge`` in each; or
        # piece by piece the end of each, its datagrams and bytes.
        self._merge = 1
        self._stop = 0
        self._pieces: list[Piece] = []
        self._keep: object = None  # memory that the headers point to

    def fill(self, columns: Columns, target: Target, position: Position, gso: bool) -> None:
        """Fill in trains from ``position`` on, as many as one call takes."""
        self._columns, self._start, self._merge = columns, position, 1
        self._pieces = []
        self.done = 0
        most_segments = MAX_SEGMENTS if gso else 1
        if position.offset == 0 and columns.most_segments <= most_segments:
            if (
                isinstance(columns, SlabColumns)
                and columns.plain
                and columns.longest <= MAX_PAYLOAD_IPV4
            ):
                if columns.count - position.train == columns.most_segments == 1:
                    self._fill_one_from_slab(columns, target)
                else:
                    self._fill_from_slab(columns, target, gso)
                return
            if (
                isinstance(columns, TrainColumns)
                and columns.plain
                and max(columns.lengths) <= MAX_PAYLOAD_IPV4
            ):
                if columns.count - position.train == columns.most_segments == 1:
                    self._fill_one_from_trains(columns, target)
                else:
                    self._fill_from_trains(columns, target, gso)
                return
        self._fill_pieces(target, gso, _MESSAGES)

    def fill_single(self, columns: Columns, target: Target, position: Position) -> None:
        """Fill in one message: the one datagram at ``position``."""
        self._columns, self._start, self._merge = columns, position, 1
        self._pieces = []
        self.done = 0
        self._fill_pieces(target, gso=False, most=1)

    def release(self) -> None:
        """Let go of everything that the headers point to."""
        self._columns = _NOTHING
        self._pieces = []
        self._keep = None

    # -- what became of it

    def sent(self, messages: int) -> Sent:
        """The account of a call that took so many of the messages that were not done."""
        first, self.done = self.done, self.done + messages
        if self._pieces:
            taken = self._pieces[first : self.done]
            return Sent(
                taken[-1].end,
                messages,
                sum([piece.datagrams for piece in taken]),
                sum([piece.nbytes for piece in taken]),
            )
        start, stop = self._train_of(first), self._train_of(self.done)
        datagrams, nbytes = self._columns.measure(start, stop)
        return Sent(Position(stop), messages, datagrams, nbytes)

    def refused(self, error: OSError) -> Sent:
        """The account of a call that took nothing."""
        done = self.done
        if self._pieces:
            piece = self._pieces[done]
            start = self._pieces[done - 1].end if done else self._start
            return Sent(start, 0, 0, 0, error, piece.end, piece.datagrams > 1)
        # All these messages have for control data is the request to segment, if anything.
        segmented = self.headers.control_lengths[done] > 0
        start, end = Position(self._train_of(done)), Position(self._train_of(done + 1))
        return Sent(start, 0, 0, 0, error, end, segmented)

    def _train_of(self, message: int) -> int:
        """The first train of a message, where each message carries whole trains."""
        return min(self._start.train + message * self._merge, self._stop)

    # -- the three ways

    # A request and its answer are single datagrams that stand alone. Filling whole columns for one
    # takes 6 us, twice as long as its system call; packing one header takes 1.

    def _fill_one_from_slab(self, columns: SlabColumns, target: Target) -> None:
        index = self._start.train
        if target is KEEP:
            name, name_length = (
                columns.headers.name_pointers[index],
                columns.headers.name_lengths[index],
            )
        else:
            name, name_length = self._place_name(target)
        self._pack_one(columns.bases[index], columns.lengths[index], name, name_length)

    def _fill_one_from_trains(self, columns: TrainColumns, target: Target) -> None:
        index = self._start.train
        name, name_length = self._place_name(columns.addresses[index] if target is KEEP else target)
        base = address_of(columns.payloads[index])
        self._pack_one(base, columns.lengths[index], name, name_length)

    def _place_name(self, address: Address | None) -> tuple[int, int]:
        """Write a name where it is found. Returns its address and length."""
        if address is None:
            return 0, 0
        self.headers.names[: _abi.NAME_SIZE] = _sockaddr.encode(address, self.family)
        return self.headers.name_address, _sockaddr.NAME_LENGTHS[self.family]

    def _pack_one(self, base: int, length: int, name: int, name_length: int) -> None:
        headers = self.headers
        iovec, control = headers.iovec_address, headers.control_address
        _abi.MSGHDR.pack_into(headers.bytes, 0, name, name_length, iovec, 1, control, 0, 0)
        _abi.IOVEC_PACKED.pack_into(headers.iovec_bytes, 0, base, length)
        self.messages = 1
        self._stop = self._start.train + 1

    def _fill_from_slab(self, columns: SlabColumns, target: Target, gso: bool) -> None:
        headers = self.headers
        first, stop = self._start.train, min(columns.count, self._start.train + _MESSAGES)
        count = stop - first
        merge = 1
        if gso and count > 1 and columns.even:
            merge = self._merge_of(columns.longest, columns.segment_sizes[0])
            if merge > 1 and target is KEEP and not columns.one_source:
                merge = 1
        self._merge = merge
        self._stop = stop
        if merge > 1 and columns.contiguous:
            messages = self._set_blocks(columns.bases[first], columns.longest, count, merge)
        else:
            headers.bases[:count] = columns.bases[first:stop]
            headers.sizes_low[:count] = columns.lengths[first:stop]
            messages = self._set_iovecs(count, merge)
        if target is KEEP:
            headers.name_pointers[:messages] = columns.headers.name_pointers[first:stop:merge]
            headers.name_lengths[:messages] = columns.headers.name_lengths[first:stop:merge]
        else:
            self._set_name(target, messages)
        if columns.most_segments * merge == 1:
            self._set_segments(0, messages)
        elif columns.even:
            self._set_segments(columns.segment_sizes[0], messages)
            self._spare_single(count, messages, columns.most_segments)
        else:
            self._set_uneven_segments(
                columns.lengths[first:stop].tolist(), columns.segment_sizes[first:stop].tolist()
            )

    def _merge_of(self, length: int, size: int) -> int:
        """How many trains of this length and segment size, all for one peer, fit one message."""
        if not length or length % size:
            return 1
        room = MAX_TRAIN_IPV4 if self.family == _sockaddr.AF_INET else MAX_TRAIN_IPV6
        return max(1, min(MAX_SEGMENTS * size // length, room // length))

    def _fill_from_trains(self, columns: TrainColumns, target: Target, gso: bool) -> None:
        first, stop = self._start.train, min(columns.count, self._start.train + _MESSAGES)
        count = stop - first
        lengths = columns.lengths[first:stop]
        sizes = columns.segment_sizes[first:stop]
        even = lengths.count(lengths[0]) == count and sizes.count(sizes[0]) == count
        merge = self._merge_of(lengths[0], sizes[0]) if gso and even and count > 1 else 1
        if target is KEEP:
            addresses = columns.addresses[first:stop]
            if addresses.count(addresses[0]) == count:
                target = addresses[0]
            elif None in addresses:
                self._fill_pieces(target, gso, _MESSAGES)
                return
            else:
                merge = 1
                self._set_names([_sockaddr.encode(a, self.family) for a in addresses if a])
        self._merge = merge
        self._stop = stop
        self._set_payloads(columns.payloads[first:stop], lengths)
        messages = self._set_iovecs(count, merge)
        if target is not KEEP:
            self._set_name(target, messages)
        if columns.most_segments * merge == 1:
            self._set_segments(0, messages)
        elif even:
            self._set_segments(sizes[0], messages)
            self._spare_single(count, messages, columns.most_segments)
        else:
            self._set_uneven_segments(lengths, sizes)

    def _set_payloads(self, payloads: list[bytes | memoryview], lengths: list[int]) -> None:
        """An iovec for each payload."""
        headers, count = self.headers, len(payloads)
        if count > 1 and sum(lengths) < _JOIN_BELOW * count:
            self._keep = block = b"".join(payloads)
            bases = array("L", accumulate(lengths[:-1], initial=address_of(block)))
        else:
            bases = addresses_of(payloads)
        headers.bases[:count] = memoryview(bases)
        headers.sizes[:count] = memoryview(array("L", lengths))

    def _fill_pieces(self, target: Target, gso: bool, most: int) -> None:
        headers = self.headers
        self._pieces = found = list(
            islice(pieces(self._columns, target, self._start, self.family, gso), most)
        )
        count = len(found)
        headers.bases[:count] = memoryview(
            array("L", [address_of(piece.train.data) + piece.start for piece in found])
        )
        headers.sizes[:count] = memoryview(array("L", [piece.nbytes for piece in found]))
        self._set_iovecs(count, 1)
        self._set_names([piece.name for piece in found])
        self._set_controls([_cmsg.serialise(piece.controls) for piece in found])

    # -- the columns of the headers

    def _set_iovecs(self, count: int, merge: int) -> int:
        """Give each message ``merge`` iovecs, the last what is left. Returns the messages."""
        headers = self.headers
        messages = -(-count // merge)
        pointers = self._iovecs.get(merge)
        if pointers is None:
            pointers = sequence(headers.iovec_address, merge * _abi.IOVEC, _MESSAGES // merge + 1)
            self._iovecs[merge] = pointers
        headers.iovec_pointers[:messages] = pointers[:messages]
        headers.iovec_counts[:messages] = (
            _ONES[:messages] if merge == 1 else constant("L", merge, messages)
        )
        headers.iovec_counts[messages - 1] = count - (messages - 1) * merge
        self.messages = messages
        return messages

    def _set_blocks(self, base: int, length: int, count: int, merge: int) -> int:
        """Trains that lie back to back, ``merge`` in each message's one iovec."""
        headers = self.headers
        messages = -(-count // merge)
        headers.bases[:messages] = sequence(base, length * merge, messages)
        headers.sizes[:messages] = constant("L", length * merge, messages)
        headers.sizes[messages - 1] = length * (count - (messages - 1) * merge)
        return self._set_iovecs(messages, 1)

    def _set_name(self, address: Address | None, messages: int) -> None:
        """One address for all messages."""
        headers = self.headers
        if address is None:
            headers.name_pointers[:messages] = _ZEROS[:messages]
            headers.name_lengths[:messages] = _NO_NAMES[:messages]
        else:
            self._place_name(address)
            headers.name_pointers[:messages] = self._first_name[:messages]
            headers.name_lengths[:messages] = self._name_lengths[:messages]

    def _set_names(self, names: list[bytes]) -> None:
        """A raw address for each message; an empty one is the connected peer."""
        headers, messages = self.headers, len(names)
        joined = b"".join([name or bytes(_abi.NAME_SIZE) for name in names])
        headers.names[: len(joined)] = joined
        headers.name_pointers[:messages] = self._own_names[:messages]
        headers.name_lengths[:messages] = self._name_lengths[:messages]
        for index in [index for index, name in enumerate(names) if not name]:
            headers.name_pointers[index] = headers.name_lengths[index] = 0

    def _set_segments(self, size: int, messages: int) -> None:
        """Ask for one segment size in all messages; 0 asks for no segmentation."""
        if size:
            self._restore_controls()
            self._segments[:messages] = constant("H", size, messages)
        self.headers.control_lengths[:messages] = (_REQUESTS if size else _ZEROS)[:messages]

    def _spare_single(self, count: int, messages: int, segments: int) -> None:
        """Ask for no segmentation in the last message, where it has but one datagram left."""
        if (count - (messages - 1) * self._merge) * segments == 1:
            self.headers.control_lengths[messages - 1] = 0

    def _set_uneven_segments(self, lengths: list[int], sizes: list[int]) -> None:
        self._restore_controls()
        messages = len(lengths)
        self._segments[:messages] = memoryview(array("H", sizes))
        asked = [
            _abi.SEGMENT_CMSG_SPACE if length > size else 0 for length, size in zip(lengths, sizes)
        ]
        self.headers.control_lengths[:messages] = memoryview(array("L", asked))

    def _set_controls(self, controls: list[bytes]) -> None:
        """Any control messages for each message."""
        headers, size = self.headers, _cmsg.MAX_ENCODED
        joined = b"".join([control.ljust(size, b"\0") for control in controls])
        # Noted first: were it forgotten, the next call would send these for its own.
        self._written = max(self._written, len(controls))
        headers.controls[: len(joined)] = joined
        headers.control_lengths[: len(controls)] = memoryview(array("L", map(len, controls)))

    def _restore_controls(self) -> None:
        """Make each control buffer a request to segment again."""
        if self._written:
            stop = self._written * _cmsg.MAX_ENCODED
            self.headers.controls[:stop] = self._pristine[:stop]
            self._written = 0


# Headers that nobody uses at the moment. Two trio runs may send at the same time, each in a thread
# of its own, since a system call through ctypes lets other threads run.
_idle: dict[int, list[Transmit]] = {}


def take(family: int) -> Transmit:
    """Headers for one turn of sending on a socket of this family."""
    try:
        return _idle[family].pop()
    except LookupError:
        return Transmit(family)


def put_back(transmit: Transmit) -> None:
    """Give headers back after it."""
    transmit.release()
    _idle.setdefault(transmit.family, []).append(transmit)
