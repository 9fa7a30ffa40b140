# `bench`: what it costs to forward a datagram on this machine, with the library's pump and with
# what else there is, for several shapes of traffic. It stands on the same processes as `demo`; what
# runs in them is not known here.
#
# The contenders take turns within short rounds, so that a busy moment hits all of them, and the
# best of the rounds is kept: what else the machine does only ever makes it worse.

from __future__ import annotations

import importlib.util
import io
import itertools
import re
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import attrs
import trio

from . import _screen
from ._arguments import CommandError, add_command, new_file
from ._path import FORWARDERS, Shape, open_path

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.table import Table

    from ._arguments import Commands
    from ._screen import Progress

SHAPES = (Shape(1200, 50), Shape(1200, 16), Shape(64, 64), Shape(1200, 1))
ROUNDS, QUICK_ROUNDS = 4, 2
SECONDS, QUICK_SECONDS = 0.3, 0.1
BAR = 20  # characters


@attrs.frozen
class Cost:
    """The best that a forwarder did with a shape."""

    shape: Shape
    forwarder: str
    cpu_microseconds: float
    datagrams_per_second: float


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "bench",
        run,
        "what it costs to forward a datagram on this machine, and with what else",
        "Forwards datagrams on the loopback interface, in a process of its own, with "
        "snaptun_trio's pump, trio.socket, asyncio and uvloop in turn, and shows the CPU time that "
        "each datagram costs the forwarding process. It takes half a minute.",
        "--quick --plot cost.svg",
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds, and less exact")
    parser.add_argument("--plot", type=new_file, metavar="FILE.svg", help="draw the costs as well")


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    installed = importlib.util.find_spec("uvloop") is not None
    names = [name for name in FORWARDERS if name != "uvloop" or installed]
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if options.quick else (ROUNDS, SECONDS)
    with _screen.open_progress() as progress:
        costs = trio.run(measure, names, rounds, seconds, progress)
    notes = [] if installed else ["uvloop is not installed, and so it is not among them."]
    if options.plot is not None:
        options.plot.write_text(draw(costs, [*_screen.describe(), *notes]), encoding="utf-8")
    results = [attrs.asdict(cost) for cost in costs]
    facts = {"rounds": rounds, "seconds": seconds, "uvloop": installed, "results": results}
    _screen.report(options.json, facts, table_of(costs), notes)
    return 0


async def measure(
    names: Sequence[str], rounds: int, seconds: float, progress: Progress
) -> list[Cost]:
    """The costs of each forwarder for each shape."""
    turns = [(shape, number) for shape in SHAPES for number in range(len(names))]
    best: dict[tuple[Shape, int], Cost] = {}
    async with AsyncExitStack() as stack:
        opened = [open_path(name, FORWARDERS[name], checked=False) for name in names]
        paths = [await stack.enter_async_context(path) for path in opened]
        for done, turn in enumerate(turns * rounds):
            shape, path = turn[0], paths[turn[1]]
            progress("measuring", done / rounds / len(turns), f"{path.name}, {shape}")
            result = await path.send(shape, seconds=seconds)
            cost, rate = result.cpu_microseconds, result.datagrams_per_second
            if result.problems or not cost or not rate:
                why = "; ".join(result.problems) or "nothing was measured"
                raise CommandError(f"{path.name}: {why}")
            if turn not in best or cost < best[turn].cpu_microseconds:
                best[turn] = Cost(shape, path.name, cost, rate)
        progress("measuring", 1.0, "")
    return list(best.values())


def table_of(costs: Sequence[Cost]) -> Table:
    """Within a shape, each has a bar as long as the cost."""
    from rich.bar import Bar

    table = _screen.make_table("", "CPU µs a datagram", "", "datagrams/s")
    for shape, group in itertools.groupby(costs, key=lambda cost: cost.shape):
        table.add_row(f"{shape}", style="bold")
        ours = list(group)
        longest = max(cost.cpu_microseconds for cost in ours)
        for cost in ours:
            bar = Bar(longest, 0, cost.cpu_microseconds, width=BAR)
            rate = f"{cost.datagrams_per_second:,.0f}"
            table.add_row(f"  {cost.forwarder}", f"{cost.cpu_microseconds:.2f}", bar, rate)
    return table


def draw(costs: Sequence[Cost], notes: Sequence[str]) -> str:
    """The same as a picture, an SVG."""
    from rich.console import Console

    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    console.print(table_of(costs), *notes, sep="\n", highlight=False, markup=False)
    # Without the fonts that it would load from somewhere: the system's own will do.
    return re.sub(
        r"@font-face {.*?}", "", console.export_svg(title="snaptun-trio bench"), flags=re.DOTALL
    )
