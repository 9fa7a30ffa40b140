# What is shown of a relay: plain lines for a log, JSON for a program, or a live view for who
# watches. It knows totals and news only, and may be as slow as a terminal is: nobody waits for it.

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from . import _screen
from ._relay_totals import DIRECTIONS

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Sequence

    from rich.live import Live

    from ._relay_totals import RelayTotals

EXPECTED = ("dropped.answer", "dropped.stopping")  # nothing is wrong with these


def minus(counts: Counter[str], before: Counter[str]) -> Counter[str]:
    """What was counted since."""
    since = counts.copy()
    since.subtract(before)
    return since


def drops(counts: Counter[str], *excepted: str) -> Iterator[str]:
    """What was dropped, in words. The kernel drops buffers; a train of datagrams has several."""
    for name, count in counts.items():
        if "dropped" in name and count > 0 and not name.endswith(excepted):
            yield f"{name.replace('.', ' ').replace('_', ' ')}: {count:,}"


def rates(counts: Counter[str], workers: int) -> Iterator[str]:
    """What so many workers have counted, for each second that they took."""
    seconds = counts["worker_seconds"] / max(workers, 1)
    for way in DIRECTIONS:
        out, bits = counts[f"{way}.datagrams_out"], counts[f"{way}.bytes_out"] * 8e-6
        per_receive = counts[f"{way}.datagrams_in"] / (counts[f"{way}.receive_calls"] or 1)
        per_send, per_train = (
            out / (counts[f"{way}.{calls}"] or 1) for calls in ("send_calls", "trains_out")
        )
        yield (
            f"{way.replace('_', ' ')}: {out / seconds:,.0f} datagrams/s, {bits / seconds:,.1f} "
            f"Mbit/s; {per_receive:,.1f} datagrams a receive call, {per_send:,.1f} a send call, "
            f"{per_train:,.1f} a train"
        )
    yield f"CPU: {100 * counts['cpu_seconds'] / seconds:.0f} %"


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
        totals, sums, live = self._totals, self._totals.sums, self._live
        wrong = [] if self._json else drops(minus(sums, self._said), *EXPECTED)
        self._said = sums
        if line := "; ".join([*news, *wrong]):
            print(line, file=sys.stderr, flush=True)  # which the live view puts above itself
        if self._json:
            workers = {"workers": len(totals.reports), "worker_restarts": totals.restarts}
            print(json.dumps({"head": self._head, "final": final, **workers, **sums}), flush=True)
            return
        sessions = f"sessions: {sums['sessions']:,} now, {sums['sessions_created']:,} ever"
        turned_away = f"{sums['sessions_shed']:,} turned away"
        running = f"{len(totals.reports)} of {totals.workers} workers, {totals.restarts} replaced"
        state = [f"{sessions}, {turned_away}; {running}", *drops(sums)]
        since = minus(sums, self._drawn)
        if live and since["worker_seconds"]:  # each worker reports at its own time
            self._drawn = sums
            lines = [self._head, *rates(since, len(totals.reports)), *state]
            live.update("\n".join(lines), refresh=True)
        if final:
            if live:
                live.stop()
            for way in DIRECTIONS:
                counts = (
                    f"{sums[f'{way}.datagrams_{which}']:,} {which}" for which in ("in", "out")
                )
                print(f"{way.replace('_', ' ')}: {', '.join(counts)}")
            print(*state, sep="\n", flush=True)
