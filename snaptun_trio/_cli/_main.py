# The commands, and how each ends. What a command does is in its module, which has
# `add_parser(commands)` and a function of the options that returns the exit code, and says what
# went wrong with a `CommandError` or an `OSError`.
#
#     0    it went well
#     1    what went wrong is said in one line on standard error
#     2    the arguments are wrong
#     130  Ctrl-C; 143 for SIGTERM

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence

from .. import __version__
from . import _compare_commands, _probe_command, _relay_command
from ._terminal import CommandError, in_words

PROGRAM = "snaptun-trio"
COMMANDS = (_compare_commands, _probe_command, _relay_command)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="UDP datagrams in batches for trio.")
    parser.add_argument("--version", action="version", version=f"snaptun_trio {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add_parser(commands)
    if arguments and (chosen := commands.choices.get(arguments[0])):
        # Through `parser` it would know no option between two targets, nor whose usage to show.
        return chosen.parse_intermixed_args(arguments[1:])
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    ended_by = signal.SIGINT

    def end(*_: object) -> None:
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
            options = parse(sys.argv[1:] if arguments is None else arguments)
            code: int = options.run(options)
            return code
        finally:
            sys.stdout.flush()  # here, where a reader may have gone away
    except BaseException as error:
        leaves = leaves_of(error)
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
            return 128 + ended_by
        if not all(isinstance(leaf, (CommandError, OSError)) for leaf in leaves):
            raise
        if not any(isinstance(leaf, BrokenPipeError) for leaf in leaves):
            print(f"{PROGRAM}: {'; '.join(dict.fromkeys(map(in_words, leaves)))}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more
        return 1
    finally:
        signal.signal(signal.SIGTERM, sigterm)


def leaves_of(error: BaseException) -> list[BaseException]:
    """The errors in a group, in groups of it, or the one that there is."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in leaves_of(inner)]
