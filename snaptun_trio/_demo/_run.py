# One leg of the demonstration, from the parent's side: start the three processes, let the sender
# send, and balance the ledger. What a datagram holds and how a forwarder works is not known here,
# nor how anything is shown.
#
# A leg begins with a warm-up. It is in the ledger, but not in the figures: these are differences
# between two reports of the forwarder, so that no start-up is in them.

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio

from ._ledger import Hop, Ledger
from ._talk import Child, ChildError, open_child

if TYPE_CHECKING:
    from ._talk import Facts

ENDS = "snaptun_trio._demo._ends"
FORWARD = "snaptun_trio._demo._forward"

WARM_UP_DATAGRAMS = 5_000
ANY_NUMBER = 1 << 62
FOR_EVER = 1e9

# What may be under way at most, however large the receive buffers are: about 2.4 MB at 1200 bytes
# keep all three processes busy, and more only leaves the processor's cache.
MOST_UNDER_WAY = 2_000

# How many trains the sender sends back to back before it looks at the time again. With 8 the pump
# took in 200 datagrams a call and cost 0.8 us each, with 1 it took in 130 and cost 1.1.
MOST_TRAINS_AT_ONCE = 8

REPORT_EVERY_SECONDS = 0.1
# How long nothing at all may change before the counts are taken as final, and before sending on is
# given up. A busy machine makes nothing wrong, only late.
PATIENCE_SECONDS = 30.0
GIVE_UP_AFTER_SECONDS = 60.0


@attrs.frozen(kw_only=True)
class Settings:
    """What both legs get."""

    size: int
    """Bytes in a datagram."""
    train: int
    """Datagrams that the sender sends at once."""
    datagrams: int | None
    """How many; rounded up to whole trains. `None`: as many as go in `seconds`."""
    seconds: float


@attrs.frozen
class Leg:
    """One way to forward."""

    name: str
    command: tuple[str, ...]
    """The forwarder's process, as arguments to ``python``."""


LEGS = (
    Leg("snaptun_trio pump", ("-m", FORWARD, "pump")),
    Leg("trio.socket", ("-m", FORWARD, "trio.socket")),
)


@attrs.frozen(kw_only=True)
class Result:
    """What a leg gave."""

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


Progress: TypeAlias = Callable[[str, float, int], None]
"""Called with the leg's name, how much of it is done (0 to 1), and the datagrams delivered."""


def window_for(settings: Settings, receive_buffer: int) -> int:
    """How many datagrams may be under way so that neither receive buffer can overflow.

    The kernel charges a queued datagram with its memory, not its length: 832 bytes for up to 100,
    2304 for 1200, 16 640 for 9000; and frees a quarter of the buffer late. Twice the size and a
    kilobyte is more than both. A train must fit in any case; if it does not, drops are counted.
    """
    held = receive_buffer // (2 * settings.size + 1024)
    return max(settings.train, min(held, MOST_UNDER_WAY))


