# The command: `python -m tests.benchmarks.cookbook`.
#
# It chooses what is measured and where it goes; how is the other files' matter.

from __future__ import annotations

import argparse
import os
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from .. import _machine
from . import _report
from ._measuring import Effort, measure
from ._rows import OURS, ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.cookbook",
        description="The documentation's programs beside the same on asyncio, uvloop and trio.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="in less than a minute: fewer and shorter rounds"
    )
    parser.add_argument("--rounds", type=int, help="sittings of each program (7; quick: 2)")
    parser.add_argument("--ms", type=int, help="milliseconds of each sitting (500; quick: 100)")
    parser.add_argument(
        "--select",
        action="append",
        metavar="PATTERN",
        help="only what matches, like 'dns_*' or '*/32'; may be repeated; see --list",
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="only this contender; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="name what can be selected, and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="also write the docs' tables here")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (2 if options.quick else 7)
    options.ms = options.ms or (100 if options.quick else 500)
    return options


def progress(name: str) -> None:
    """Say on a terminal what is going on."""
    if sys.stderr.isatty():
        print(f"\r\033[K{name}", end="", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    if options.list:
        print(*(row.id for row in ROWS), sep="\n")
        return 0
    if sys.platform != "linux":
        print("The benchmark needs Linux, whose processes have clocks that others can read.")
        return 1
    began = time.monotonic()
    machine = _machine.describe()
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n")
    if len(os.sched_getaffinity(0)) == 1:
        print("There is one processor: program and load share it, and nothing is what it could be.")
    wanted = options.select or ["*"]
    rows = [row for row in ROWS if any(fnmatch(row.id, pattern) for pattern in wanted)]
    effort = Effort(options.rounds, options.ms / 1000)
    results = list(measure(rows, effort, options.only, progress))
    progress("")
    _report.show_all(results)
    print(f"{options.rounds} rounds of {options.ms} ms, {time.monotonic() - began:.0f} s in all")
    if options.json:
        options.json.write_text(_report.as_json(machine, results), encoding="utf-8")
    if options.rst:
        options.rst.write_text(_report.as_rst(machine, results), encoding="utf-8")
    broken = [each for each in results if OURS in each.cannot and each.sittings]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
