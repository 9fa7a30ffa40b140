# The command line: `python -m snaptun_trio demo`. It reads the options, runs the demonstration and
# turns its outcome into an exit code; what the demonstration does is in `_demo`. The library
# itself never imports this file.
#
#     0  it ran, and every datagram is accounted for
#     1  the ledger does not add up, or the demonstration could not be run
#     2  the command line was wrong

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from ._demo._datagrams import SMALLEST
from ._demo._run import LEGS, PATIENCE_SECONDS, Settings, run_leg
from ._demo._show import open_screen
from ._demo._talk import ChildError
from ._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._demo._run import Leg, Progress, Result

# The most that the kernel passes on in one piece over IPv4: 65 535 less the headers and what
# segmentation needs. Above it a train is split on the way.
LARGEST_TRAIN = 65_493
LARGEST_DATAGRAM = 65_507  # 65 535 less the IPv4 and the UDP header
LONGEST_TRAIN = 64  # UDP_MAX_SEGMENTS of include/linux/udp.h, before Linux 6.9


def _positive(kind: type[int | float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        number = kind(text)
        if not 0 < number < float("inf"):
            raise ValueError
        return number

    convert.__name__ = f"positive {kind.__name__}"  # argparse says it in its message
    return convert


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m snaptun_trio", description="UDP datagrams in batches for trio."
    )
    parser.add_argument("--version", action="version", version=f"snaptun_trio {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="forward datagrams with the pump and with trio.socket, and compare",
        description="A sender, a forwarder and a sink, each in a process of its own, over real "
        "sockets on the loopback interface: once with snaptun_trio's pump as the forwarder, once "
        "with a plain trio.socket loop. Every datagram is numbered and checksummed, and each one "
        "must have been delivered or be counted as dropped by the kernel.",
    )
    amount = demo.add_mutually_exclusive_group()
    amount.add_argument(
        "--seconds",
        type=_positive(float),
        default=4.0,
        help="how long each of the two sends (default: %(default)s)",
    )
    amount.add_argument(
        "--datagrams",
        type=_positive(int),
        help="how many datagrams each of the two sends, rounded up to whole trains",
    )
    demo.add_argument(
        "--size", type=_positive(int), default=1200, help="bytes a datagram (default: %(default)s)"
    )
    demo.add_argument(
        "--train",
        type=_positive(int),
        help="datagrams sent at once; 1 for single ones (default: 50, or as many as fit)",
    )
    demo.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    demo.set_defaults(parser=demo)
    return parser


def settings_from(options: argparse.Namespace) -> Settings:
    """Check what argparse cannot. Ends the program with 2 if something is wrong."""
    parser, size, train = options.parser, options.size, options.train
    if not SMALLEST <= size <= LARGEST_DATAGRAM:
        parser.error(f"--size must be from {SMALLEST} to {LARGEST_DATAGRAM}")
    most = max(1, min(LONGEST_TRAIN, LARGEST_TRAIN // size))
    if train is not None and train > most:
        parser.error(f"--train must be from 1 to {most} with datagrams of {size} bytes")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no directory {options.json.absolute().parent}")
    return Settings(
        size=size,
        train=min(50, most) if train is None else train,
        datagrams=options.datagrams,
        seconds=options.seconds,
    )


async def run_legs(
    legs: Sequence[Leg], settings: Settings, progress: Progress, patience: float
) -> list[Result]:
    """One leg after the other: they share the processors."""
    results = [await run_leg(leg, settings, progress, patience=patience) for leg in legs]
    await trio.lowlevel.checkpoint()
    return results


def as_json(settings: Settings, results: Sequence[Result]) -> str:
    """The figures for a machine."""

    def leg(result: Result) -> dict[str, Any]:
        ledger = result.ledger
        return {
            **attrs.asdict(result),
            "sent": ledger.sent,
            "delivered": ledger.delivered,
            "dropped": ledger.dropped if ledger.drops_are_told else None,
            "unaccounted": ledger.unaccounted,
            "problems": ledger.problems,
        }

    facts = {
        "version": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "settings": attrs.asdict(settings),
        "legs": [leg(result) for result in results],
        "adds_up": not any(result.ledger.problems for result in results),
    }
    return json.dumps(facts, indent=2) + "\n"


def main(
    arguments: Sequence[str] | None = None,
    *,
    legs: Sequence[Leg] = LEGS,
    patience: float = PATIENCE_SECONDS,
) -> int:
    """Run the command line and return its exit code. The legs can be others, for the tests."""
    options = make_parser().parse_args(arguments)
    settings = settings_from(options)
    screen = open_screen()
    try:
        with screen.progress() as progress:
            results = trio.run(run_legs, legs, settings, progress, patience)
    except ChildError as error:
        print(f"the demonstration could not be run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    screen.table(results)
    if options.json is not None:
        options.json.write_text(as_json(settings, results), encoding="utf-8")
    return 1 if any(result.ledger.problems for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