class _Traffic:
    """The three processes of one leg, once they know each other."""

    def __init__(
        self, sender: Child, forwarder: Child, sink: Child, settings: Settings, patience: float
    ) -> None:
        self._sender = sender
        self._forwarder = forwarder
        self._sink = sink
        self._train = settings.train
        self._patience = patience
        self.window = 0

    async def introduce(self, settings: Settings) -> None:
        at_sender = await self._sender.answer()
        at_forwarder = await self._forwarder.answer()
        at_sink = await self._sink.answer()
        window = window_for(
            settings, min(at_forwarder["receive_buffer"], at_sink["receive_buffer"])
        )
        salt = secrets.randbits(32)
        burst = max(1, min(MOST_TRAINS_AT_ONCE, window // settings.train))
        # Told four times a window, and soon enough that a whole burst always fits.
        every = max(1, min(window // 4, window - burst * settings.train))
        await self._sink.order(salt=salt, tell=at_sender["port"], settle_every=every)
        await self._forwarder.order(target=at_sink["port"])
        await self._sender.order(
            target=at_forwarder["port"],
            size=settings.size,
            train=settings.train,
            window=window,
            burst=burst,
            salt=salt,
        )
        # They answer once they receive. A datagram that came before would have been queued without
        # GRO, and be counted as another sort of buffer.
        await self._forwarder.ask()
        await self._sink.ask()
        self.window = window

    async def send(
        self, datagrams: int, seconds: float, progress: Callable[[Facts, Facts], None]
    ) -> None:
        """Let the sender send so many datagrams, or for so long, whichever ends first."""
        at_sender = await self._sender.ask(datagrams=datagrams, seconds=seconds)
        quiet = _Quiet()
        while at_sender["busy"]:
            await trio.sleep(REPORT_EVERY_SECONDS)
            at_sender, at_sink = await self._sender.ask(), await self._sink.ask()
            progress(at_sender, at_sink)
            if quiet.seconds(at_sink["datagrams"]) > GIVE_UP_AFTER_SECONDS:
                raise ChildError(f"nothing has arrived for {GIVE_UP_AFTER_SECONDS:g} s")

    async def settle(self) -> tuple[Ledger, Facts, Facts, Facts]:
        """Wait until every datagram is accounted for, or nothing changes any more."""
        quiet = _Quiet()
        pause = REPORT_EVERY_SECONDS / 10
        while True:
            at_sender, at_sink = await self._sender.ask(), await self._sink.ask()
            quiet_for = quiet.seconds(at_sink["datagrams"])
            # The forwarder is left in peace while it is measured, if it can be.
            if at_sink["settled"] >= at_sender["sent"] or quiet_for > 1:
                at_forwarder = await self._forwarder.ask()
                ledger = balance(self._train, at_sender, at_forwarder, at_sink)
                if not ledger.problems or quiet_for > self._patience:
                    return ledger, at_sender, at_forwarder, at_sink
            await trio.sleep(pause)
            pause = min(2 * pause, 0.5)


class _Quiet:
    """For how long a count has not changed."""

    def __init__(self) -> None:
        self._count = -1
        self._since = 0.0

    def seconds(self, count: int) -> float:
        if count != self._count:
            self._count, self._since = count, time.perf_counter()
        return time.perf_counter() - self._since


def balance(train: int, at_sender: Facts, at_forwarder: Facts, at_sink: Facts) -> Ledger:
    """The ledger from the three processes' own counts."""
    sent, messages = at_sender["sent"], at_sender["messages"]
    return Ledger(
        hops=(
            Hop(
                name="from the sender to the forwarder",
                messages_sent=messages,
                datagrams_sent=sent,
                messages_received=at_forwarder["messages_received"],
                datagrams_received=at_forwarder["datagrams_received"],
                buffers_dropped=at_forwarder["buffers_dropped"],
                gro=at_forwarder["gro"],
                # No message carries more than a train. So if the average is a train, each is one.
                train=train if messages * train == sent else None,
            ),
            Hop(
                name="from the forwarder to the sink",
                messages_sent=at_forwarder["messages_sent"],
                datagrams_sent=at_forwarder["datagrams_sent"],
                messages_received=at_sink["messages"],
                datagrams_received=at_sink["datagrams"],
                buffers_dropped=at_sink["buffers_dropped"],
                gro=at_sink["gro"],
            ),
        ),
        delivered=at_sink["delivered"],
        duplicates=at_sink["duplicates"],
        corrupt=at_sink["corrupt"],
        refused=at_forwarder["refused"],
    )


def plan(settings: Settings) -> tuple[int, int]:
    """Datagrams to warm up with, and datagrams to measure, both in whole trains."""
    warm_up = -(-WARM_UP_DATAGRAMS // settings.train)
    if settings.datagrams is None:
        return warm_up * settings.train, ANY_NUMBER
    trains = -(-settings.datagrams // settings.train)
    warm_up = min(warm_up, max(trains // 10, 1), trains - 1)
    return warm_up * settings.train, (trains - warm_up) * settings.train


async def run_leg(
    leg: Leg, settings: Settings, progress: Progress, *, patience: float = PATIENCE_SECONDS
) -> Result:
    """Run one leg from start to ledger.

    Raises:
      ChildError: if one of the processes ends early or hangs, or nothing arrives.
    """
    warm_up, measured = plan(settings)
    seconds = FOR_EVER if settings.datagrams else settings.seconds

    def show(at_sender: Facts, at_sink: Facts) -> None:
        by_number = at_sender["sent"] / (warm_up + measured)
        by_time = (time.perf_counter() - at_sender["started"]) / seconds
        done = min(max(by_number, by_time), 0.99)  # the whole of it once it is settled
        progress(leg.name, done, at_sink["delivered"])

    async with (
        open_child("sink", ("-m", ENDS, "sink")) as sink,
        open_child(leg.name, leg.command) as forwarder,
        open_child("sender", ("-m", ENDS, "sender")) as sender,
    ):
        traffic = _Traffic(sender, forwarder, sink, settings, patience)
        await traffic.introduce(settings)
        await traffic.send(warm_up, FOR_EVER, lambda *_: None)
        _, _, forwarder_before, sink_before = await traffic.settle()
        await traffic.send(measured, seconds, show)
        ledger, at_sender, at_forwarder, at_sink = await traffic.settle()
        progress(leg.name, 1.0, at_sink["delivered"])
    return Result(
        name=leg.name,
        ledger=ledger,
        # `time.perf_counter` is one clock for all processes.
        datagrams_per_second=_ratio(
            at_sink["delivered"] - sink_before["delivered"],
            at_sink["last_arrival"] - at_sender["started"],
        ),
        cpu_microseconds=_ratio(
            1e6 * (at_forwarder["cpu"] - forwarder_before["cpu"]),
            at_forwarder["datagrams_sent"] - forwarder_before["datagrams_sent"],
        ),
        datagrams_per_call=_ratio(
            at_forwarder["datagrams_received"] - forwarder_before["datagrams_received"],
            at_forwarder["receive_calls"] - forwarder_before["receive_calls"],
        ),
        gro=at_forwarder["gro"],
        gso=at_forwarder["gso"],
        window=traffic.window,
    )


def _ratio(dividend: float, divisor: float) -> float | None:
    return dividend / divisor if divisor > 0 else None
