# The figures as tables on the terminal and in the documentation, and as JSON.
#
# It decides how a figure reads, and nothing about how it came about.

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .._report import number, rst_document, show
from .._sittings import CANNOT, reasons
from ._contenders import OURS
from ._rows import MBIT, MOST, NEW_CLIENTS, OPENING, PACED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ._measuring import Measured, Sitting

SATURATED = 0.9  # of its processor; a relay below that could have carried more
NOTED_LOSS = 0.0005


@dataclass(frozen=True)
class Table:
    """What one table shows of the rows of a kind."""

    kind: str
    title: str
    figure: Callable[[Sitting], float]
    is_rate: bool = False


TABLES = (
    Table(
        PACED,
        f"CPU nanoseconds a relayed datagram, at {MBIT} Mbit/s each way",
        lambda sitting: sitting.ns_each,
    ),
    Table(
        MOST,
        "Relayed datagrams a second, both ways together, at most",
        lambda sitting: sitting.rate,
        is_rate=True,
    ),
    Table(MOST, "CPU nanoseconds a relayed datagram then", lambda sitting: sitting.ns_each),
    Table(
        OPENING,
        f"CPU microseconds for each of {NEW_CLIENTS} new clients that send one datagram",
        lambda sitting: sitting.us_a_client,
    ),
)
LEGEND = (
    "Medians, and in brackets how many times ours. A datagram counts once in each direction. A + "
    f"marks a relay that was running less than {SATURATED:.0%} of the time: the rest it waited for "
    "its clients, or for the processor."
)


def shape_name(measured: Measured) -> str:
    """The first column."""
    row = measured.row
    return f"{row.together} at once" if row.kind == OPENING else row.shape.name


def cell(measured: Measured, table: Table, name: str) -> str:
    """One contender's figure, what it is beside ours, and what was lost meanwhile."""
    if name in measured.cannot:
        return CANNOT
    figure = measured.median(name, table.figure)
    if figure is None:
        return ""
    parts = [number(figure)]
    if table.is_rate:
        parts = [number(round(figure))]
        if (measured.median(name, lambda sitting: sitting.busy) or 0) < SATURATED:
            parts[0] += "+"
    ours = measured.median(OURS, table.figure)
    if ours and name != OURS:
        parts.append(f"({figure / ours:.2f}x)" if table.is_rate else f"({figure / ours:.1f}x)")
    loss = measured.median(name, lambda sitting: sitting.counts.loss) or 0
    if loss >= NOTED_LOSS:
        parts.append(f"{loss:.1%} lost")
    return " ".join(parts)


def head(names: Iterable[str]) -> list[str]:
    """A table's first line."""
    return ["shape", "clients", *("ours" if name == OURS else name for name in names)]


def rows_of(table: Table, results: Iterable[Measured], names: Sequence[str]) -> list[list[str]]:
    """A table's other lines."""
    return [
        [
            shape_name(each),
            number(each.row.shape.clients),
            *(cell(each, table, name) for name in names),
        ]
        for each in results
        if each.row.kind == table.kind
    ]


def show_all(results: Sequence[Measured], names: Sequence[str]) -> None:
    """Print everything."""
    for table in TABLES:
        rows = rows_of(table, results, names)
        parts = [(table.kind, rows)] if rows else []
        show(table.title, head(names), parts, len(names) + 1)
    print(LEGEND, *reasons(results), sep="\n")


def as_rst(machine: Mapping[str, str], results: Sequence[Measured], names: Sequence[str]) -> str:
    """The tables for the documentation, with the machine they are from."""
    tables = [(each.title, head(names), rows_of(each, results, names)) for each in TABLES]
    return rst_document(machine, LEGEND, tables, reasons(results))


def as_json(
    machine: Mapping[str, str], left_out: Sequence[str], results: Sequence[Measured]
) -> str:
    """Everything for a machine to read, each sitting included."""
    rows: list[dict[str, Any]] = [
        {
            "id": each.row.id,
            "kind": each.row.kind,
            "shape": asdict(each.row.shape),
            "together": each.row.together,
            "cannot": each.cannot,
            "relays": {
                name: {
                    "ns_per_datagram": each.median(name, lambda sitting: sitting.ns_each),
                    "us_per_client": each.median(name, lambda sitting: sitting.us_a_client),
                    "datagrams_per_second": each.median(name, lambda sitting: sitting.rate),
                    "busy": each.median(name, lambda sitting: sitting.busy),
                    "loss": each.median(name, lambda sitting: sitting.counts.loss),
                    "rounds": [asdict(sitting) for sitting in sittings],
                }
                for name, sittings in each.sittings.items()
            },
        }
        for each in results
    ]
    document = {"machine": dict(machine), "left_out": list(left_out), "rows": rows}
    return json.dumps(document, indent=1)
