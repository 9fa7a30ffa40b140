# `probe`.

from __future__ import annotations

from typing import TYPE_CHECKING

from ._arguments import add_command

if TYPE_CHECKING:
    import argparse

    from ._arguments import Commands


def add_parser(commands: Commands) -> None:
    """Add the command."""
    add_command(commands, "probe", run, "probe", "probe", "--json")


def run(options: argparse.Namespace) -> int:
    """Run it."""
    raise NotImplementedError
