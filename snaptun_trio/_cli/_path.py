# A path from outside: its three processes are started, the sender is let send, and the ledger is
# balanced. What a datagram holds and how a forwarder works is not known here, nor how anything is
# shown.

from __future__ import annotations

import secrets
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from ._arguments import CommandError
from ._ledger import Hop, Ledger
from ._talk import Child, open_child

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from ._screen import Progress
    from ._talk import Facts

ENDS = "snaptun_trio._cli._ends"
FORWARDERS = {
    name: ("-m", "snaptun_trio._cli._forwarders", name)
    for name in ("snaptun_trio pump", "trio.socket", "asyncio", "uvloop")
}
"""Each with its process, as arguments to ``python``."""

ANY_NUMBER = 1 << 62
FOR_EVER = 1e9
# What may be under way at most, however large the receive buffers are: about 2.4 MB at 1200 bytes
# keep all three processes busy, and more only leaves the processor's cache.
MOST_UNDER_WAY = 2_000
# How many trains the sender sends back to back before it looks at the time again. With 8 the pump
# took in 200 datagrams a call and cost 0.8 us each, with 1 it took in 130 and cost 1.1.
MOST_TRAINS_AT_ONCE = 8
REPORT_EVERY_SECONDS = 0.05
# How long nothing at all may change before the counts are taken as final, and before sending on is
# given up. A busy machine makes nothing wrong, only late.
PATIENCE_SECONDS = 30.0
GIVE_UP_AFTER_SECONDS = 60.0


@attrs.frozen
class Shape:
    """What is sent: datagrams of so many bytes, so many of them at once."""

    size: int
    train: int

    def __str__(self) -> str:
        if self.train == 1:
            return f"singles of {self.size} bytes"
        return f"trains of {self.train} x {self.size} bytes"


@attrs.frozen(kw_only=True)
class Result:
    """What came of sending once. The ledger is of all that went over the path so far."""

    name: str
    ledger: Ledger
    datagrams_per_second: float | None
    cpu_microseconds: float | None
    """CPU time of the forwarding process for each datagram, user and system."""
    datagrams_per_call: float | None
    """How many datagrams a receive call of the forwarder brought."""
    gro: bool
    gso: bool
    """Whether the forwarder received and sent trains."""
    window: int
    """The most datagrams that were under way at the same time."""


def window_for(shape: Shape, receive_buffer: int) -> int:
    """How many datagrams may be under way so that neither receive buffer can overflow.

    The kernel charges a queued datagram with its memory, not its length: 832 bytes for up to 100,
    2304 for 1200, 16 640 for 9000; and frees a quarter of the buffer late. Twice the size and a
    kilobyte is more than both. A train must fit in any case; if it does not, drops are counted.
    """
    held = receive_buffer // (2 * shape.size + 1024)
    return max(shape.train, min(held, MOST_UNDER_WAY))


