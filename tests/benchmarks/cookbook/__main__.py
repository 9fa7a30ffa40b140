# The command: `python -m tests.benchmarks.cookbook`.
#
# It chooses what is measured and where it goes; how is the other files' matter.

from __future__ import annotations

import os
import sys
import time
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from .. import _machine
from .._options import add_outputs, add_selection, fill_in, make_parser, progress
from .._sittings import Effort
from . import _report
from ._measuring import measure
from ._rows import OURS, ROWS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = make_parser(
        "tests.benchmarks.cookbook",
        "The documentation's programs beside the same on asyncio, uvloop and trio.",
        "in less than a minute: fewer and shorter rounds",
    )
    parser.add_argument("--rounds", type=int, help="sittings of each program (7; quick: 2)")
    parser.add_argument("--ms", type=int, help="milliseconds of each sitting (500; quick: 100)")
    add_selection(parser, "'dns_*' or '*/32'")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="only this contender; may be repeated"
    )
    add_outputs(parser)
    return fill_in(parser.parse_args(arguments), rounds=(7, 2), ms=(500, 100))


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
