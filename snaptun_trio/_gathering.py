# Packets and trains that were queued one by one, until they are sent together.
#
# They stand in the order in which they came. Bringing together what is for one peer is the
# backend's matter, for single datagrams; where trains are among them it is done here. It knows of
# each whether somebody waits for it, and keeps its refusals for whoever does.

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._errors import SendFailure
    from ._kernel._interface import SocketIO
    from ._kernel._outgoing import Outgoing
    from ._train import Address, Way

# The data, the segment size, the address, its raw name, and what is asked for beside the address.
# A peer is one peer however its address is spelled, or else two spellings would overtake each
# other: so it is told apart by its raw name, which is `None` for the connected one.
Item: TypeAlias = "tuple[bytes | memoryview, int, Address | None, bytes | None, Way | None]"


class Gathering:
    """What leaves together, under one number.

    Attributes:
      items: what was queued.
      has_trains: whether something has more than one datagram.
      refused: what was refused of those that somebody waits for, by place.
    """

    __slots__ = ("_nobody_waits_for", "_order", "has_trains", "items", "number", "refused")

    def __init__(self, number: int) -> None:
        self.number = number
        self.items: list[Item] = []
        self.has_trains = False
        self.refused: dict[int, list[SendFailure]] | None = None
        self._nobody_waits_for: set[int] = set()
        self._order: list[int] | None = None

    def outgoing(self, io: SocketIO) -> Outgoing:
        """All of it in the form in which it is sent."""
        items = self.items
        if self.has_trains:
            order = self._by_peer()
            items = items if order is None else [items[place] for place in order]
            self._order = order
        columns = map(list, zip(*items))
        return io.gathered(*columns)

    def _by_peer(self) -> list[int] | None:
        """The order of the peers, each peer's in their own."""
        places: dict[bytes | None, list[int]] = {}
        for place, item in enumerate(self.items):
            places.setdefault(item[3], []).append(place)
        # Who the connected peer is may be said by name as well.
        return None if None in places else [place for some in places.values() for place in some]

    # -- for whoever waits

    def told_to(self, index: int) -> list[SendFailure] | None:
        """Where the refusals of a train of it are entered, `None` where nobody waits for it.

        ``index`` is its place among those that `outgoing` was made of.
        """
        place = index if self._order is None else self._order[index]
        if place in self._nobody_waits_for:
            return None
        if self.refused is None:
            self.refused = {}
        return self.refused.setdefault(place, [])

    def disown(self, places: Iterable[int]) -> list[SendFailure]:
        """Nobody waits for some, or not any more. Returns what was refused of them."""
        self._nobody_waits_for.update(places)
        return self.refusals_of(places) if self.refused else []

    def own(self, places: Iterable[int]) -> None:
        """Undo `disown`, also where memory lacked in the middle of it."""
        self._nobody_waits_for.difference_update(places)

    def refusals_of(self, places: Iterable[int]) -> list[SendFailure]:
        """What some were refused with."""
        refused = self.refused or {}
        return [failure for place in places for failure in refused.get(place, ())]
