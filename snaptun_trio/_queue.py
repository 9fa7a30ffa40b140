# What a sender still has to send: packets and trains by target, and what is half sent.
#
# The queue gathers packets for one target into trains, whatever stood between them, and keeps each
# target's order. It counts; it never sends, and knows nothing of errors beyond holding one.

from __future__ import annotations

from collections import deque
from itertools import groupby, repeat
from typing import TYPE_CHECKING, cast

import attrs
import trio

from ._batch import KEEP, TrainColumns
from ._coalesce import coalesce
from ._kernel import _sockaddr
from ._kernel._interface import START
from ._train import PacketTrain, make_train, max_train_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._batch import Columns, Target
    from ._kernel._interface import Position
    from ._train import Address

    _Payload = bytes | memoryview


@attrs.define(eq=False)
class Unsent:
    """Something that is being sent, and how far it got."""

    columns: Columns
    target: Target
    position: Position = START
    first_error: OSError | None = None
    """What the message at ``position`` was refused with, when it is tried a second time."""


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
                _sockaddr.encode(target, self._family)
            items = self._waiting[target] = []
        if isinstance(item, PacketTrain):
            self._trains_wait = True
        items.append(item)
        self.datagrams += datagrams
        self.submitted += datagrams

    def put_columns(self, columns: Columns, target: Target) -> Unsent:
        """Add a whole batch, behind everything else that is being sent."""
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
        payloads: list[_Payload] = []
        sizes: list[int] = []
        addresses: list[Address | None] = []
        for target, items in waiting.items():
            _coalesce_into(payloads, sizes, cast("list[_Payload]", items), target)
            addresses += [target] * (len(payloads) - len(addresses))
        return Unsent(TrainColumns(payloads, sizes, addresses), KEEP)


def _coalesce_into(
    payloads: list[_Payload], sizes: list[int], packets: list[_Payload], target: Address | None
) -> None:
    """Append the trains that the packets for one target make."""
    if len(packets) == 1:
        payloads += packets
        sizes.append(len(packets[0]))
        return
    lengths = list(map(len, packets))
    for start, stop in coalesce(lengths, max_train_bytes(target)):
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
