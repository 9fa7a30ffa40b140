# What a sender still has to send: packets and trains by target, and what is half sent.
#
# The queue gathers packets for one target into trains, whatever stood between them, and keeps each
# target's order. It counts; it never sends, and knows nothing of errors beyond holding one.

from __future__ import annotations

from collections import defaultdict, deque
from itertools import groupby, repeat
from typing import TYPE_CHECKING, cast

import attrs
import trio

from ._batch import KEEP, TrainColumns
from ._coalesce import MAX_SEGMENTS, coalesce
from ._kernel import _sockaddr
from ._kernel._abi import MAX_BATCH_SIZE
from ._kernel._interface import START
from ._train import PacketTrain, make_train, max_train_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ._batch import Columns, Target
    from ._errors import SendFailure
    from ._kernel._interface import Position
    from ._train import Address

    _Payload = bytes | memoryview


# Below this average size, in bytes, single datagrams of a batch are joined into trains. A kernel
# message of their own costs each 3 us; joining costs 35 ns, and a copy.
_JOIN_BELOW = 8192


@attrs.define(eq=False)
class Unsent:
    """Something that is being sent, and how far it got."""

    columns: Columns
    target: Target
    position: Position = START
    tries: list[int] = attrs.Factory(list)
    """What the message at ``position`` was refused with so far, by errno."""
    one_by_one: Position = START
    """Up to there datagrams go one by one, because a train of them was refused."""
    doubt: OSError | None = None
    """Why GSO may be at fault, while the first of them is tried."""
    most: int = MAX_BATCH_SIZE
    """How many trains the next call is given: few after a refusal, which may be the first of many,
    since to lay out a thousand messages costs more than to send one."""
    last_failure: SendFailure | None = None
    """The refused part of a train, while the datagrams after it are tried."""


class SendQueue:
    """Everything that was submitted and is neither sent nor refused.

    What is being sent stands before what waits by target; a packet is kept as it is until then.

    Args:
      family: the address family of the socket, which decides what an address is.

    Attributes:
      datagrams: how many there are.
      submitted: how many were ever put in.
    """

    def __init__(self, family: int) -> None:
        self._family = family
        self._unsent: deque[Unsent] = deque()
        self._waiting: dict[Address | None, list[_Payload | PacketTrain]] = {}
        self._trains_wait = False
        self.datagrams = 0
        self.submitted = 0

    @trio.lowlevel.enable_ki_protection
    def put(self, item: _Payload | PacketTrain, target: Address | None, datagrams: int) -> None:
        """Add a packet or a train.

        Raises:
          TypeError, ValueError: the target is no address for this family. Nothing was added.
        """
        items = self._waiting.get(target)
        if items is None:
            if target is not None:
                _sockaddr.check(target, self._family)
            items = self._waiting[target] = []
        if isinstance(item, PacketTrain):
            self._trains_wait = True
        items.append(item)
        self.datagrams += datagrams
        self.submitted += datagrams

    def put_columns(self, columns: Columns, target: Target) -> Unsent:
        """Add a whole batch, behind everything else that is being sent."""
        if (
            isinstance(columns, TrainColumns)
            and columns.most_segments == 1
            and columns.plain
            and columns.count > 1
            and columns.nbytes < columns.count * _JOIN_BELOW
            and columns.lengths.count(columns.lengths[0]) == columns.count
        ):
            unsent = Unsent(_packed(columns, target), KEEP)
        else:
            unsent = Unsent(columns, target)
        if columns.count:
            self._unsent.append(unsent)
            self.datagrams += columns.datagrams
            self.submitted += columns.datagrams
        return unsent

    def take_back(self, unsent: Unsent) -> None:
        """Undo `put_columns`."""
        self._unsent.remove(unsent)
        self.datagrams -= unsent.columns.datagrams
        self.submitted -= unsent.columns.datagrams

    def first(self) -> Unsent | None:
        """What is to be sent next; `None` where nothing is left."""
        if not self._unsent:
            if not self._waiting:
                return None
            self._unsent.append(self._gather())
        return self._unsent[0]

    def move_on(self, position: Position, datagrams: int) -> None:
        """The first one is done with up to ``position``: so many datagrams were sent or refused."""
        unsent = self._unsent[0]
        unsent.position = position
        self.datagrams -= datagrams
        if position.train >= unsent.columns.count:
            self._unsent.popleft()

    def clear(self) -> int:
        """Drop everything. Returns how many datagrams that were."""
        dropped, self.datagrams = self.datagrams, 0
        self._unsent.clear()
        self._waiting.clear()
        return dropped

    def _gather(self) -> Unsent:
        """Make trains of what waits, target by target."""
        waiting, self._waiting = self._waiting, {}
        if self._trains_wait:
            self._trains_wait = False
            trains = [t for target, items in waiting.items() for t in _trains_of(items, target)]
            return Unsent(TrainColumns.of(tuple(trains)), KEEP)
        return Unsent(_coalesced(cast("dict[Address | None, list[_Payload]]", waiting)), KEEP)


def _packed(columns: TrainColumns, target: Target) -> TrainColumns:
    """Single datagrams, gathered into trains target by target."""
    if target is not KEEP:
        return _coalesced({target: columns.payloads})
    by_target: defaultdict[Address | None, list[_Payload]] = defaultdict(list)
    for payload, address in zip(columns.payloads, columns.addresses):
        by_target[address].append(payload)
    return _coalesced(by_target)


def _coalesced(by_target: Mapping[Address | None, list[_Payload]]) -> TrainColumns:
    payloads: list[_Payload] = []
    sizes: list[int] = []
    addresses: list[Address | None] = []
    for target, packets in by_target.items():
        _coalesce_into(payloads, sizes, packets, target)
        addresses += [target] * (len(payloads) - len(addresses))
    return TrainColumns(payloads, sizes, addresses)


def _coalesce_into(
    payloads: list[_Payload], sizes: list[int], packets: list[_Payload], target: Address | None
) -> None:
    """Append the trains that the packets for one target make."""
    if len(packets) == 1:
        payloads += packets
        sizes.append(len(packets[0]))
        return
    lengths = list(map(len, packets))
    size, count = lengths[0], len(packets)
    most = max_train_bytes(target)
    if 0 < size * count <= most and count <= MAX_SEGMENTS and lengths.count(size) == count:
        # The usual case, one train of equal packets, without going through the general rules.
        payloads.append(b"".join(packets))
        sizes.append(size)
        return
    for start, stop in coalesce(lengths, most):
        payloads.append(packets[start] if stop - start == 1 else b"".join(packets[start:stop]))
        sizes.append(lengths[start])


def _trains_of(
    items: list[_Payload | PacketTrain], target: Address | None
) -> Iterator[PacketTrain]:
    """The trains for one target, where trains and single packets stand in the queue together."""
    for is_train, group in groupby(items, lambda item: isinstance(item, PacketTrain)):
        if is_train:
            yield from cast("Iterator[PacketTrain]", group)
        else:
            payloads: list[_Payload] = []
            sizes: list[int] = []
            _coalesce_into(payloads, sizes, list(cast("Iterator[_Payload]", group)), target)
            yield from map(make_train, payloads, sizes, repeat(target))
