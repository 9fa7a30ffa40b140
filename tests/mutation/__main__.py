# `python -m tests.mutation`: put small faults into the package, and see whether the tests see them.

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from pathlib import Path

from . import _map, _pytest, _report
from ._package import Package
from ._run import Outcome, Verdict, run


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    add = parser.add_argument
    add("tests", nargs="*", default=["tests"], help="files or folders of tests (default: all)")
    add("--sample", type=int, metavar="N", help="run N mutants that are chosen at random")
    add("--seed", type=int, default=1, metavar="S", help="the seed of the choice (default: 1)")
    add(
        "--only", action="append", default=[], metavar="GLOB", help="files such as '_send_queue.py'"
    )
    add("--processes", type=int, default=os.cpu_count() or 1, metavar="P", help="at a time")
    add("--map", type=Path, metavar="FILE", help="keep which test runs what, for the next run")
    add("--json", type=Path, metavar="FILE", help="write all verdicts down")
    add("--slowest", type=float, default=2.0, metavar="SECONDS", help="leave slower tests out")
    add("--fail-under", type=float, default=0.0, metavar="PERCENT", help="exit with 1 below it")
    add("--list", action="store_true", help="show the mutants, and run none")
    return parser.parse_args()


def _the_map(package: Package, arguments: argparse.Namespace) -> _map.Map:
    tests: list[str] = arguments.tests
    path: Path | None = arguments.map
    mark = _map.fingerprint(package, tests)
    known = _map.load(path, mark) if path else None
    if known is None:
        print("running the tests without a fault, to see which runs what ...", flush=True)
        began = time.monotonic()
        known = _map.make_map(package, tests, arguments.processes)
        print(f"{len(known.tests)} tests, {time.monotonic() - began:.0f} s")
        if path:
            _map.keep(path, mark, known)
    known = known.without_slow(arguments.slowest)
    for test, outcome in sorted(known.not_passed.items()):
        if outcome not in ("skipped", "slow"):
            print(f"left out: {test} ({outcome})")
    slow = sum(outcome == "slow" for outcome in known.not_passed.values())
    print(f"{len(known.tests)} tests to see a fault with, {slow} slower ones left out")
    return known


class _Progress:
    """Shows how far it has come, and each survivor as it is found."""

    def __init__(self, total: int, package: Package) -> None:
        self.verdicts: list[Verdict] = []
        self._total = total
        self._package = package
        self._began = time.monotonic()

    def __call__(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        if not verdict.outcome.seen:
            print(f"{verdict.outcome.value}: {_report.describe(verdict, self._package)}")
        done = len(self.verdicts)
        if done % 50 == 0 or done == self._total:
            seconds = time.monotonic() - self._began
            seen = sum(v.outcome.seen for v in self.verdicts)
            rate = done / seconds * 60
            print(f"-- {done} of {self._total}, {seen} seen, {rate:.0f} a minute", flush=True)


def main() -> int:
    arguments = _arguments()
    package = Package()
    everything = package.mutants(arguments.only)
    equivalents = _report.Equivalents()
    if not arguments.only:
        for key in equivalents.stale(everything):
            print("equivalent.toml names no mutant with", *key, sep=" | ")
    mutants = [mutant for mutant in everything if mutant not in equivalents]
    print(f"{len(everything)} mutants, {len(everything) - len(mutants)} of them equivalent")
    if arguments.sample is not None:
        chooser = random.Random(arguments.seed)
        mutants = chooser.sample(mutants, min(arguments.sample, len(mutants)))
    if arguments.list:
        for mutant in mutants:
            verdict = Verdict(mutant, Outcome.SURVIVED)
            print(_report.describe(verdict, package))
        return 0
    _pytest.preload()
    bounds = _the_map(package, arguments)
    progress = _Progress(len(mutants), package)
    run(mutants, bounds, package, arguments.processes, progress)
    print(_report.summary(progress.verdicts, package))
    if arguments.json:
        _report.write_json(arguments.json, progress.verdicts, package)
    return 1 if 100 * _report.score(progress.verdicts) < arguments.fail_under else 0


if __name__ == "__main__":
    sys.exit(main())
