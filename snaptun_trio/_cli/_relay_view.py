# What is shown of a relay: plain lines for a log, JSON for a program, or a live view for who
# watches. It knows totals and news only, and may be as slow as a terminal is: nobody waits for it.

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING

from . import _screen
from ._relay_totals import DIRECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.live import Live
    from rich.table import Table

    from ._relay_totals import RelayTotals

FLOWS = ("datagrams_in", "datagrams_out", "bytes_out")
CALLS = ("receive_calls", "send_calls", "trains_out")
RATES = (
    *("datagrams a second", "Mbit/s", "datagrams a receive call", "datagrams a send call"),
    "datagrams a train (GSO)",
)
EXPECTED = ("dropped.answer", "dropped.stopping")  # nothing is wrong with these
DROPPED, ERRORS = "dropped", "asynchronous_errors"


def minus(counts: Counter[str], before: Counter[str]) -> Counter[str]:
    """What was counted since."""
    since = counts.copy()
    since.subtract(before)
    return since


def in_words(counts: Counter[str], *kinds: str) -> Iterator[str]:
    """What there is of these. The kernel drops buffers; a train of datagrams has several."""
    for name, count in counts.items():
        if count > 0 and any(kind in name for kind in kinds):
            way, what, *reason = name.split(".")
            counted = ", ".join([f"{count:,} {what.replace('_', ' ')}", *reason])
            yield f"{DIRECTIONS[way]}: {counted}"


def rates(counts: Counter[str], workers: int) -> Table:
    """What so many workers have counted, for each second that they took."""
    seconds = counts["worker_seconds"] / max(workers, 1)
    columns = []
    for way in DIRECTIONS:
        came, went, size, *calls = (counts[f"{way}.{what}"] for what in (*FLOWS, *CALLS))
        received, sent, trains = (number or 1 for number in calls)
        share = (f"{number:,.1f}" for number in (came / received, went / sent, went / trains))
        columns.append((f"{went / seconds:,.0f}", f"{size * 8e-6 / seconds:,.1f}", *share))
    table = _screen.make_table("", *DIRECTIONS.values())
    for row in zip(RATES, *columns, strict=True):
        table.add_row(*row)
    table.add_row("CPU", f"{100 * counts['cpu_seconds'] / seconds:.0f} %")
    return table


class View:
    """Shows it on standard output, and what goes wrong on standard error."""

    def __init__(self, head: str, totals: RelayTotals, as_json: bool) -> None:
        self._head, self._totals, self._json = head, totals, as_json
        self._said = self._drawn = totals.sums
        self._live: Live | None = None
        if sys.stderr.isatty() and not as_json:
            from rich.live import Live

            console = _screen.open_console(stderr=True)
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        elif not as_json:
            print(head, flush=True)

    def show(self, news: Sequence[str], final: bool) -> None:
        """What is new, and how it stands; at the end what it came to."""
        totals, sums, running = self._totals, self._totals.sums, len(self._totals.reports)
        since, self._said = minus(sums, self._said), sums
        wrong = Counter({name: since[name] for name in since if not name.endswith(EXPECTED)})
        if line := "; ".join([*news, *(() if self._json else in_words(wrong, DROPPED))]):
            print(line, file=sys.stderr, flush=True)  # which the live view puts above itself
        sessions = f"{sums['sessions_created']:,} ever, turned away {sums['sessions_shed']:,} times"
        workers = f"{totals.restarts} workers replaced"
        if not final:
            sessions = f"{sums['sessions']:,} now, {sessions}"
            workers = f"{running} of {totals.workers} workers, {totals.restarts} replaced"
        state = [
            f"sessions: {sessions}; {workers}",
            *in_words(sums, DROPPED, ERRORS),
        ]
        since = minus(sums, self._drawn)
        if self._json:
            facts = {"head": self._head, "final": final, "workers": running}
            print(json.dumps({**facts, "worker_restarts": totals.restarts, **sums}), flush=True)
        elif final:
            if self._live:
                self._live.stop()
            for way, name in DIRECTIONS.items():
                came, went = sums[f"{way}.datagrams_in"], sums[f"{way}.datagrams_out"]
                print(f"{name}: {came:,} in, {went:,} out")
            print(*state, sep="\n", flush=True)
        elif self._live and since["worker_seconds"]:  # each worker reports at its own time
            from rich.console import Group

            self._drawn = sums
            lines = Group(self._head, rates(since, running), *state)
            self._live.update(lines, refresh=True)