class Path:
    """A sender, a forwarder and a sink."""

    def __init__(self, name: str, sender: Child, forwarder: Child, sink: Child) -> None:
        self.name = name
        self._sender, self._forwarder, self._sink = sender, forwarder, sink
        self._salt = secrets.randbits(32)

    async def send(
        self,
        shape: Shape,
        show: Progress = lambda *_: None,
        *,
        datagrams: int = ANY_NUMBER,
        seconds: float = FOR_EVER,
    ) -> Result:
        """Send so many datagrams, in whole trains, or for so long, and wait for the last.

        Raises:
          CommandError: a process ended early or hangs, or nothing arrives.
        """
        children = (self._sender, self._forwarder, self._sink)
        at_sender, before, sink_before = [await child.ask() for child in children]
        window = window_for(shape, min(before["receive_buffer"], sink_before["receive_buffer"]))
        burst = max(1, min(MOST_TRAINS_AT_ONCE, window // shape.train))
        # Told four times a window, and soon enough that a whole burst always fits.
        every = max(1, min(window // 4, window - burst * shape.train))
        await self._sink.ask(salt=self._salt, tell=at_sender["port"], every=every)
        await self._forwarder.ask(target=sink_before["port"])
        to = {"target": before["port"], "salt": self._salt, "window": window, "burst": burst}
        first = at_sender["datagrams_sent"]
        what = {**attrs.asdict(shape), "settled": first, "datagrams": datagrams, "seconds": seconds}
        await self._sender.ask(**to, **what)
        came, since = -1, 0.0
        while True:
            await trio.sleep(REPORT_EVERY_SECONDS)
            at_sender, at_sink = await self._sender.ask(), await self._sink.ask()
            now = time.perf_counter()
            if at_sink["datagrams_received"] != came:
                came, since = at_sink["datagrams_received"], now
            by_number = (at_sender["datagrams_sent"] - first) / max(datagrams, 1)
            done = max(by_number, (now - at_sender["started"]) / seconds)
            done = min(done, 0.99) if at_sender["busy"] else 1.0
            show(self.name, done, f"{at_sink['delivered']:,} delivered")
            settled = at_sink["settled"] >= at_sender["datagrams_sent"]
            if at_sender["busy"]:
                if now - since > GIVE_UP_AFTER_SECONDS:
                    raise CommandError(f"nothing has arrived for {GIVE_UP_AFTER_SECONDS:g} s")
            # The forwarder is left in peace while it is measured, if it can be.
            elif settled or now - since > 1:
                after = await self._forwarder.ask()
                ledger = balance(shape.train, at_sender, after, at_sink)
                if not ledger.problems or now - since > PATIENCE_SECONDS:
                    break

        def ratio(name: str, earlier: Facts, later: Facts, divisor: float) -> float | None:
            return (later[name] - earlier[name]) / divisor if divisor > 0 else None

        calls = after["receive_calls"] - before["receive_calls"]
        sent = after["datagrams_sent"] - before["datagrams_sent"]
        # `time.perf_counter` is one clock for all processes.
        took = at_sink["last_arrival"] - at_sender["started"]
        return Result(
            name=self.name,
            ledger=ledger,
            datagrams_per_second=ratio("delivered", sink_before, at_sink, took),
            cpu_microseconds=ratio("cpu", before, after, sent / 1e6),
            datagrams_per_call=ratio("datagrams_received", before, after, calls),
            gro=after["gro"],
            gso=after["gso"],
            window=window,
        )


def balance(train: int, at_sender: Facts, at_forwarder: Facts, at_sink: Facts) -> Ledger:
    """The ledger from the three processes' own counts."""

    def hop(name: str, sender: Facts, receiver: Facts, train: int | None = None) -> Hop:
        fields = [field.name for field in attrs.fields(Hop)]
        counts: Facts = {key: (sender if "_sent" in key else receiver).get(key) for key in fields}
        return Hop(**counts | {"name": name, "train": train})

    # No message carries more than a train. So if the average is a train, each is one.
    all_trains = at_sender["trains_sent"] * train == at_sender["datagrams_sent"]
    return Ledger(
        hops=(
            hop("to the forwarder", at_sender, at_forwarder, train if all_trains else None),
            hop("from the forwarder to the sink", at_forwarder, at_sink),
        ),
        refused=at_forwarder["datagrams_failed"],
        **{count: at_sink[count] for count in ("delivered", "duplicates", "corrupt")},
    )


@asynccontextmanager
async def open_path(name: str, command: Sequence[str]) -> AsyncGenerator[Path, None]:
    """Start the processes of a path with this forwarder; at the end of the block, end them."""
    async with (
        open_child("sink", ("-m", ENDS, "sink")) as sink,
        open_child(name, command) as forwarder,
        open_child("sender", ("-m", ENDS, "sender")) as sender,
    ):
        yield Path(name, sender, forwarder, sink)
