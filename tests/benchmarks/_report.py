# The figures as a table on the terminal and as JSON.
#
# It decides how a figure reads, and nothing about how it came about. The table is rich's where rich
# is installed, and plain text where it is not.

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

from ._method import FLOOR, OURS, aim

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ._beside import Comparison
    from ._fact import Fact
    from ._method import Measured
    from ._outcome import Outcome

PEERS = ("trio.socket", "anyio", "asyncio", "uvloop", "aiofastnet")
HEAD = ("", "floor", "ours", "x floor", "aim", "spread", *PEERS)
BESIDE_HEAD = ("", "us", "beside", "us", "x", "aim", "spread")
NOTE = "note"
FACT_HEAD = ("", "figure", "aim", NOTE)
# A page has no title above all tables that says what the figures are.
RST_HEAD = ("traffic", "C floor", "ours", "times floor", "aim", "spread", *PEERS)
RST_BESIDE_HEAD = ("", "ours", "beside", "theirs", "times theirs", "aim", "spread")

Sections: TypeAlias = list[tuple[str, list[list[str]]]]


def number(figure: float) -> str:
    """A figure with as many digits as say something."""
    if abs(figure) >= 100 or figure == int(figure):
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if abs(figure) >= 10 else f"{figure:.2f}"


def line(measured: Measured) -> list[str]:
    """One row of the table. A peer's figure is followed by how many times ours it is."""
    shape = measured.row.shape.name
    floor, ours = measured.median(FLOOR), measured.median(OURS)
    ratio, spread = measured.ratio(OURS), measured.spread(OURS)
    wanted = aim(measured.row.work, shape)
    cells = [
        shape,
        number(floor) if floor is not None else "-",
        number(ours) if ours is not None else "-",
        f"{ratio:.2f}" if ratio is not None else "-",
        f"{wanted:.2f}" if wanted is not None else "",
        f"{spread[0]:.2f}-{spread[1]:.2f}" if spread is not None else "-",
    ]
    for peer in PEERS:
        ns, times = measured.median(peer), measured.ratio(peer, OURS)
        if ns is None:
            cells.append("")
        else:
            cells.append(f"{number(ns)}" + (f" ({times:.1f}x)" if times is not None else ""))
    return cells


def sections(results: Iterable[Measured]) -> Sections:
    """The first table's parts."""
    groups = groupby(results, lambda measured: measured.row.title)
    return [(title, [line(measured) for measured in group]) for title, group in groups]


def beside_line(comparison: Comparison) -> list[str]:
    """One row of the second table."""
    low, high = comparison.spread
    return [
        comparison.name,
        number(statistics.median(comparison.ours) / 1000),
        comparison.peer,
        number(statistics.median(comparison.theirs) / 1000),
        f"{comparison.ratio:.2f}",
        f"{comparison.aim:.2f}" if comparison.aim is not None else "",
        f"{low:.2f}-{high:.2f}",
    ]


def beside_sections(comparisons: Iterable[Comparison]) -> Sections:
    """The second table's parts."""
    groups = groupby(comparisons, lambda comparison: comparison.group)
    return [(title, [beside_line(each) for each in group]) for title, group in groups]


def fact_sections(facts: Iterable[Fact]) -> Sections:
    """The single figures by group."""
    return [
        (group, [[f.name, f"{number(f.figure)} {f.unit}", f.aim, f.note] for f in members])
        for group, members in groupby(facts, lambda fact: fact.group)
    ]


def show(title: str, head: Sequence[str], parts: Sections, right: int) -> None:
    """Print a table of several parts; after the first column, `right` are right-aligned."""
    if not parts:
        return
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        show_plainly(title, head, parts, right)
        return
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if 0 < place <= right else "left")
    for name, rows in parts:
        table.add_section()
        table.add_row(f"[bold]{name}[/bold]")
        for row in rows:
            table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file or a pipe has no width; a table cut short is no use
    console.print(table)


def show_plainly(title: str, head: Sequence[str], parts: Sections, right: int) -> None:
    """The same as plain text."""
    rows = [list(head), *(row for _, part in parts for row in part)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]

    def aligned(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if 0 < place <= right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    print(title, aligned(head), sep="\n\n")
    for name, part in parts:
        print("", name, *(aligned(row) for row in part), sep="\n")
    print()


def show_all(outcome: Outcome) -> None:
    """Print everything."""
    title = "CPU nanoseconds a datagram, medians; in brackets how many times ours"
    show(title, HEAD, sections(outcome.rows), len(HEAD))
    title = "Ours beside others in the same run, CPU microseconds, medians"
    show(title, BESIDE_HEAD, beside_sections(outcome.comparisons), len(BESIDE_HEAD))
    show("And", FACT_HEAD, fact_sections(outcome.facts), 2)
    print(*outcome.failures, sep="\n")


def as_rst(machine: dict[str, str], outcome: Outcome) -> str:
    """The tables of the docs' performance page, with the machine they are from."""
    tables = []
    for unit, head, parts in (
        ("CPU nanoseconds a datagram", RST_HEAD, sections(outcome.rows)),
        ("CPU microseconds", RST_BESIDE_HEAD, beside_sections(outcome.comparisons)),
        ("", FACT_HEAD, fact_sections(outcome.facts)),
    ):
        tables += [(f"{title} ({unit})" if unit else title, head, rows) for title, rows in parts]
    return rst_document(machine, "", tables)


def rst_document(
    machine: Mapping[str, str],
    legend: str,
    tables: Iterable[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    notes: Iterable[str] = (),
) -> str:
    """Tables, those without a row left out, with the machine that they are from."""
    described = "; ".join(f"{key} {value}" for key, value in machine.items())
    lines = [f"Measured on: {described}.", *(["", legend] if legend else [])]
    for title, head, rows in tables:
        lines += rst_table(title, head, rows) if rows else []
    for note in notes:
        lines += ["", f"{note}."]
    return "\n".join(lines) + "\n"


def rst_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """One table, without the columns in which no row has anything."""
    filled = [place for place in range(len(head)) if any(row[place].strip() for row in rows)]
    notes = head[filled[-1]] == NOTE
    lines = ["", f".. csv-table:: {title}", "   :header-rows: 1"]
    lines += [f"   :class: figures{' notes' if notes else ''}", ""]
    for row in (head, *rows):
        cells = [row[place].replace('"', '""') or " " for place in filled]
        lines.append("   " + ",".join(f'"{cell}"' for cell in cells))
    return lines


def as_json(machine: dict[str, str], left_out: Sequence[str], outcome: Outcome) -> str:
    """Everything for a machine to read, each round's figure included."""
    rows: list[dict[str, Any]] = [
        {
            "id": measured.row.id,
            "work": measured.row.work,
            "shape": measured.row.shape.name,
            "family": measured.row.family,
            "aim": aim(measured.row.work, measured.row.shape.name),
            "ns_per_datagram": {
                name: {"median": measured.median(name), "rounds": rounds}
                for name, rounds in measured.ns.items()
            },
            "times_floor": measured.ratio(OURS),
            "spread": measured.spread(OURS),
        }
        for measured in outcome.rows
    ]
    beside: list[dict[str, Any]] = [
        asdict(comparison) | {"ratio": comparison.ratio, "spread": comparison.spread}
        for comparison in outcome.comparisons
    ]
    document = {
        "machine": machine,
        "left_out": list(left_out),
        "rows": rows,
        "beside": beside,
        "facts": [asdict(fact) for fact in outcome.facts],
        "failures": outcome.failures,
    }
    return json.dumps(document, indent=1)
