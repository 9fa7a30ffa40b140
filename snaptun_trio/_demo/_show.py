# What the demonstration shows: a progress line while it runs, and a table at the end. With rich if
# it is installed, in plain text otherwise. This file knows no process; it shows what it is given.
#
# Progress goes to standard error and the table to standard output, so that either can be kept.

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .. import backend, backend_reason

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from ._run import Progress, Result

HEADINGS = ("", "datagrams/s", "CPU µs a datagram", "sent", "delivered", "dropped by the kernel")

# With fewer datagrams under way than this, the forwarder is woken for every train or two.
SMALL_WINDOW = 500


def _row(result: Result) -> tuple[str, ...]:
    ledger = result.ledger
    rate, cpu = result.datagrams_per_second, result.cpu_microseconds
    return (
        result.name,
        "too short to say" if rate is None else f"{rate:,.0f}",
        "too short to say" if cpu is None else f"{cpu:.2f}",
        f"{ledger.sent:,}",
        f"{ledger.delivered:,}",
        f"{ledger.dropped:,}" if ledger.drops_are_told else "not told",
    )


def summary(results: Sequence[Result]) -> list[str]:
    """The table in words: who is cheaper, and whether everything is accounted for."""
    lines = [f"The backend is {backend}: {backend_reason}."]
    ours, plain = results[0], results[-1]
    if ours.cpu_microseconds and plain.cpu_microseconds and ours is not plain:
        ratio = plain.cpu_microseconds / ours.cpu_microseconds
        how_much = f"{ratio:.1f} times less" if ratio >= 1 else f"{1 / ratio:.1f} times more"
        lines.append(f"A datagram costs {ours.name} {how_much} CPU than {plain.name}.")
    if min(result.window for result in results) < SMALL_WINDOW:
        lines.append(
            f"Only {ours.window} datagrams could be under way at a time: the receive buffers that "
            "the system grants hold no more (on Linux: net.core.rmem_max). Larger ones make larger "
            "batches, and those are cheaper."
        )
    problems = [f"{result.name}: {text}" for result in results for text in result.ledger.problems]
    if problems:
        lines += ["IT DOES NOT ADD UP:", *problems]
    else:
        lines.append("Everything adds up: sent = delivered + dropped, and every checksum is right.")
    return lines


def plain_table(results: Sequence[Result]) -> str:
    rows = [HEADINGS, *map(_row, results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *figures in rows:
        cells = [name.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join(cells))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


class PlainScreen:
    """Plain text."""

    @contextmanager
    def progress(self) -> Generator[Progress, None, None]:
        terminal = sys.stderr.isatty()
        last = (0.0, "")

        def show(name: str, done: float, delivered: int) -> None:
            nonlocal last
            now = time.monotonic()
            # A terminal gets one line that changes; a file or a pipe gets a line a second.
            if not terminal and done < 1 and last[1] == name and now - last[0] < 1:
                return
            last = (now, name)
            line = f"{name}: {done:4.0%}, {delivered:,} delivered"
            end = "\r" if terminal and done < 1 else "\n"
            print(line.ljust(60) if terminal else line, end=end, file=sys.stderr, flush=True)

        yield show

    def table(self, results: Sequence[Result]) -> None:
        print(plain_table(results))
        print(*summary(results), sep="\n")


class RichScreen:
    """The same with rich."""

    @contextmanager
    def progress(self) -> Generator[Progress, None, None]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[delivered]:,} delivered"),
        )
        tasks: dict[str, TaskID] = {}
        with Progress(*columns, console=Console(stderr=True)) as bars:

            def show(name: str, done: float, delivered: int) -> None:
                if name not in tasks:
                    tasks[name] = bars.add_task(name, total=1.0, delivered=0)
                bars.update(tasks[name], completed=done, delivered=delivered)

            yield show

    def table(self, results: Sequence[Result]) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD)
        for heading in HEADINGS:
            table.add_column(
                heading,
                justify="right" if heading else "left",
                no_wrap=not heading,
                min_width=max(map(len, heading.split()), default=None),  # break between words only
            )
        for result in results:
            table.add_row(*_row(result))
        console = Console()
        console.print(table)
        for line in summary(results):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def open_screen() -> PlainScreen | RichScreen:
    try:
        import rich  # noqa: F401
    except ImportError:
        return PlainScreen()
    return RichScreen()
