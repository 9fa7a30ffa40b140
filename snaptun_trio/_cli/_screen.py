# What the commands have in common on the screen. Results go to standard output, progress to
# standard error, so that either can be kept. With --json, standard output has nothing but that.
#
# rich is imported where it is used: --help works without it.

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

from .. import __version__, backend, backend_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Generator, Sequence

    from rich.console import Console
    from rich.table import Table

    from ._child import Facts

Progress: TypeAlias = "Callable[[str, float, str], None]"
"""Called with a name, how much of it is done (0 to 1), and what there is to say."""
WIDE = 160  # wide enough that nothing wraps in a file or a pipe


def open_console(*, stderr: bool = False) -> Console:
    """Where a command writes; plain text, if that is no terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    free = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(stderr=stderr, width=WIDE if free else None, highlight=False, markup=False)


def make_table(*headings: str, left: Container[str] = ("",)) -> Table:
    """A table to fill; headings break between words, and figures stand on the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for heading in headings:
        justify: Literal["left", "right"] = "left" if heading in left else "right"
        width = max(map(len, heading.split()), default=None)
        table.add_column(heading, justify=justify, min_width=width, no_wrap=not heading)
    return table


@contextmanager
def open_progress() -> Generator[Progress, None, None]:
    """Bars while something runs; what is not a terminal gets their end only."""
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    tasks: dict[str, TaskID] = {}
    console = open_console(stderr=True)
    bars = Progress(*columns, TextColumn("{task.fields[says]}"), console=console)

    def show(name: str, done: float, says: str) -> None:
        if name not in tasks:
            bars.start()  # not before: without a bar there is nothing to end
            tasks[name] = bars.add_task(name, total=1.0, says="")
        bars.update(tasks[name], completed=done, says=says)

    try:
        yield show
    finally:
        if tasks:
            bars.stop()


def machine() -> Facts:
    """Which machine this is, and what the library makes of it."""
    return {
        "version": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "backend": backend,
        "backend_reason": backend_reason,
    }


def describe() -> list[str]:
    """The same in two lines."""
    cpus, system, python = (machine()[name] for name in ("cpus", "system", "python"))
    where = f"{cpus} CPUs, {system}, {python}, snaptun_trio {__version__}"
    return [f"{where}.", f"The backend is {backend}: {backend_reason}."]


def report(as_json: bool, facts: Facts, table: Table, notes: Sequence[str]) -> None:
    """What a command has found: all facts for a program, or a table and notes for a reader."""
    if as_json:
        print(json.dumps(machine() | facts, indent=2), flush=True)
        return
    console = open_console()
    console.print(table)
    console.print(*describe(), *notes, sep="\n", soft_wrap=True)
