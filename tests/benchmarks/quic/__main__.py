# The command: `python -m tests.benchmarks.quic`. What is measured, and how it reads.

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from .. import _machine
from .._options import add_outputs, fill_in, make_parser, progress
from .._report import number, rst_document, show
from ._certificate import write_certificate
from ._running import OURS, FailedError, Row, Sitting, contenders, serving, sit

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

MEGABYTE = 1_000_000
MANY = 100
Results = dict[Row, dict[str, list[Sitting]]]
SIDES: dict[str, Callable[[Sitting], float]] = {
    "server": lambda sitting: sitting.server_ns / 1e9,
    "client": lambda sitting: sitting.client_ns / 1e9,
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = make_parser(
        "tests.benchmarks.quic",
        "QUIC by aioquic: on trio with snaptun_trio, on asyncio and on uvloop.",
        "in less than a minute: fewer rounds, less to move",
    )
    parser.add_argument("--rounds", type=int, help="sittings of each (5; quick: 2)")
    parser.add_argument("--megabytes", type=int, help="that are moved each time (50; quick: 5)")
    parser.add_argument("--connections", type=int, default=MANY, help="at once (100)")
    add_outputs(parser)
    return fill_in(parser.parse_args(arguments), rounds=(5, 2), megabytes=(50, 5))


def measure(rows: Sequence[Row], names: Sequence[str], rounds: int, directory: Path) -> Results:
    """All servers run at once and wait for their turns; who waits costs next to nothing.

    A sitting in which another one's bytes did not arrive is told, and gives no figure.
    """
    certificate, key = write_certificate(directory)
    results: Results = {row: {name: [] for name in names} for row in rows}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(name, certificate, key)) for name in names}
        for turn in range(rounds):
            for row in rows:
                for name in names if turn % 2 == 0 else reversed(names):
                    progress(f"{turn} {row} {name}")
                    try:
                        sitting = sit(name, servers[name], row, certificate)
                    except FailedError as error:
                        if name == OURS:
                            raise
                        print(f"{row.name}, {row.connections} connections: {error}")
                    else:
                        results[row][name].append(sitting)
    return results


def table(results: Results, names: Sequence[str]) -> list[list[str]]:
    """The lines: a row for each side of each row."""
    lines: list[list[str]] = []
    for row, sittings in results.items():
        for side, figure in SIDES.items():
            ours = statistics.median(figure(one) for one in sittings[OURS])
            cells = [f"{ours:.2f}"]
            for name in names[1:]:
                others = [figure(one) for one in sittings[name]]
                median = statistics.median(others) if others else None
                cells.append("failed" if median is None else f"{median:.2f} ({median / ours:.1f}x)")
            lines.append([row.name, number(row.connections), side, *cells])
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    nbytes = options.megabytes * MEGABYTE
    rows = [Row(verb, many, nbytes) for many in (1, options.connections) for verb in ("get", "put")]
    names = contenders()
    machine = {**_machine.describe(), "aioquic": version("aioquic")}
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n")
    try:
        with tempfile.TemporaryDirectory() as directory:
            results = measure(rows, names, options.rounds, Path(directory))
    except FailedError as error:
        print(error, file=sys.stderr)
        return 1
    head = ["bytes go", "connections", "process", "ours", *names[1:]]
    title = f"CPU seconds for {options.megabytes} MB over loopback"
    lines = table(results, names)
    print()
    show(title, head, [("", lines)], len(head) - 1)
    legend = f"Medians of {options.rounds} rounds, and in brackets how many times ours."
    print(legend)
    if options.json:
        figures = [
            {**asdict(row), "sittings": {n: [asdict(one) for one in s] for n, s in by.items()}}
            for row, by in results.items()
        ]
        document = json.dumps({"machine": machine, "rows": figures}, indent=1)
        options.json.write_text(document, encoding="utf-8")
    if options.rst:
        text = rst_document(machine, legend, [(title, head, lines)])
        options.rst.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
