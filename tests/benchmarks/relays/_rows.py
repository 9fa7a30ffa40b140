# The rows: what the clients send, and how much of it.

from __future__ import annotations

from dataclasses import dataclass

from ._load import SIZE

PACED, MOST, OPENING = "paced", "most", "opening"
NEW_CLIENTS = 1000
MBIT = 100  # of payload a second, there and as much back


@dataclass(frozen=True)
class Shape:
    """How many clients there are, and how many datagrams each sends when it is its turn."""

    clients: int
    segments: int

    @property
    def name(self) -> str:
        """As the other benchmarks name shapes."""
        return f"{self.segments}x{SIZE}"

    @property
    def trains_per_ms(self) -> float:
        """What makes `MBIT`."""
        return MBIT * 1e6 / 8 / SIZE / self.segments / 1000


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    kind: str
    shape: Shape
    together: int = 1
    """So many new clients come at once."""

    @property
    def id(self) -> str:
        """What a selection is matched against."""
        last = self.together if self.kind == OPENING else self.shape.name
        return f"{self.kind}/{self.shape.clients}/{last}"


SHAPES = (Shape(1, 50), Shape(1, 1), Shape(8, 16), Shape(1000, 1))
ROWS = (
    *(Row(kind, shape) for kind in (PACED, MOST) for shape in SHAPES),
    *(Row(OPENING, Shape(NEW_CLIENTS, 1), together) for together in (1, 16)),
)
