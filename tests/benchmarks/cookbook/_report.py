# The figures as tables on the terminal and in the documentation, and as JSON.
#
# It decides how a figure reads, and nothing about how it came about.

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .._report import number, rst_document, show
from .._sittings import CANNOT, reasons
from ._rows import ANSWER, LOOPS, OURS, PUMP, TASKS, TRIO_SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ._measuring import Measured, Sitting
    from ._rows import Row

NOTED_LOSS = 0.0005
SERVER = "dns_server"


@dataclass(frozen=True)
class Table:
    """What one table shows."""

    title: str
    shows: Callable[[Row], bool]
    names: tuple[str, ...]
    figure: Callable[[Sitting], float]
    is_rate: bool = False
    names_program: bool = False


ALL = (OURS, ANSWER, PUMP, TRIO_SOCKET, *LOOPS, *TASKS)
TABLES = (
    Table(
        "CPU microseconds a datagram or a question, of the program's process",
        lambda row: row.program != SERVER,
        (OURS, *LOOPS),
        lambda sitting: sitting.us_each,
        names_program=True,
    ),
    Table(
        "The DNS server under dnsperf: CPU microseconds a question",
        lambda row: row.program == SERVER,
        ALL,
        lambda sitting: sitting.us_each,
    ),
    Table(
        "The DNS server under dnsperf: questions a second",
        lambda row: row.program == SERVER,
        ALL,
        lambda sitting: sitting.rate or 0.0,
        is_rate=True,
    ),
)
LEGEND = (
    "Medians, and in brackets how many times ours. The programs of a row took turns in each round; "
    "each had a processor of its own, and the load another one."
)


def cell(measured: Measured, table: Table, name: str) -> str:
    """One contender's figure, what it is beside ours, and what was lost meanwhile."""
    if name in measured.cannot:
        return CANNOT
    figure = measured.median(name, table.figure)
    if figure is None:
        return ""
    parts = [number(round(figure)) if table.is_rate else number(figure)]
    ours = measured.median(OURS, table.figure)
    if ours and name != OURS:
        parts.append(f"({figure / ours:.2f}x)" if table.is_rate else f"({figure / ours:.1f}x)")
    loss = measured.median(name, lambda sitting: sitting.loss) or 0
    if loss >= NOTED_LOSS:
        parts.append(f"{loss:.1%} lost")
    return " ".join(parts)


def head(table: Table) -> list[str]:
    """A table's first line."""
    called = {OURS: "ours", ANSWER: "ours, answer=", PUMP: "ours, a pump"}
    names = [called.get(name, name) for name in table.names]
    return [*["program"] * table.names_program, "load", *names]


def rows_of(table: Table, results: Iterable[Measured]) -> list[list[str]]:
    """A table's other lines."""
    return [
        [
            *[each.row.program] * table.names_program,
            each.row.load,
            *(cell(each, table, name) for name in table.names),
        ]
        for each in results
        if table.shows(each.row)
    ]


def show_all(results: Sequence[Measured]) -> None:
    """Print everything."""
    for table in TABLES:
        rows = rows_of(table, results)
        show(table.title, head(table), [("", rows)] if rows else [], len(table.names) + 1)
    print(LEGEND, *reasons(results), sep="\n")


def as_rst(machine: Mapping[str, str], results: Sequence[Measured]) -> str:
    """The tables for the documentation, with the machine they are from."""
    tables = [(each.title, head(each), rows_of(each, results)) for each in TABLES]
    return rst_document(machine, LEGEND, tables, reasons(results))


def as_json(machine: Mapping[str, str], results: Sequence[Measured]) -> str:
    """Everything for a machine to read, each sitting included."""
    rows: list[dict[str, Any]] = [
        {
            "id": each.row.id,
            "cannot": each.cannot,
            "programs": {
                name: {
                    "us_each": each.median(name, lambda sitting: sitting.us_each),
                    "rate": each.median(name, lambda sitting: sitting.rate or 0.0),
                    "loss": each.median(name, lambda sitting: sitting.loss),
                    "rounds": [asdict(sitting) for sitting in sittings],
                }
                for name, sittings in each.sittings.items()
            },
        }
        for each in results
    ]
    return json.dumps({"machine": dict(machine), "rows": rows}, indent=1)
