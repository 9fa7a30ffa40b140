# How figures come about: contenders take turns, round by round, and medians are compared.
#
# In each round all contenders of a row sit once, one straight after the other, so that what the
# machine does meanwhile hits them alike. It knows no contender by name but the floor and ours.

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._shapes import SHAPES
from ._worker import Contender

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._shapes import Shape

FLOOR, OURS = "floor", "snaptun_trio"
FIXED_FLOOR = "C, 64 messages"
MODULES = (
    "_floor",
    "_floor_fixed",
    "_ours",
    "_peer_trio_socket",
    "_peer_anyio",
    "_peer_asyncio",
    "_peer_uvloop",
    "_peer_aiofastnet",
)

WORKS = {
    "receive": "receive, batches",
    "look": "receive, look at each datagram",
    "send": "send a batch of trains",
    "pump": "pump with a forwarding handler",
    "answer": "pump with an echoing handler",
    "echo": "pump, echo packet by packet",
}
# What the floor and the peers do beside our work, where it is not the work of the same name.
FLOOR_WORKS = {"look": "receive", "answer": "echo"}

# The aims, as multiples of the floor: one for each of `SHAPES`, in its order.
AIMS = {
    "receive": (1.25, 1.25, 1.3, 1.15, 1.2, 1.2),
    "look": (3.0, 2.5, 4.0, 1.3, 1.4, 1.6),
    "send": (1.4, 1.4, 1.4, 1.5, 1.5, 1.4),
    "pump": (1.25, 1.2, 1.2, 1.2, 1.2, 1.15),
    "answer": (1.25, 1.2, 1.2, 1.2, 0.9, 1.3),
}


def aim(work: str, shape: str) -> float | None:
    """The aim for a row, if there is one."""
    aims = dict(zip((each.name for each in SHAPES), AIMS.get(work, ()), strict=False))
    return aims.get(shape)


@dataclass(frozen=True)
class Row:
    """One line of the table: a work on a shape of traffic."""

    work: str
    shape: Shape
    ipv6: bool

    @property
    def family(self) -> str:
        """The family's short name."""
        return "ipv6" if self.ipv6 else "ipv4"

    @property
    def title(self) -> str:
        """What the row's part of the table is called."""
        many = "" if self.shape in SHAPES else ", by number of peers"
        return f"{WORKS[self.work]}, {self.family}{many}"

    @property
    def id(self) -> str:
        """What a selection is matched against."""
        return f"{self.work}/{self.shape.name}/{self.family}"


@dataclass
class Measured:
    """A row's figures: CPU nanoseconds a datagram of each round, by contender."""

    row: Row
    ns: dict[str, list[float]] = field(default_factory=dict)

    def median(self, contender: str) -> float | None:
        """A contender's median."""
        figures = self.ns.get(contender)
        return statistics.median(figures) if figures else None

    def ratio(self, contender: str, base: str = FLOOR) -> float | None:
        """The ratio of two medians."""
        over, under = self.median(contender), self.median(base)
        return over / under if over is not None and under else None

    def spread(self, contender: str, base: str = FLOOR) -> tuple[float, float] | None:
        """The smallest and the largest ratio of any round."""
        pairs = zip(self.ns.get(contender, ()), self.ns.get(base, ()), strict=False)
        ratios = [over / under for over, under in pairs]
        return (min(ratios), max(ratios)) if ratios else None


def open_contenders(modules: Sequence[str] = MODULES) -> tuple[list[Contender], list[str]]:
    """The contenders that this machine has, and a line for each that it has not."""
    contenders, left_out = [], []
    for module, contender in [(module, Contender(module)) for module in modules]:
        try:
            contender.wait()
            contenders.append(contender)
        except ImportError as error:
            left_out.append(f"{module.removeprefix('_peer').strip('_')} is left out: {error}")
    return contenders, left_out


def measure(row: Row, contenders: Iterable[Contender], *, rounds: int, budget_ns: int) -> Measured:
    """Let all contenders that can do the row's work do it, round by round."""
    measured = Measured(row)
    sitters: list[tuple[Contender, str]] = []
    for contender in contenders:
        work = FLOOR_WORKS.get(row.work, row.work) if contender.name == FLOOR else row.work
        if work in contender.works:
            sitters.append((contender, work))
    for _ in range(rounds):
        for contender, work in sitters:
            ns = contender.sit(work, row.shape, row.ipv6, budget_ns)
            measured.ns.setdefault(contender.name, []).append(ns)
    return measured
