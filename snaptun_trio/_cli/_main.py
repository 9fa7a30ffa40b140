# The commands, and how each ends. What a command does is in its module, which has
# `add_parser(commands)` and `run(options) -> int`, and says what went wrong with a `CommandError`
# or an `OSError`.
#
#     0    it went well
#     1    what went wrong is said in one line on standard error
#     2    the arguments are wrong
#     130  Ctrl-C; 143 for SIGTERM

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
from typing import TYPE_CHECKING

from .._version import __version__
from . import _bench_command, _demo_command, _probe_command, _relay_command
from ._arguments import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

PROGRAM = "snaptun-trio"
COMMANDS = (_demo_command, _bench_command, _probe_command, _relay_command)
EXTRA = ("rich", "prometheus_client")  # what pip installs for `snaptun_trio[cli]`


def make_parser() -> argparse.ArgumentParser:
    """The whole command line. It needs nothing of the extra, so that --help works without."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="UDP datagrams in batches for trio.")
    parser.add_argument("--version", action="version", version=f"snaptun_trio {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    ended_by = signal.SIGINT

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal ended_by
        ended_by = signal.SIGTERM
        signal.raise_signal(signal.SIGINT)  # trio knows where Ctrl-C may be raised

    sigterm = signal.getsignal(signal.SIGTERM)
    # A shell's background job ignores Ctrl-C; SIGTERM then ends it in the system's own way.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGTERM, end)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an output that knows no µ
    try:
        try:
            options = make_parser().parse_args(arguments)
            _require_extra()
            code: int = options.run(options)
            return code
        finally:
            sys.stdout.flush()  # here, where a reader may have gone away
    except BaseException as error:
        leaves = list(_leaves(error))
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
            return 128 + ended_by
        if not all(isinstance(leaf, (CommandError, OSError)) for leaf in leaves):
            raise
        if not any(isinstance(leaf, BrokenPipeError) for leaf in leaves):
            print(f"{PROGRAM}: {'; '.join(dict.fromkeys(map(_in_words, leaves)))}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more
        return 1
    finally:
        signal.signal(signal.SIGTERM, sigterm)


def _require_extra() -> None:
    for name in EXTRA:
        try:
            importlib.import_module(name)
        except ImportError:
            how = "pip install 'snaptun_trio[cli]'"
            raise CommandError(f"the commands need {name}, which is not installed: {how}") from None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _in_words(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        what = error.strerror[:1].lower() + error.strerror[1:]
        text = what if error.filename is None else f"{what}: {error.filename}"
    return " ".join(text.split()) or type(error).__name__
