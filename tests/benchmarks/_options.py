# What the commands of the benchmarks have in common: options, and a line that says what goes on.
#
# What is measured, and what comes of it, this file must not know.

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def make_parser(name: str, description: str, quick: str) -> argparse.ArgumentParser:
    """A parser for `python -m` this name, with an option for a quick run."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def add_selection(parser: argparse.ArgumentParser, example: str) -> None:
    """Options for which rows there are, by pattern."""
    parser.add_argument(
        "--select",
        action="append",
        metavar="PATTERN",
        help=f"only what matches, like {example}; may be repeated; see --list",
    )
    parser.add_argument("--list", action="store_true", help="name what can be selected, and end")


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Options for where the figures go beside the terminal."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="also write the docs' tables here")


def fill_in(options: argparse.Namespace, **amounts: tuple[int, int]) -> argparse.Namespace:
    """Give what was not asked for: so much of each in a whole run, and in a quick one."""
    for name, (whole, quick) in amounts.items():
        setattr(options, name, getattr(options, name) or (quick if options.quick else whole))
    return options


def progress(name: str) -> None:
    """Say on a terminal what is going on; nothing, at the end."""
    if sys.stderr.isatty():
        print(f"\r\033[K{name}", end="", file=sys.stderr, flush=True)
