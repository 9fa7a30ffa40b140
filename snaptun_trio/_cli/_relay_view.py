# What is shown of a relay: plain lines for a log, JSON for a program, or a live view for who
# watches. It knows totals and news only, and may be as slow as a terminal is: nobody waits for it.

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from . import _screen
from ._relay_totals import DIRECTIONS, RelayTotals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._talk import Facts

EXPECTED = ("answer", "stopping")  # reasons that nothing is wrong with


def drops(sums: Facts) -> Iterator[tuple[str, int]]:
    """What was dropped, in words, and how many."""
    for direction, name in DIRECTIONS.items():
        flow = sums[direction]
        for reason, count in flow["dropped"].items():
            yield f"dropped {name} ({reason})", count
        yield f"buffers dropped by the kernel {name}", flow["buffers_dropped_by_kernel"]


def summary(totals: RelayTotals) -> Iterator[str]:
    """What there is and was, and what was dropped."""
    sums = totals.sums
    sessions = f"{sums['sessions']:,} sessions of {sums['sessions_created']:,} ever"
    workers = f"{totals.running} of {totals.workers} workers, {totals.restarts} replaced"
    yield f"{sessions}, {sums['sessions_shed']:,} turned away; {workers}"
    yield from (f"{what}: {count:,}" for what, count in drops(sums) if count)


class View:
    """Plain lines: what goes wrong, and what it came to."""

    def __init__(self, head: str) -> None:
        self.head, self._began = head, time.monotonic()
        self._said: dict[str, int] = {}
        self.begin()

    def begin(self) -> None:
        """It relays."""
        print(self.head, flush=True)

    def say(self, line: str) -> None:
        """Something is wrong."""
        print(line, file=sys.stderr, flush=True)

    def show(self, totals: RelayTotals, news: Sequence[str], final: bool) -> None:
        """What is new, and at the end what it came to."""
        said, self._said = self._said, dict(drops(totals.sums))
        new = {what: count - said.get(what, 0) for what, count in self._said.items()}
        wrong = [what for what in new if new[what] and not what.endswith(EXPECTED)]
        if lines := [*news, *(f"{what}: {new[what]:,}" for what in wrong)]:
            self.say("; ".join(lines))
        if final:
            flows = [(name, totals.sums[direction]) for direction, name in DIRECTIONS.items()]
            for name, flow in flows:
                counts = f"{flow['datagrams_in']:,} datagrams in, {flow['datagrams_out']:,} out"
                print(f"{name}: {counts}, {flow['bytes_out']:,} bytes")
            print(*summary(totals), sep="\n", flush=True)


class JsonView(View):
    """An object each time."""

    def begin(self) -> None:
        """The first object says it."""

    def show(self, totals: RelayTotals, news: Sequence[str], final: bool) -> None:
        """Print all sums."""
        if news:
            self.say("; ".join(news))
        facts = {"relaying": self.head, "seconds": time.monotonic() - self._began, "final": final}
        workers = {"workers": totals.running, "worker_restarts": totals.restarts}
        print(json.dumps({**facts, **workers, **totals.sums}), flush=True)


class LiveView(View):
    """A table in place, on standard error; at the end it makes room for lines."""

    def begin(self) -> None:
        """Take a place on the screen."""
        from rich.live import Live

        console = _screen.open_console(stderr=True)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def say(self, line: str) -> None:
        """Above the table."""
        self._live.console.print(line)

    def show(self, totals: RelayTotals, news: Sequence[str], final: bool) -> None:
        """Draw the table anew."""
        from rich.table import Table

        cpu = f"CPU {100 * totals.rates['cpu_seconds']:.0f} %"
        table = Table(title=self.head, caption="\n".join([cpu, *summary(totals)]))
        for heading in ("", "datagrams/s", "Mbit/s", "a receive call", "a send call", "a train"):
            table.add_column(heading, justify="right")
        for direction, name in DIRECTIONS.items():
            flow = totals.rates[direction]
            ratios = [
                f"{flow[count] / flow[calls]:,.1f}" if flow[calls] else "-"
                for count, calls in (
                    ("datagrams_in", "receive_calls"),
                    ("datagrams_out", "send_calls"),
                    ("datagrams_out", "trains_out"),
                )
            ]
            rate, bits = flow["datagrams_out"], flow["bytes_out"] * 8 / 1e6
            table.add_row(name, f"{rate:,.0f}", f"{bits:,.1f}", *ratios)
        self._live.update(table, refresh=True)
        if final:
            self._live.stop()
        super().show(totals, news, final)
