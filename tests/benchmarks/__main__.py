# The command: `python -m tests.benchmarks`.
#
# It chooses what is measured and where it goes; how is the other files' matter.

from __future__ import annotations

import argparse
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from . import _machine, _plot, _report
from ._method import FLOOR, MODULES, OURS, WORKS, Row, measure, open_contenders
from ._shapes import PEER_COUNTS, SHAPES, many_peers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._fact import Fact
    from ._method import Measured
    from ._worker import Contender

PEER_COUNT_WORKS = ("receive", "look", "answer")


def all_rows() -> list[Row]:
    """Every row there is, in the table's order."""
    rows = [Row(work, shape, ipv6) for ipv6 in (False, True) for work in WORKS for shape in SHAPES]
    counts = [many_peers(peers) for peers in PEER_COUNTS]
    return rows + [Row(work, shape, False) for work in PEER_COUNT_WORKS for shape in counts]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="CPU time a datagram, beside the bare system calls and other libraries.",
    )
    parser.add_argument("--quick", action="store_true", help="IPv4 only, fewer and shorter rounds")
    parser.add_argument("--rounds", type=int, help="sittings of each contender (5; quick: 3)")
    parser.add_argument("--ms", type=int, help="CPU milliseconds of each sitting (8; quick: 5)")
    parser.add_argument(
        "--select",
        action="append",
        metavar="PATTERN",
        help="only what matches, like 'pump/*/ipv4' or 'memory'; may be repeated; see --list",
    )
    parser.add_argument("--no-peers", action="store_true", help="only the floor and the library")
    parser.add_argument("--list", action="store_true", help="name what can be selected, and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="also write the docs' tables here")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw a picture here")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.ms = options.ms or (5 if options.quick else 8)
    return options


def extras(rounds: int, quick: bool, floor: bool) -> dict[str, Callable[[], list[Fact]]]:
    """What is measured beside the rows, by name."""
    from . import _fairness, _memory, _pingpong, _scaling

    count, batches = (1_000, 500) if quick else (3_000, 2_000)
    return {
        "ping-pong": lambda: _pingpong.measure(rounds=rounds, count=count, floor=floor),
        "reuse-port": lambda: _scaling.measure(rounds=4 * rounds, floor=floor),
        "fairness": lambda: _fairness.measure(batches=batches),
        "memory": _memory.measure,
    }


class Progress:
    """One line on the terminal that says what is going on."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._shown = sys.stderr.isatty()

    def __call__(self, name: str) -> None:
        self._done += 1
        if self._shown:
            print(f"\r\033[K{self._done}/{self._total} {name}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def run(
    options: argparse.Namespace, contenders: Sequence[Contender]
) -> tuple[list[Measured], list[Fact]]:
    """Measure what was asked for."""
    wanted = options.select or ["*"]
    rows = [row for row in all_rows() if any(fnmatch(row.id, pattern) for pattern in wanted)]
    if options.quick and not options.select:
        rows = [row for row in rows if not row.ipv6]
    floor = any(contender.name == FLOOR for contender in contenders)
    more = extras(options.rounds, options.quick, floor)
    chosen = [name for name in more if any(fnmatch(name, pattern) for pattern in wanted)]
    progress = Progress(len(rows) + len(chosen))
    results, facts = [], []
    for row in rows:
        progress(row.id)
        # The peers cost most of the time and differ little from row to row: once each is enough.
        everybody = options.select or not (row.ipv6 or row.shape not in SHAPES)
        sitters = contenders if everybody else [c for c in contenders if c.name in (FLOOR, OURS)]
        budget_ns = options.ms * 1_000_000
        results.append(measure(row, sitters, rounds=options.rounds, budget_ns=budget_ns))
    for name in chosen:
        progress(name)
        facts += more[name]()
    progress.close()
    return results, facts


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    if options.list:
        print(*(row.id for row in all_rows()), *extras(1, True, floor=False), sep="\n")
        return 0
    if sys.platform != "linux":
        print("The benchmark needs Linux: the floor is its recvmmsg, sendmmsg, GRO and GSO.")
        return 1
    began = time.monotonic()
    machine = _machine.describe()
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n")
    modules = [name for name in MODULES if not (options.no_peers and name.startswith("_peer"))]
    contenders, left_out = open_contenders(modules)
    try:
        print(*left_out, sep="\n")
        if not any(contender.name == OURS for contender in contenders):
            return 1
        results, facts = run(options, contenders)
    finally:
        for contender in contenders:
            contender.close()
    _report.show_all(results, facts)
    print(f"{options.rounds} rounds of {options.ms} ms, {time.monotonic() - began:.0f} s in all")
    if options.json:
        document = _report.as_json(machine, left_out, results, facts)
        options.json.write_text(document, encoding="utf-8")
    if options.rst:
        options.rst.write_text(_report.as_rst(machine, results, facts), encoding="utf-8")
    if options.plot:
        options.plot.write_text(_plot.draw(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
