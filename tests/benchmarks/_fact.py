# A single figure that is no row of the big table: what it is, how much, and what was aimed at.

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One figure."""

    group: str
    name: str
    figure: float
    unit: str
    note: str = ""
    aim: str = ""
