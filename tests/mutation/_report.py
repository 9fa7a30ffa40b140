# The score, and who survived: in words for people, in JSON for whoever works through them.

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from ._run import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._mutant import Mutant
    from ._package import Package

EQUIVALENTS = Path(__file__).with_name("equivalent.toml")

_Key = tuple[str, str, str, str]


def _key_of(entry: dict[str, str]) -> _Key:
    return entry["module"], entry["function"], entry["line"], entry["mutation"]


class Equivalents:
    """The mutants that no test can tell from the package, each with the reason."""

    def __init__(self, path: Path = EQUIVALENTS) -> None:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("equivalent", [])
        self.reasons: dict[_Key, str] = {_key_of(entry): entry["reason"] for entry in entries}

    def __contains__(self, mutant: Mutant) -> bool:
        module, function, code, mutation = mutant.key
        return bool(
            {(module, function, code, mutation), (module, function, code, "*")}
            & self.reasons.keys()
        )

    def stale(self, mutants: Iterable[Mutant]) -> list[_Key]:
        """The entries that fit no mutant any more."""
        known = {key for mutant in mutants for key in (mutant.key, (*mutant.key[:3], "*"))}
        return sorted(self.reasons.keys() - known)


@attrs.define
class Tally:
    """How many mutants had each outcome."""

    outcomes: Counter[Outcome] = attrs.Factory(Counter)

    @property
    def score(self) -> float:
        """The part that the tests saw, 0 to 1."""
        total = self.outcomes.total()
        seen = sum(count for outcome, count in self.outcomes.items() if outcome.seen)
        return seen / total if total else 1.0

    def line(self, name: str) -> str:
        """One row of the table."""
        counts = "".join(f"{self.outcomes[outcome]:>10}" for outcome in Outcome)
        return f"{name:<28}{self.outcomes.total():>8}{counts}{self.score:>9.1%}"


def describe(verdict: Verdict, package: Package) -> str:
    """A survivor: where it stands, what it is, and the diff."""
    mutant = verdict.mutant
    name = package.show(mutant.path)
    why = "  (no test runs this line)" if verdict.outcome is Outcome.UNTOUCHED else ""
    where = f"{name}:{mutant.line}: {mutant.function}: {mutant.mutation}{why}"
    return "\n".join([where, *("    " + line for line in mutant.diff().splitlines())])


def summary(verdicts: list[Verdict], package: Package) -> str:
    """The survivors, and the score of each file and of all."""
    parts = [
        describe(verdict, package)
        for verdict in sorted(verdicts, key=lambda v: (v.mutant.path, v.mutant.line))
        if not verdict.outcome.seen
    ]
    tallies: dict[str, Tally] = {}
    total = Tally()
    for verdict in verdicts:
        for tally in (tallies.setdefault(package.show(verdict.mutant.path), Tally()), total):
            tally.outcomes[verdict.outcome] += 1
    heading = "".join(f"{outcome.value:>10}" for outcome in Outcome)
    rows = [f"{'':<28}{'mutants':>8}{heading}{'seen':>9}"]
    rows += [tallies[name].line(name) for name in sorted(tallies)]
    rows.append(total.line("all"))
    return "\n\n".join([*parts, "\n".join(rows)])


def score(verdicts: list[Verdict]) -> float:
    """The part of the mutants that the tests saw, 0 to 1."""
    return Tally(Counter(verdict.outcome for verdict in verdicts)).score


def write_json(path: Path, verdicts: list[Verdict], package: Package) -> None:
    """All verdicts, each with what the mutant is known by."""
    rows = [
        {
            "file": package.show(verdict.mutant.path),
            "at": verdict.mutant.line,
            "module": verdict.mutant.module,
            "function": verdict.mutant.function,
            "line": verdict.mutant.code,
            "mutation": verdict.mutant.mutation,
            "outcome": verdict.outcome.value,
            "test": verdict.test,
            "seconds": round(verdict.seconds, 3),
        }
        for verdict in verdicts
    ]
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
