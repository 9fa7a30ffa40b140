# What the commands have in common: what arguments become, with a message for each that is wrong,
# and how results are shown: on standard output, and progress on standard error.

import argparse
import json
import os
import platform
import re
import sys
import textwrap
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .. import __version__, backend, backend_reason

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
HostPort: TypeAlias = tuple[str | None, int]
Facts: TypeAlias = dict[str, Any]
WIDE = 160  # wide enough that nothing wraps in a file or a pipe


class CommandError(Exception):
    """What went wrong, in one line for the user. The program ends with 1."""


def add_command(
    commands: Commands, name: str, run: Callable[[Namespace], int], *texts: str
) -> Callable[..., argparse.Action]:
    """A command with a summary, a description and an example; gives what adds its arguments."""
    summary, description, example = texts
    parser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, 78),
        epilog=f"example:\n  snaptun-trio {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    parser.set_defaults(run=run, error=parser.error)
    return parser.add_argument


def host_port(text: str) -> HostPort:
    """``HOST:PORT`` for `snaptun_trio.open_udp_socket`: the host `None` is every address."""
    found = re.fullmatch(r"(?:\[([^]]*:[^]]*)\]|([^][:]*)):([0-9]{1,5})", text)
    if not found or int(found[3]) > 65_535:
        how = "such as 192.0.2.1:53, or [::1]:53 for IPv6"
        raise ArgumentTypeError(f"{text!r} is not HOST:PORT, {how}; a port is 0 to 65535")
    host = found[1] or found[2]
    host.encode("idna")  # what can be no name is a `ValueError`, which argparse tells as well
    return (None if host in ("", "*") else host), int(found[3])


def written(host: object, port: object, *_: object) -> str:
    """The same the other way round."""
    return f"[{host}]:{port}" if ":" in str(host) else f"{'*' if host is None else host}:{port}"


def in_words(error: BaseException) -> str:
    """An error in one line, with addresses as they are written here."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        what = error.strerror[:1].lower() + error.strerror[1:]
        text = what if error.filename is None else f"{what}: {error.filename}"
    pair = r"(?:local=)?\((?:None|'([^']*)'), (\d+)(?:, \d+, \d+)?\)"
    text = re.sub(pair, lambda found: written(found[1], found[2]), text)
    return " ".join(text.split()) or type(error).__name__


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """A converter to a positive `int` or `float`."""

    def convert(text: str) -> float:
        try:
            if 0 < (number := kind(text)) < float("inf"):
                return number
        except ValueError:
            pass
        raise ArgumentTypeError(f"{text!r} is not a positive {'whole ' * (kind is int)}number")

    return convert


def new_svg(text: str) -> Path:
    """A picture that can be made."""
    path = Path(text)
    if path.suffix != ".svg" or path.is_dir() or not path.absolute().parent.is_dir():
        raise ArgumentTypeError(f"{text!r} is no file NAME.svg in a directory that is there")
    return path


def open_console(*, stderr: bool = False) -> Console:
    """Where a command writes; plain text, if that is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    free = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(stderr=stderr, width=WIDE if free else None, highlight=False, markup=False)


def make_table(*headings: str, left: Sequence[str] = ("",)) -> Table:
    """A table to fill; headings break between words, and figures stand on the right."""
    table = Table(box=SIMPLE_HEAD)
    for heading in headings:
        widest = max(map(len, heading.split()), default=None)
        side: Literal["left", "right"] = "left" if heading in left else "right"
        table.add_column(heading, justify=side, min_width=widest, no_wrap=not heading)
    return table


def describe() -> list[str]:
    """Which machine this is, and what the library makes of it."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    where = f"{os.cpu_count()} CPUs, {platform.platform()}, {python}, snaptun_trio {__version__}"
    return [f"{where}.", f"The backend is {backend}: {backend_reason}."]


def report(as_json: bool, facts: Facts, table: Table, notes: Sequence[str]) -> None:
    """What a command has found: all facts for a program, or a table and notes for a reader."""
    if as_json:
        here = {"version": __version__, "backend": backend, "machine": describe()}
        print(json.dumps(here | facts, indent=2), flush=True)
        return
    console = open_console()
    console.print(table)
    console.print(*describe(), *notes, sep="\n", soft_wrap=True)
