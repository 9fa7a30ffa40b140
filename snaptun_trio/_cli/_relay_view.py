# What is shown of a relay: plain lines for a log, JSON for a program, or a live view for who
# watches. It knows statistics only, and may be as slow as a terminal is: nobody waits for it.

import json
import logging
import sys
import time
from argparse import Namespace
from collections import Counter

import attrs
from rich.console import Group
from rich.live import Live
from rich.table import Table

from .. import RelayStatistics
from . import _terminal

DIRECTIONS = {"to_targets": "to targets", "to_clients": "to clients"}
EXPECTED = ("dropped, answer", "dropped, stopping")  # nothing is wrong with these
RATES = (
    ("datagrams a second", "datagrams_out", "", 1.0),
    ("Mbit/s", "bytes_out", "", 8e-6),
    ("datagrams a receive call", "datagrams_in", "receive_calls", 0.0),
    ("datagrams a send call", "datagrams_out", "send_calls", 0.0),
    ("datagrams a train (GSO)", "datagrams_out", "trains_out", 0.0),
)


def troubles(now: RelayStatistics) -> Counter[str]:
    """What was dropped, and what targets complain of, by the words in which it is said."""
    found: Counter[str] = Counter()
    parts = [(name, getattr(now, way)) for way, name in DIRECTIONS.items()]
    if len(now.targets) > 1:  # of one alone the lines above tell all
        parts += [(f"target {_terminal.written(*one.address)}", one) for one in now.targets]
    for where, part in parts:
        # In buffers: a train of datagrams has one, or several.
        if kernel := getattr(part, "buffers_dropped_by_kernel", 0):
            found[f"{where}: {{:,}} buffers dropped by kernel"] = kernel
        for what in ("dropped", "asynchronous_errors"):
            for reason, count in getattr(part, what).items():
                found[f"{where}: {{:,}} {what.replace('_', ' ')}, {reason}"] = count
    return found


def in_words(found: Counter[str]) -> list[str]:
    """A line for each."""
    return [words.format(count) for words, count in found.items() if count > 0]


def rates(now: RelayStatistics, before: RelayStatistics) -> Table:
    """What the workers have counted since, for each second that they took."""
    seconds = (now.worker_seconds - before.worker_seconds) / max(now.workers, 1)
    table = _terminal.make_table("", *DIRECTIONS.values())
    for heading, what, calls, scale in RATES:
        row = [heading]
        for way in DIRECTIONS:
            flow, then = getattr(now, way), getattr(before, way)
            by = getattr(flow, calls) - getattr(then, calls) if calls else seconds / scale
            row.append(f"{(getattr(flow, what) - getattr(then, what)) / (by or 1):,.1f}")
        table.add_row(*row)
    cpu = now.worker_cpu_seconds - before.worker_cpu_seconds
    table.add_row("CPU", f"{100 * cpu / seconds:.0f} %")
    return table


class View:
    """Shows it on standard output, and what goes wrong on standard error."""

    def __init__(self, head: str, now: RelayStatistics, options: Namespace) -> None:
        self._head, self._json, self._workers = head, options.json, options.workers
        self._said, self._drawn = Counter[str](), now
        self._live: Live | None = None
        if sys.stderr.isatty() and not self._json:
            console = _terminal.open_console(stderr=True)
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        elif not self._json:
            print(head, flush=True)
        # To standard error as it is now: the live view puts above itself what comes there.
        logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%X")

    def show(self, now: RelayStatistics, final: bool) -> None:
        """What is new, and how it stands; at the end what it came to."""
        found = troubles(now)
        said, self._said = self._said, found
        # Each drop, but of errors the first: a target that is dead goes on complaining.
        new = {w: n - said[w] for w, n in found.items() if "dropped" in w or not said[w]}
        if news := in_words(Counter({w: n for w, n in new.items() if not w.endswith(EXPECTED)})):
            logging.warning("; ".join(news))
        ever = f"{now.sessions_created:,} ever, turned away {now.sessions_shed:,} times"
        state = [f"sessions: {ever}; {now.worker_restarts} workers replaced"]
        state += in_words(found)
        if self._json:
            told = {"time": time.time(), "head": self._head, "final": final, **attrs.asdict(now)}
            print(json.dumps(told, default=dict), flush=True)
        elif final:
            if self._live:
                self._live.stop()
            for way, name in DIRECTIONS.items():
                flow = getattr(now, way)
                print(f"{name}: {flow.datagrams_in:,} in, {flow.datagrams_out:,} out")
            print(*state, sep="\n", flush=True)
        elif self._live and now.worker_seconds > self._drawn.worker_seconds:
            here = f"{now.sessions:,} sessions, {now.workers} of {self._workers} workers"
            lines = Group(self._head, here, rates(now, self._drawn), *state)
            self._drawn = now
            self._live.update(lines, refresh=True)
