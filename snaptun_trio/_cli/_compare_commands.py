# `demo` and `bench`: what it costs to forward a datagram on this machine. A demo is the pump beside
# a plain loop, for one shape of traffic and some seconds each; a bench is all that there is, for
# several shapes, in turns of a moment, of which the best is kept: so a busy moment hits all, and
# what else the machine does only ever makes it worse. What runs is in `_traffic`.

import importlib.util
import io
import itertools
import re
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack

import attrs
import trio
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from . import _forwarders, _terminal
from ._terminal import Commands, add_command, new_svg, positive
from ._traffic import LARGEST, NUMBER_BYTES, Result, Shape, open_path

FORWARDERS = {name: ("-m", _forwarders.__name__, name) for name in _forwarders.FORWARDERS}
"""Each with its process, as arguments to ``python``, to which its target's port comes."""
DEMO = ("snaptun_trio pump", "trio.socket")
SHAPES = (Shape(1200, 50), Shape(1200, 16), Shape(64, 64), Shape(1200, 1))
OFTEN, QUICK = (4, 0.3), (2, 0.1)  # rounds, and seconds for each turn
FOR_EVER, ANY_NUMBER = 1e9, 1 << 62
LARGEST_TRAIN = 65_493  # that leaves in one piece: 65 535 less headers, and what cutting it needs
BAR = 20  # characters


@attrs.frozen
class Plan:
    """Who sends what how often; each time for so long, or so many datagrams."""

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    rounds: int = 1
    seconds: float = FOR_EVER
    datagrams: int = ANY_NUMBER


def add_parser(commands: Commands) -> None:
    """Add both commands."""
    what = (
        "Sends datagrams on the loopback interface to a forwarder in a process of its own, and "
        "takes in what comes back, with snaptun_trio's pump and with a trio.socket loop. Each "
        "datagram must have arrived as it was sent, or be counted as dropped by the kernel: "
        "otherwise the exit code is 1."
    )
    summary, example = "forward datagrams, and account for each", "--seconds 10 --size 1400"
    add = add_command(commands, "demo", run_demo, summary, what, example)
    add("--seconds", type=positive(float), default=4.0, help="for each of the two (4)")
    add("--datagrams", type=positive(int), help="for each, in whole trains, instead of seconds")
    add("--size", type=positive(int), default=1200, help="bytes a datagram (1200)")
    add("--train", type=positive(int), default=50, help="datagrams at once, as many as fit (50)")
    what = (
        "Does the same as demo in half a minute, with the pump, trio.socket, asyncio and uvloop in "
        "turn and with several shapes of traffic, and shows what a datagram costs each of them."
    )
    summary, example = "what it costs to forward a datagram here", "--quick --plot cost.svg"
    add = add_command(commands, "bench", run_bench, summary, what, example)
    add("--quick", action="store_true", help="a few seconds, and less exact")
    add("--plot", type=new_svg, metavar="FILE.svg", help="draw the costs as well")


def run_demo(options: Namespace) -> int:
    """The pump and the plain loop, one after the other."""
    if not NUMBER_BYTES <= options.size <= LARGEST:
        options.error(f"argument --size: it is from {NUMBER_BYTES} to {LARGEST}")
    shape = Shape(options.size, min(options.train, max(1, LARGEST_TRAIN // options.size)))
    amount = {"datagrams": options.datagrams} if options.datagrams else {"seconds": options.seconds}
    return compare(options, Plan(DEMO, (shape,), **amount), [])


def run_bench(options: Namespace) -> int:
    """All forwarders, in turns."""
    installed = importlib.util.find_spec("uvloop") is not None
    names = tuple(name for name in FORWARDERS if name != "uvloop" or installed)
    notes = [] if installed else ["uvloop is not installed, and so it is not among them."]
    return compare(options, Plan(names, SHAPES, *(QUICK if options.quick else OFTEN)), notes)


def compare(options: Namespace, plan: Plan, notes: list[str]) -> int:
    """Measure, show the figures, and return 1 if something is not accounted for."""
    with _terminal.open_console(stderr=True).status("starting") as status:  # on a terminal only
        results = trio.run(measure, plan, status.update)
    wrong = [one for one in results if not one.adds_up]
    notes += summary(results, wrong)
    if picture := getattr(options, "plot", None):
        picture.write_text(draw(results, [*_terminal.describe(), *notes]), encoding="utf-8")
        notes.append(f"The picture is in {picture}.")
    facts = {"results": [attrs.asdict(one) for one in results], "adds_up": not wrong}
    _terminal.report(options.json, facts, table_of(results), notes)
    return 1 if wrong else 0


async def measure(plan: Plan, say: Callable[[str], object]) -> list[Result]:
    """What each forwarder did best with each shape; or, if something did not add up, that."""
    best: dict[tuple[Shape, str], Result] = {}
    turns = list(itertools.product(range(plan.rounds), plan.shapes, plan.names))
    with ExitStack() as stack:
        paths = {one: stack.enter_context(open_path(one, *FORWARDERS[one])) for one in plan.names}
        for number, (_, shape, name) in enumerate(turns, 1):
            say(f"{number} of {len(turns)}: {name}, {shape}")
            result = await paths[name].send_all(shape, plan.datagrams, plan.seconds)
            best[shape, name] = min(best.get((shape, name), result), result, key=Result.rank)
    return list(best.values())  # noqa: ASYNC910  # each send has many


def table_of(results: list[Result]) -> Table:
    """The figures; within a shape, each has a bar as long as the cost."""
    table = _terminal.make_table("", "CPU µs a datagram", "", "datagrams/s", "sent", "delivered")
    for shape, group in itertools.groupby(results, key=lambda one: one.shape):
        table.add_row(f"{shape}", style="bold")
        ours = list(group)
        longest = max(one.cpu_microseconds for one in ours)
        for one in ours:
            bar = Bar(longest, 0, one.cpu_microseconds, width=BAR)
            counts = map("{:,.0f}".format, (one.datagrams_per_second, one.sent, one.delivered))
            table.add_row(f"  {one.forwarder}", f"{one.cpu_microseconds:.2f}", bar, *counts)
    return table


def summary(results: list[Result], wrong: list[Result]) -> list[str]:
    """The table in words: who is cheaper, and whether everything is accounted for."""
    lines = []
    ours, plain = results[0], results[-1 if len(results) < 2 else 1]
    if ours.cpu_microseconds and plain.cpu_microseconds:
        ratio = plain.cpu_microseconds / ours.cpu_microseconds
        how_much = f"{ratio:.1f} times less" if ratio >= 1 else f"{1 / ratio:.1f} times more"
        shape = f"{ours.shape}".capitalize()
        lines.append(f"{shape} cost {ours.forwarder} {how_much} CPU than {plain.forwarder}.")
    if not wrong:
        return [*lines, "Everything adds up: each was delivered unharmed or dropped by the kernel."]
    return [*lines, "IT DOES NOT ADD UP:", *(f"{one.forwarder}, {one}" for one in wrong)]


def draw(results: list[Result], notes: list[str]) -> str:
    """The same as a picture, an SVG."""
    console = Console(record=True, width=110, file=io.StringIO(), force_terminal=True)
    console.print(table_of(results), *notes, sep="\n", highlight=False, markup=False)
    svg = console.export_svg(title="snaptun-trio bench")
    # Without the fonts that it would load from somewhere: the system's own will do.
    return re.sub(r"@font-face {.*?}", "", svg, flags=re.DOTALL)
