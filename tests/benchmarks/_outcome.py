# What a whole run brought: the rows, the comparisons, the single figures, and what failed.

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._beside import Comparison
    from ._fact import Fact
    from ._method import Measured


@dataclass
class Outcome:
    """A run's outcome."""

    rows: list[Measured] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """A line for each thing that could not be measured, and why."""
