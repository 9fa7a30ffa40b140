# The command: `python -m tests.benchmarks`.
#
# It chooses what is measured and where it goes; how is the other files' matter.

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from . import _machine, _plot, _report
from ._beside import ROW_PEERS, from_rows
from ._method import FLOOR, MODULES, OURS, WORKS, Row, measure, open_contenders
from ._options import add_outputs, add_selection, fill_in, make_parser, progress
from ._outcome import Outcome
from ._programs import measure as measure_program, programs
from ._shapes import PEER_COUNTS, SHAPES, many_peers

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ._fact import Fact
    from ._worker import Contender

PEER_COUNT_WORKS = ("receive", "look", "answer")
QUICK_PEERS = ("_peer_uvloop", "_peer_trio_socket")


def all_rows() -> list[Row]:
    """Every row there is, in the table's order."""
    rows = [Row(work, shape, ipv6) for ipv6 in (False, True) for work in WORKS for shape in SHAPES]
    counts = [many_peers(peers) for peers in PEER_COUNTS]
    return rows + [Row(work, shape, False) for work in PEER_COUNT_WORKS for shape in counts]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = make_parser(
        "tests.benchmarks",
        "CPU time a datagram, beside the bare system calls and other libraries.",
        "in half a minute: IPv4 only, fewest peers, fewer and shorter rounds, no extras",
    )
    parser.add_argument("--rounds", type=int, help="sittings of each contender (5; quick: 3)")
    parser.add_argument("--ms", type=int, help="CPU milliseconds of each sitting (8; quick: 5)")
    add_selection(parser, "'pump/*/ipv4' or 'memory'")
    parser.add_argument(
        "--beside", action="store_true", help="only the second table: ours beside peers"
    )
    parser.add_argument("--no-peers", action="store_true", help="only the floor and the library")
    add_outputs(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw a picture here")
    parser.add_argument("--few", type=Path, metavar="FILE.svg", help="and one of a few rows here")
    return fill_in(parser.parse_args(arguments), rounds=(5, 3), ms=(8, 5))


def extras(rounds: int, quick: bool, floor: bool) -> dict[str, Callable[[], list[Fact]]]:
    """What is measured beside the rows and programs, by name. The quick run has no time for all."""
    from . import _fairness, _memory, _scaling

    more: dict[str, Callable[[], list[Fact]]] = {
        "fairness": lambda: _fairness.measure(batches=500 if quick else 2_000),
        "reuse-port": lambda: _scaling.measure(rounds=4 * rounds, floor=floor),
        "memory": _memory.measure,
    }
    if floor:  # whose system call is the first of its stages
        from . import _budget

        more["budget"] = lambda: _budget.measure(rounds=5 * rounds)
    return more


class Progress:
    """Says what is going on, and how much of it is done."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0

    def __call__(self, name: str) -> None:
        self._done += 1
        progress(f"{self._done}/{self._total} {name}")

    def close(self) -> None:
        progress("")


def chosen(options: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Those of the names that a run without an option for them, or the selection, has."""
    wanted = options.select or ["*"]
    return [name for name in names if any(fnmatch(name, pattern) for pattern in wanted)]


def chosen_rows(options: argparse.Namespace) -> list[Row]:
    """The first table's rows."""
    ids = set(chosen(options, (row.id for row in all_rows())))
    rows = [row for row in all_rows() if row.id in ids]
    if options.select:
        return rows
    if options.quick or options.beside:
        rows = [row for row in rows if not row.ipv6 and row.shape in SHAPES]
    if options.beside:
        rows = [row for row in rows if any(row.work in works for works, _, _ in ROW_PEERS)]
    return rows


def sitters(
    options: argparse.Namespace, row: Row, contenders: Sequence[Contender]
) -> Sequence[Contender]:
    """Who does a row. The peers cost most of the time and differ little from row to row."""
    beside = {peer for works, peer, _ in ROW_PEERS if row.work in works}
    if options.beside:
        names = {OURS, *beside}
    elif options.select:
        return contenders
    elif row.ipv6 or row.shape not in SHAPES:
        names = {FLOOR, OURS}
    elif options.quick:
        names = {FLOOR, OURS, *beside}
    else:
        return contenders
    return [contender for contender in contenders if contender.name in names]


@contextmanager
def failing_alone(name: str, outcome: Outcome) -> Iterator[None]:
    """What fails, because something was lost or hangs, does not take the others with it."""
    try:
        yield
    except Exception as error:
        outcome.failures.append(f"{name} failed: {type(error).__name__}: {error}")


def run(options: argparse.Namespace, contenders: Sequence[Contender]) -> Outcome:
    """Measure what was asked for."""
    by_name = {contender.name: contender for contender in contenders}
    rows = chosen_rows(options)
    all_programs = {program.id: program.among(by_name) for program in programs()}
    more = {} if options.beside else extras(options.rounds, options.quick, FLOOR in by_name)
    if options.quick and not options.select:
        more = {}
    names = chosen(options, [*all_programs, *more])
    progress = Progress(len(rows) + len(names))
    outcome = Outcome()
    for row in rows:
        progress(row.id)
        with failing_alone(row.id, outcome):
            ns = options.ms * 1_000_000
            sitting = sitters(options, row, contenders)
            measured = measure(row, sitting, rounds=options.rounds, budget_ns=ns)
            outcome.rows.append(measured)
    outcome.comparisons += from_rows(outcome.rows)
    if options.beside:
        outcome.rows.clear()  # without the floor they say nothing more
    for name in names:
        progress(name)
        with failing_alone(name, outcome):
            if name in more:
                outcome.facts += more[name]()
            elif all_programs[name].pairs:
                outcome.comparisons += measure_program(
                    all_programs[name], by_name, rounds=options.rounds, quick=options.quick
                )
    progress.close()
    return outcome


def has_peer(options: argparse.Namespace, module: str) -> bool:
    """Whether a peer takes part. The quick run has those that most aims are about."""
    if options.no_peers:
        return False
    return not options.quick or bool(options.select) or module in QUICK_PEERS


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    if options.list:
        others = [program.id for program in programs()]
        print(*(row.id for row in all_rows()), *others, *extras(1, True, floor=False), sep="\n")
        return 0
    if sys.platform != "linux":
        print("The benchmark needs Linux: the floor is its recvmmsg, sendmmsg, GRO and GSO.")
        return 1
    began = time.monotonic()
    machine = _machine.describe()
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n")
    modules = [name for name in MODULES if not name.startswith("_peer") or has_peer(options, name)]
    contenders, left_out = open_contenders(modules)
    try:
        print(*left_out, sep="\n")
        if not any(contender.name == OURS for contender in contenders):
            return 1
        outcome = run(options, contenders)
    finally:
        for contender in contenders:
            contender.close()
    _report.show_all(outcome)
    print(f"{options.rounds} rounds of {options.ms} ms, {time.monotonic() - began:.0f} s in all")
    if options.json:
        options.json.write_text(_report.as_json(machine, left_out, outcome), encoding="utf-8")
    if options.rst:
        options.rst.write_text(_report.as_rst(machine, outcome), encoding="utf-8")
    if options.plot:
        options.plot.write_text(_plot.draw(outcome.rows), encoding="utf-8")
    if options.few:
        options.few.write_text(_plot.draw_few(outcome.rows), encoding="utf-8")
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
