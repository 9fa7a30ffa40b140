# The figures as a table on the terminal and as JSON.
#
# It decides how a figure reads, and nothing about how it came about. The table is rich's where rich
# is installed, and plain text where it is not.

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ._method import FLOOR, OURS, aim

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._fact import Fact
    from ._method import Measured

PEERS = ("trio.socket", "anyio", "asyncio", "uvloop")
HEAD = ("", "floor", "ours", "x floor", "spread", "aim", *PEERS)
FACT_HEAD = ("", "figure", "aim", "")


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
        f"{spread[0]:.2f}-{spread[1]:.2f}" if spread is not None else "-",
        f"{wanted:.2f}" if wanted is not None else "",
    ]
    for peer in PEERS:
        ns, times = measured.median(peer), measured.ratio(peer, OURS)
        if ns is None:
            cells.append("")
        else:
            cells.append(f"{number(ns)}" + (f" ({times:.1f}x)" if times is not None else ""))
    return cells


def sections(results: Iterable[Measured]) -> Iterable[tuple[str, list[list[str]]]]:
    """The table's parts."""
    for title, group in groupby(results, lambda measured: measured.row.title):
        yield title, [line(measured) for measured in group]


def fact_sections(facts: Iterable[Fact]) -> Iterable[tuple[str, list[list[str]]]]:
    """The single figures by group."""
    for group, members in groupby(facts, lambda fact: fact.group):
        yield (
            group,
            [[f.name, f"{number(f.figure)} {f.unit}", f.aim, f.note] for f in members],
        )


def show(
    title: str, head: Sequence[str], parts: Iterable[tuple[str, list[list[str]]]], right: int
) -> None:
    """Print a table of several parts; after the first column, `right` are right-aligned."""
    parts = list(parts)
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


def show_plainly(
    title: str, head: Sequence[str], parts: Sequence[tuple[str, list[list[str]]]], right: int
) -> None:
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


def show_all(results: Sequence[Measured], facts: Sequence[Fact]) -> None:
    """Print everything."""
    title = "CPU nanoseconds a datagram, medians; in brackets how many times ours"
    show(title, HEAD, sections(results), len(HEAD))
    show("And", FACT_HEAD, fact_sections(facts), 2)


def as_rst(machine: dict[str, str], results: Sequence[Measured], facts: Sequence[Fact]) -> str:
    """The tables of the docs' performance page, with the machine they are from."""
    lines = ["Measured on: " + "; ".join(f"{key} {value}" for key, value in machine.items()) + "."]
    parts = [(title, [list(HEAD), *rows]) for title, rows in sections(results)]
    parts += [(title, [list(FACT_HEAD), *rows]) for title, rows in fact_sections(facts)]
    for title, rows in parts:
        lines += ["", f".. csv-table:: {title}", "   :header-rows: 1", ""]
        lines += ["   " + ",".join(f'"{cell or " "}"' for cell in row) for row in rows]
    return "\n".join(lines) + "\n"


def as_json(
    machine: dict[str, str],
    left_out: Sequence[str],
    results: Sequence[Measured],
    facts: Sequence[Fact],
) -> str:
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
        for measured in results
    ]
    document = {
        "machine": machine,
        "left_out": list(left_out),
        "rows": rows,
        "facts": [asdict(fact) for fact in facts],
    }
    return json.dumps(document, indent=1)
