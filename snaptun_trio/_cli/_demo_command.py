# `demo`: the pump and a plain trio.socket loop forward datagrams, one after the other, and each
# datagram must be accounted for. What runs is in `_path`; this file chooses, and shows.

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from . import _screen
from ._arguments import add_command, positive
from ._datagrams import SMALLEST
from ._path import ANY_NUMBER, FOR_EVER, FORWARDERS, Shape, open_path

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.table import Table

    from ._arguments import Commands
    from ._path import Result
    from ._screen import Progress

LEGS = ("snaptun_trio pump", "trio.socket")
# The most that the kernel passes on in one piece over IPv4: 65 535 less the headers and what
# segmentation needs. Above it a train is split on the way.
LARGEST_TRAIN = 65_493
LARGEST_DATAGRAM = 65_507  # 65 535 less the IPv4 and the UDP header
LONGEST_TRAIN = 64  # UDP_MAX_SEGMENTS of include/linux/udp.h, before Linux 6.9
WARM_UP_DATAGRAMS = 5_000  # in the ledger, but not in the figures
# With fewer datagrams under way than this, the forwarder is woken for every train or two.
SMALL_WINDOW = 500


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "demo",
        run,
        "forward datagrams with the pump and with trio.socket, and compare",
        "Sends datagrams over real sockets on the loopback interface to a forwarder in a process "
        "of its own, and takes in what comes back: once with snaptun_trio's pump as the forwarder, "
        "once with a plain trio.socket loop. Every datagram is numbered and checksummed, and each "
        "one must have been delivered or be counted as dropped by the kernel; otherwise the exit "
        "code is 1.",
        "--seconds 10 --size 1400",
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--seconds", type=positive(float), default=4.0, help="for each of the two")
    amount.add_argument("--datagrams", type=positive(int), help="for each, in whole trains")
    parser.add_argument("--size", type=positive(int), default=1200, help="bytes a datagram (1200)")
    parser.add_argument("--train", type=positive(int), help="datagrams at once (50, if they fit)")


def run(options: argparse.Namespace) -> int:
    """Run both, show the figures, and return 1 if something is not accounted for."""
    shape = shape_from(options)
    with _screen.open_progress() as progress:
        results = [trio.run(run_leg, name, shape, options, progress) for name in LEGS]
    adds_up = not any(result.problems for result in results)
    settings = {**attrs.asdict(shape), "datagrams": options.datagrams}
    settings["seconds"] = None if options.datagrams else options.seconds
    legs = [attrs.asdict(result) for result in results]
    facts = {"settings": settings, "legs": legs, "adds_up": adds_up}
    _screen.report(options.json, facts, table_of(results), summary(results))
    return 0 if adds_up else 1


def shape_from(options: argparse.Namespace) -> Shape:
    """Check what a converter cannot: how large a train may be."""
    size, train = options.size, options.train
    if not SMALLEST <= size <= LARGEST_DATAGRAM:
        options.error(f"argument --size: it is from {SMALLEST} to {LARGEST_DATAGRAM}")
    most = max(1, min(LONGEST_TRAIN, LARGEST_TRAIN // size))
    if train is not None and train > most:
        options.error(f"argument --train: at most {most} datagrams of {size} bytes")
    return Shape(size, train or min(50, most))


def plan(datagrams: int, train: int) -> tuple[int, int]:
    """Datagrams to warm up with, and datagrams to measure, both in whole trains."""
    trains = -(-datagrams // train)
    warm_up = min(-(-WARM_UP_DATAGRAMS // train), max(trains // 10, 1), trains - 1)
    return warm_up * train, (trains - warm_up) * train


async def run_leg(
    name: str, shape: Shape, options: argparse.Namespace, progress: Progress
) -> Result:
    """One forwarder, from start to ledger."""
    warm_up, measured = plan(options.datagrams or ANY_NUMBER, shape.train)
    seconds = FOR_EVER if options.datagrams else options.seconds
    async with open_path(name, FORWARDERS[name], checked=True) as path:
        await path.send(shape, datagrams=warm_up)
        return await path.send(shape, progress, datagrams=measured, seconds=seconds)


def table_of(results: Sequence[Result]) -> Table:
    """The figures, and what became of the datagrams."""
    figures = ("datagrams/s", "CPU µs a datagram", "sent", "delivered", "dropped by the kernel")
    table = _screen.make_table("", *figures)
    for result in results:
        rate, cost = result.datagrams_per_second, result.cpu_microseconds
        table.add_row(
            result.name,
            "too short to say" if rate is None else f"{rate:,.0f}",
            "too short to say" if cost is None else f"{cost:.2f}",
            f"{result.sent:,}",
            f"{result.delivered:,}",
            "not told" if result.dropped is None else f"{result.dropped:,}",
        )
    return table


def summary(results: Sequence[Result]) -> list[str]:
    """The table in words: who is cheaper, and whether everything is accounted for."""
    lines = []
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
    problems = [f"{result.name}: {text}" for result in results for text in result.problems]
    if problems:
        return [*lines, "IT DOES NOT ADD UP:", *problems]
    good = "Everything adds up: sent = delivered + dropped, and every checksum is right."
    return [*lines, good]
