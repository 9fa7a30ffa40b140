# Which test runs which lines of the package, and how long it takes, without any fault.
#
# Each test runs in a forked child of its own, under coverage. So each fills the caches of the
# package again, and is known to run what it would run alone; a line that only the first of all
# tests runs would otherwise seem to be tested by that one only.

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import attrs
import coverage
import pytest
from _pytest import runner

from . import _pytest
from ._package import ROOT, Package

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._mutant import Mutant

_HANG = 300.0
"""Seconds after which a test without a fault is given up."""


@attrs.frozen
class Touch:
    """What one test touches."""

    seconds: float
    lines: dict[str, frozenset[int]]
    """By file, the lines of the package that it runs."""


@attrs.frozen
class Map:
    """All tests that pass, the lines that an import runs, and the tests that are of no use."""

    tests: dict[str, Touch]
    imported: dict[str, frozenset[int]]
    not_passed: dict[str, str]

    def without_slow(self, seconds: float) -> Map:
        """The same, but for tests that take longer than that."""
        quick = {name: touch for name, touch in self.tests.items() if touch.seconds <= seconds}
        slow = {name: "slow" for name in self.tests if name not in quick}
        return Map(quick, self.imported, {**self.not_passed, **slow})

    def choose(self, mutant: Mutant, package: Package) -> list[str]:
        """The tests that can see a fault, the quickest first."""
        path = str(mutant.path)
        reach = mutant.reach
        found = self._at(path, reach.lines)
        if not found and reach.names:
            places = package.users(reach.names)
            found = set().union(*(self._at(place.path, place.lines) for place in places))
        if not found and (not reach.lines or self.imported.get(path, set()) & {*reach.lines}):
            found = {test for test, touch in self.tests.items() if touch.lines.get(path)}
        return sorted(found, key=lambda test: (self.tests[test].seconds, test))

    def _at(self, path: str, lines: Iterable[int]) -> set[str]:
        wanted = {*lines}
        return {
            test
            for test, touch in self.tests.items()
            if wanted and wanted & touch.lines.get(path, frozenset())
        }


def make_map(package: Package, tests: Sequence[str], processes: int) -> Map:
    """Run all tests in so many processes."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as scratch:
        children = []
        for share in range(processes):
            child = os.fork()
            if child == 0:
                _be_the_child(_Recorder(package, Path(scratch), share, processes), tests)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        results = [json.loads(path.read_text()) for path in Path(scratch).glob("share*.json")]
    if len(results) < processes:
        raise RuntimeError("the tests could not be collected; does pytest run?")
    touches = {
        name: Touch(seconds, {path: frozenset(numbers) for path, numbers in lines.items()})
        for result in results
        for name, (seconds, lines) in result["tests"].items()
    }
    imported = {path: frozenset(numbers) for path, numbers in results[0]["imported"].items()}
    return Map(touches, imported, {k: v for result in results for k, v in result["others"].items()})


def _be_the_child(recorder: _Recorder, tests: Sequence[str]) -> NoReturn:
    try:
        os.chdir(ROOT)
        _pytest.silence()
        recorder.begin()
        _pytest.collect_and_run(recorder, tests)
    finally:
        os._exit(0)


class _Recorder:
    """A pytest plugin that runs its share of the tests, each in a child, and writes a file."""

    def __init__(self, package: Package, scratch: Path, share: int, shares: int) -> None:
        self._include = [f"{package.folder}/*"]
        self._scratch = scratch / f"{share}"
        self._out = scratch / f"share{share}.json"
        self._share, self._shares = share, shares

    def _coverage(self) -> coverage.Coverage:
        made = coverage.Coverage(
            data_file=str(self._scratch / "lines"),
            data_suffix=True,
            config_file=False,
            include=self._include,
            messages=False,
        )
        # A test may run nothing of the package; and here a warning is an error.
        made.set_option("run:disable_warnings", ["no-data-collected", "module-not-measured"])
        return made

    def begin(self) -> None:
        self._scratch.mkdir()
        self._importing = self._coverage()
        self._importing.start()

    def pytest_collection_finish(self) -> None:
        self._importing.stop()
        self._importing.save()
        self._imported = self._collect_lines()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        tests: dict[str, tuple[float, dict[str, list[int]]]] = {}
        others: dict[str, str] = {}
        for item in session.items[self._share :: self._shares]:
            outcome, seconds = self._run(item)
            lines = self._collect_lines()
            if outcome == "passed":
                tests[item.nodeid] = (seconds, lines)
            else:
                others[item.nodeid] = outcome
        self._out.write_text(
            json.dumps({"tests": tests, "others": others, "imported": self._imported})
        )
        return True

    def _run(self, item: pytest.Item) -> tuple[str, float]:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            self._run_here(item, writer)
        os.close(writer)
        with open(reader, "rb", buffering=0) as pipe:
            ready, _, _ = select.select([pipe], [], [], _HANG)
            told = pipe.read(100) if ready else b""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        outcome, _, seconds = told.decode().partition(" ")
        return outcome or "hung or crashed", float(seconds or 0)

    def _run_here(self, item: pytest.Item, writer: int) -> NoReturn:
        try:
            tracer = self._coverage()
            tracer.start()
            began = time.perf_counter()
            reports = runner.runtestprotocol(item, log=False, nextitem=None)
            seconds = time.perf_counter() - began
            tracer.stop()
            tracer.save()
            outcome = "passed"
            if any(report.skipped for report in reports):
                outcome = "skipped"
            if any(report.failed for report in reports):
                outcome = "failed"
            os.write(writer, f"{outcome} {seconds}".encode())
        finally:
            os._exit(0)

    def _collect_lines(self) -> dict[str, list[int]]:
        found: dict[str, set[int]] = {}
        for path in self._scratch.iterdir():
            if not path.name.endswith("-journal"):
                data = coverage.CoverageData(basename=str(path))
                data.read()
                for name in data.measured_files():
                    found.setdefault(name, set()).update(data.lines(name) or ())
            path.unlink()
        return {name: sorted(lines) for name, lines in found.items()}


# -- kept between runs


def fingerprint(package: Package, tests: Sequence[str]) -> str:
    """Changes when a source file or a test does."""
    digest = hashlib.sha256(repr([str(package.folder), *tests]).encode())
    own = Path(__file__).parent
    for path in [*package.files, *sorted((ROOT / "tests").rglob("*.py"))]:
        if path.parent != own:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def load(path: Path, mark: str) -> Map | None:
    """A map that was kept, if nothing has changed since."""
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    if kept["mark"] != mark:
        return None
    return Map(
        {
            name: Touch(seconds, {p: frozenset(n) for p, n in lines.items()})
            for name, (seconds, lines) in kept["tests"].items()
        },
        {name: frozenset(lines) for name, lines in kept["imported"].items()},
        kept["others"],
    )


def keep(path: Path, mark: str, made: Map) -> None:
    """Write a map down."""
    tests = {
        name: (touch.seconds, {p: sorted(n) for p, n in touch.lines.items()})
        for name, touch in made.tests.items()
    }
    imported = {name: sorted(lines) for name, lines in made.imported.items()}
    path.write_text(
        json.dumps({"mark": mark, "tests": tests, "imported": imported, "others": made.not_passed})
    )
