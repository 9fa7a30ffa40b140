# Packets and trains that were queued one by one, until they are sent together.
#
# They stand in the order in which they came. Bringing together what is for one peer is the
# backend's matter, for single datagrams; where trains are among them it is done here. It knows of
# each whether somebody waits for it, and keeps its refusals for whoever does.

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from ._batch import TrainMessages
from ._train import PacketTrain, make_train

if TYPE_CHECKING:
    from ._errors import SendFailure
    from ._train import Address

    Payload: TypeAlias = bytes | memoryview
    Item: TypeAlias = tuple[Payload | PacketTrain, Address | None, bytes | None, bool]


class Gathering:
    """What leaves together, under one number.

    Attributes:
      items: each packet or train, its address, its raw name, and whether somebody waits for it. A
        peer is one peer however its address is spelled, or else two spellings would overtake each
        other: so it is told apart by its raw name, which is `None` for the connected one.
      refused: what was refused of those that somebody waits for, by place.
    """

    __slots__ = ("_order", "disowned", "has_trains", "items", "number", "refused")

    def __init__(self, number: int) -> None:
        self.number = number
        self.items: list[Item] = []
        self.has_trains = False
        self.disowned: set[int] | None = None
        self.refused: dict[int, list[SendFailure]] | None = None
        self._order: list[int] | None = None

    def columns(self) -> tuple[TrainMessages, list[bytes | None]]:
        """All of it as messages, and the raw name of each."""
        items = self.items
        if self.has_trains:
            return self._columns_of_trains()
        payloads: list[Payload] = [item[0] for item in items]  # type: ignore[misc]  # no trains
        addresses = [item[1] for item in items]
        return TrainMessages(payloads, list(map(len, payloads)), addresses), [i[2] for i in items]

    def _columns_of_trains(self) -> tuple[TrainMessages, list[bytes | None]]:
        by_name: dict[bytes | None, list[int]] = {}
        for place, item in enumerate(self.items):
            by_name.setdefault(item[2], []).append(place)
        # Who the connected peer is may be said by name as well.
        order = None if None in by_name else [place for some in by_name.values() for place in some]
        items = self.items if order is None else [self.items[place] for place in order]
        self._order = order
        trains = [
            item if isinstance(item, PacketTrain) else make_train(item, len(item), address)
            for item, address, _, _ in items
        ]
        return TrainMessages.of_trains(tuple(trains)), [item[2] for item in items]

    def place_of(self, index: int) -> int:
        """The place at which that one of its columns was queued."""
        return index if self._order is None else self._order[index]

    # -- for whoever waits

    def told_to(self, place: int) -> list[SendFailure] | None:
        """Where the refusals of one are entered, `None` where nobody waits for it."""
        if not self.items[place][3] or (self.disowned and place in self.disowned):
            return None
        if self.refused is None:
            self.refused = {}
        return self.refused.setdefault(place, [])

    def disown(self, place: int) -> list[SendFailure]:
        """Nobody waits for one any more. Returns what was refused of it."""
        if self.disowned is None:
            self.disowned = set()
        self.disowned.add(place)
        return self.refused.get(place, []) if self.refused else []

    def raise_refusal_of(self, place: int) -> None:
        """Raise what one was refused with, if it was."""
        for failure in self.refused.get(place, ()) if self.refused else ():
            # Another one: the same refusal may be another task's as well.
            raise OSError(failure.error.errno, failure.error.strerror)
