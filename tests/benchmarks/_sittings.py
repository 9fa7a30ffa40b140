# What the turns of contenders in a row come to, and what some of them cannot do.
#
# How anybody sits, and what a sitting has figures of, this file must not know.

from __future__ import annotations

import statistics
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

CANNOT = "cannot"


class CannotError(Exception):
    """Something that a contender cannot do, or that cannot be measured here."""


class _Row(Protocol):
    @property
    def id(self) -> str: ...


RowT = TypeVar("RowT", bound=_Row)
SittingT = TypeVar("SittingT")


@dataclass
class Measured(Generic[RowT, SittingT]):
    """A row's sittings, by contender."""

    row: RowT
    sittings: dict[str, list[SittingT]] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, sitting: SittingT) -> None:
        """A contender sat."""
        self.sittings.setdefault(name, []).append(sitting)

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """A contender's turn goes in here. What it cannot do is noted and ends nothing else."""
        try:
            yield
        except CannotError as error:
            self.cannot.setdefault(name, str(error))

    def median(self, name: str, figure: Callable[[SittingT], float]) -> float | None:
        """A contender's median of a figure, if there is any."""
        if name in self.cannot or name not in self.sittings:
            return None
        return statistics.median(figure(sitting) for sitting in self.sittings[name])


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of each sitting, more or less."""


def reasons(results: Iterable[Measured[RowT, SittingT]]) -> list[str]:
    """Why some figures are missing: each reason with its rows."""
    found: dict[str, list[str]] = {}
    for each in results:
        for name, reason in each.cannot.items():
            found.setdefault(f"{name} {CANNOT}: {reason}", []).append(each.row.id)
    return [f"{reason} ({', '.join(rows)})" for reason, rows in found.items()]
