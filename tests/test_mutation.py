# The mutation tool: which faults it makes, what it knows them by, and what becomes of them.

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .mutation._find import mutants_of
from .mutation._report import Equivalents

if TYPE_CHECKING:
    from .mutation._mutant import Mutant

SOURCE = '''\
# A module.
LIMIT = 64


class Counter:
    """Counts."""

    @property
    def total(self) -> int | None:
        return self._total

    def add(self, number: int, *, twice: bool = False) -> None:
        if number < LIMIT and not self.closed:
            self._total += number
        if number > 9:
            raise ValueError(f"{number + 1} is too many")
        self.note(number, twice=twice)

    def __repr__(self) -> str:
        return "Counter" + "!"
'''


def find(tmp_path: Path, text: str) -> list[Mutant]:
    path = tmp_path / "counter.py"
    path.write_text(text)
    return mutants_of(path, "counter")


def test_the_faults_of_a_small_module(tmp_path: Path) -> None:
    found = [(m.function, m.line, m.mutation) for m in find(tmp_path, SOURCE)]
    assert found == [
        ("<module>", 2, "64 -> 65"),
        ("<module>", 2, "64 -> 63"),
        ("<module>", 2, "64 -> 1"),
        ("Counter.total", 10, "return None"),
        ("Counter.add", 12, "False -> True"),
        ("Counter.add", 13, "condition -> True"),
        ("Counter.add", 13, "condition -> False"),
        ("Counter.add", 13, "number < LIMIT -> True"),
        ("Counter.add", 13, "< -> <="),
        ("Counter.add", 13, "< -> >="),
        ("Counter.add", 13, "and -> or"),
        ("Counter.add", 13, "not self.closed -> True"),
        ("Counter.add", 13, "not dropped"),
        ("Counter.add", 14, "statement dropped"),
        ("Counter.add", 14, "+= -> -="),
        ("Counter.add", 14, "+= -> ="),
        ("Counter.add", 15, "condition -> True"),
        ("Counter.add", 15, "condition -> False"),
        ("Counter.add", 15, "> -> >="),
        ("Counter.add", 15, "> -> <="),
        ("Counter.add", 15, "9 -> 10"),
        ("Counter.add", 15, "9 -> 8"),
        ("Counter.add", 16, "statement dropped"),
        ("Counter.add", 17, "statement dropped"),
        ("Counter.add", 17, "twice= dropped"),
    ]


def test_a_fault_is_known_by_its_text_and_not_by_its_place(tmp_path: Path) -> None:
    before = find(tmp_path, SOURCE)
    after = find(tmp_path, "# One line more.\n\n" + SOURCE)
    assert [mutant.key for mutant in before] == [mutant.key for mutant in after]
    assert len({mutant.key for mutant in before}) == len(before)
    assert [mutant.line + 2 for mutant in before] == [mutant.line for mutant in after]


def test_the_diff_shows_the_fault(tmp_path: Path) -> None:
    (mutant,) = [m for m in find(tmp_path, SOURCE) if m.mutation == "and -> or"]
    assert mutant.diff().splitlines() == [
        "-        if number < LIMIT and not self.closed:",
        "+        if number < LIMIT or not self.closed:",
    ]


def test_faults_of_one_text_are_told_apart(tmp_path: Path) -> None:
    text = "def f(a, b):\n    if a < b < 9:\n        a.clear()\n    else:\n        a.clear()\n"
    found = [m.mutation for m in find(tmp_path, text)]
    assert [m for m in found if m.startswith("<")] == [
        *("< -> <=", "< -> >=", "< -> <= (2)", "< -> >= (2)")
    ]
    assert [m for m in found if "dropped" in m] == [
        "statement dropped",
        "statement dropped [line 2 of this text]",
    ]


def test_an_argued_equivalent_is_left_out(tmp_path: Path) -> None:
    mutants = find(tmp_path, SOURCE)
    listed = tmp_path / "equivalent.toml"
    listed.write_text(
        "".join(
            f'[[equivalent]]\nmodule = "counter"\nfunction = "Counter.add"\n'
            f'line = "{line}"\nmutation = "{mutation}"\nreason = "a reason"\n'
            for line, mutation in [
                ("if number > 9:", "*"),
                ("self._total += number", "+= -> ="),
                ("no such line", "*"),
            ]
        )
    )
    equivalents = Equivalents(listed)
    left_out = [(m.line, m.mutation) for m in mutants if m in equivalents]
    assert left_out == [(14, "+= -> ="), *((15, m.mutation) for m in mutants if m.line == 15)]
    assert equivalents.stale(mutants) == [("counter", "Counter.add", "no such line", "*")]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a fault is run in a forked child")
def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    """A few tests of the package see some faults of one file, and not others."""
    out = tmp_path / "verdicts.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.mutation", "tests/test_closing.py"),
            *("--only", "_closing.py", "--processes", "1", "--json", str(out)),
        ],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "seen" in done.stdout
    assert '"outcome": "killed"' in out.read_text()
