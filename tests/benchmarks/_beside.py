# Ours beside a peer in the same run: the lines of the second table.
#
# A comparison is two lists of figures that were taken in turn, round by round, and what the ratio
# should be at most. It knows nothing of how the figures came about.

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._method import FIXED_FLOOR, OURS, WORKS
from ._shapes import SHAPES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._method import Measured

# What rows of the first table say about a peer: the works, the peer, and the aim.
ROW_PEERS = (
    (("look", "send", "echo"), "uvloop", 0.7),
    (("look", "send", "echo"), "aiofastnet", 0.7),
    (("pump",), FIXED_FLOOR, 1.15),
)


@dataclass(frozen=True)
class Comparison:
    """One line: CPU nanoseconds of ours and of a peer, round by round."""

    group: str
    name: str
    peer: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    aim: float | None = None

    def __post_init__(self) -> None:
        if not self.ours or len(self.ours) != len(self.theirs):
            raise ValueError("a comparison needs figures of both from each round")

    @property
    def ratios(self) -> list[float]:
        """Ours as a multiple of the peer's, in each round."""
        return [mine / other for mine, other in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio of any round."""
        return min(self.ratios), max(self.ratios)


def from_rows(results: Iterable[Measured]) -> list[Comparison]:
    """What the first table's rows say, as far as both were measured. IPv4's are enough."""
    results = [m for m in results if not m.row.ipv6 and m.row.shape in SHAPES]
    return [
        Comparison(
            f"{WORKS[work]}, a datagram, beside {peer}",
            measured.row.shape.name,
            peer,
            tuple(measured.ns[OURS]),
            tuple(measured.ns[peer]),
            aim,
        )
        for works, peer, aim in ROW_PEERS
        for work in works
        for measured in results
        if measured.row.work == work and {OURS, peer} <= measured.ns.keys()
    ]
