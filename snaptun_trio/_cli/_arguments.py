# What all commands have in common on the command line, and what arguments become, with a message
# for each that is wrong. argparse puts the option's name before it and exits with 2. This file
# knows no command.

from __future__ import annotations

import argparse
import textwrap
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
HostPort: TypeAlias = "tuple[str | None, int]"


class CommandError(Exception):
    """What went wrong, in one line for the user. The program ends with 1."""


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    example: str,
) -> argparse.ArgumentParser:
    """A parser with what every command has: --json, an example, ``options.run`` and ``.error``."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, 78),
        epilog=f"example:\n  snaptun-trio {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    parser.set_defaults(run=run, error=parser.error)
    return parser


def host_port(text: str) -> HostPort:
    """``HOST:PORT`` for `snaptun_trio.open_udp_socket`: the host `None` is every address."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (text.startswith("[") and not bracketed):
        raise ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:53 or [::1]:53")
    if ":" in host and not bracketed:
        raise ArgumentTypeError(f"{text!r}: an IPv6 address stands in brackets, such as [::1]:53")
    if not (port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ArgumentTypeError(f"{text!r}: the port is a number from 0 to 65535, not {port!r}")
    if bracketed and ":" not in host:
        raise ArgumentTypeError(f"{text!r}: only an IPv6 address stands in brackets")
    return (None if host in ("", "*") else host.strip("[]")), int(port)


def written(address: tuple[object, ...]) -> str:
    """The same the other way round, for a socket's address."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """A converter to a positive `int` or `float`."""

    def convert(text: str) -> float:
        try:
            if 0 < (number := kind(text)) < float("inf"):
                return number
        except ValueError:
            pass
        whole = "whole " if kind is int else ""
        raise ArgumentTypeError(f"{text!r} is not a positive {whole}number")

    return convert


def new_file(text: str) -> Path:
    """A file that can be made: its directory is there."""
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise ArgumentTypeError(f"there is no directory {path.absolute().parent}")
    if path.is_dir():
        raise ArgumentTypeError(f"{path} is a directory")
    return path
