# The command: `python -m tests.benchmarks.relays`.
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
from .._traffic import raise_file_limit
from . import _report
from ._contenders import CONTENDERS, OURS, WITH_A_PROTOCOL, choose, from_option, versions
from ._load import build, open_ends
from ._measuring import measure
from ._rows import NEW_CLIENTS, ROWS, Row

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

FILES = 4 * NEW_CLIENTS  # that a relay may have open; children inherit it


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = make_parser(
        "tests.benchmarks.relays",
        "A UDP relay beside nginx, socat and programs on asyncio, uvloop and trio.",
        "in less than a minute: fewer and shorter rounds",
    )
    parser.add_argument("--rounds", type=int, help="sittings of each relay (5; quick: 2)")
    parser.add_argument("--ms", type=int, help="milliseconds of each sitting (500; quick: 100)")
    add_selection(parser, "'most/*' or 'paced/1/*'")
    parser.add_argument(
        "--relay",
        action="append",
        default=[],
        type=from_option,
        metavar="NAME=COMMAND",
        help="one more relay, or another one of that name: a command line in which {listen} and "
        "{target} stand for addresses; may be repeated",
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="only this relay; may be repeated"
    )
    parser.add_argument(
        "--protocol",
        action="store_true",
        help="relays with a protocol in place of the plain ones: they add a byte, and take it off",
    )
    add_outputs(parser)
    return fill_in(parser.parse_args(arguments), rounds=(5, 2), ms=(500, 100))


def chosen_rows(patterns: Sequence[str] | None) -> list[Row]:
    """Those that match, or all."""
    wanted = patterns or ["*"]
    return [row for row in ROWS if any(fnmatch(row.id, pattern) for pattern in wanted)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    if options.list:
        print(*(row.id for row in ROWS), sep="\n")
        return 0
    if sys.platform != "linux":
        print("The benchmark needs Linux: its load is made with recvmmsg, sendmmsg, GRO and GSO.")
        return 1
    began = time.monotonic()
    try:
        library = build()
    except ImportError as error:
        print(f"Nothing is measured: {error}")
        return 0
    contenders, left_out = choose(
        options.relay, WITH_A_PROTOCOL if options.protocol else CONTENDERS
    )
    if options.only:
        contenders = [each for each in contenders if each.name in options.only]
    machine = {**_machine.describe(), **versions(contenders)}
    print(*(f"{name}: {value}" for name, value in machine.items()), *left_out, sep="\n")
    if len(os.sched_getaffinity(0)) == 1:
        print("There is one processor: relay and load share it, and nothing is what it could be.")
    raise_file_limit(FILES)
    effort = Effort(options.rounds, options.ms / 1000)
    with open_ends(library) as ends:
        results = measure(ends, contenders, chosen_rows(options.select), effort, progress)
    progress("")
    names = [contender.name for contender in contenders]
    _report.show_all(results, names)
    print(f"{options.rounds} rounds of {options.ms} ms, {time.monotonic() - began:.0f} s in all")
    if options.json:
        options.json.write_text(_report.as_json(machine, left_out, results), encoding="utf-8")
    if options.rst:
        options.rst.write_text(_report.as_rst(machine, results, names), encoding="utf-8")
    return 1 if any(OURS in measured.cannot for measured in results) else 0


if __name__ == "__main__":
    sys.exit(main())
