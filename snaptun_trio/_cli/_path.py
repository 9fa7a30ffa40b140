# The path of demo and bench: this process sends to a forwarder in a process of its own, and takes
# in what comes back. So what is under way is what was sent less what has arrived, and there is
# never more of it than the receive buffers hold. How a forwarder works is not known here, nor how
# anything is shown.
#
#     Path.send  --trains-->  forwarder  --trains or datagrams-->  Path._receive

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from .. import PacketBatch, PacketTrain, UdpBatchReceiver, UdpBatchSender
from ._arguments import CommandError
from ._child import Child, Facts, open_child
from ._datagrams import Arrivals, CheckedArrivals, TrainMaker
from ._ledger import Ledger, balance

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from .. import ReceiverStatistics, SenderStatistics
    from ._screen import Progress

FORWARDERS = {
    name: ("-m", "snaptun_trio._cli._forwarders", name)
    for name in ("snaptun_trio pump", "trio.socket", "asyncio", "uvloop")
}
"""Each with its process, as arguments to ``python``, to which its target's port comes."""

ANY_NUMBER = 1 << 62
FOR_EVER = 1e9
LOOPBACK = "127.0.0.1"
# Asked for on both sockets. What the kernel gives (net.core.rmem_max), the window follows.
RECEIVE_BUFFER = 4 * 1024 * 1024
# What may be under way at most, however large the receive buffers are: about 2.4 MB at 1200 bytes
# keep both processes busy, and more only leaves the processor's cache.
MOST_UNDER_WAY = 2_000
WRITE_OFF_AFTER_SECONDS = 1.0
SHOW_EVERY_SECONDS = 0.05
# How long nothing at all may arrive before the counts are taken as final, and before sending on is
# given up. A busy machine makes nothing wrong, only late.
PATIENCE_SECONDS = 30.0


def open_end() -> socket.socket:
    """The socket of either process."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setblocking(False)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    udp.bind((LOOPBACK, 0))
    return udp


def counts(statistics: SenderStatistics | ReceiverStatistics) -> Facts:
    """The plain numbers of the library's own statistics, by their names."""
    return attrs.asdict(statistics, filter=lambda _, value: not isinstance(value, Mapping))


COUNTED = ("cpu", "receive_calls", "datagrams_received", "datagrams_sent")


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
class Result(Ledger):
    """What came of sending once, and the ledger of all that went over the path so far."""

    name: str
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
    """Both ends, and a forwarder between them. ``checked``: each datagram is looked at."""

    def __init__(self, udp: socket.socket, forwarder: Child, checked: bool) -> None:
        self.name, self._forwarder = forwarder.name, forwarder
        self._sender, self._receiver = UdpBatchSender(udp), UdpBatchReceiver(udp)
        self._salt = secrets.randbits(32)
        self._arrivals = CheckedArrivals(salt=self._salt) if checked else Arrivals()
        self._sent = self._arrived = self._written_off = 0
        self._last_arrival = 0.0

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
          CommandError: the forwarder ended early or hangs, or nothing arrives.
        """
        before, delivered_before = await self._forwarder.ask(), self._arrivals.delivered
        own_buffer = self._receiver.statistics().receive_buffer_size
        window = window_for(shape, min(before["receive_buffer_size"], own_buffer))
        make = TrainMaker(shape.size, shape.train, self._salt).make
        target = LOOPBACK, before["port"]
        # What is sent back to back. In smaller pieces it would wake the forwarder more often: with
        # 8 trains of 16 the pump cost twice as much.
        burst = shape.train * max(1, window // 2 // shape.train)
        first, until = self._sent, self._sent + datagrams
        began = now = shown = self._last_arrival = time.perf_counter()
        while self._sent < until and now < began + seconds:
            # All are made first, so that they leave back to back.
            numbers = range(self._sent, min(self._sent + burst, until), shape.train)
            trains = [PacketTrain(make(number), shape.size, target) for number in numbers]
            while self._under_way > window - burst:
                await self._receive()
            if self._silence > PATIENCE_SECONDS:
                raise CommandError(f"nothing has arrived for {PATIENCE_SECONDS:g} s")
            await self._send_trains(trains)
            now = time.perf_counter()
            if now > shown + SHOW_EVERY_SECONDS:
                shown = now
                done = max((self._sent - first) / datagrams, (now - began) / seconds)
                show(self.name, min(done, 0.99), f"{self._arrivals.delivered:,} delivered")
        ledger, after = await self._settle(shape.train)
        delivered, took = self._arrivals.delivered, self._last_arrival - began
        show(self.name, 1.0, f"{delivered:,} delivered")

        def ratio(number: float, divisor: float) -> float | None:
            return number / divisor if divisor > 0 else None

        did = {name: after[name] - before[name] for name in COUNTED}
        return Result(
            **attrs.asdict(ledger),
            name=self.name,
            datagrams_per_second=ratio(delivered - delivered_before, took),
            cpu_microseconds=ratio(1e6 * did["cpu"], did["datagrams_sent"]),
            datagrams_per_call=ratio(did["datagrams_received"], did["receive_calls"]),
            gro=after["gro"],
            gso=after["gso"],
            window=window,
        )

    async def _send_trains(self, trains: Sequence[PacketTrain]) -> None:
        for train in trains:
            batch = PacketBatch((train,))  # of its own: the trains of one batch could be merged
            try:
                self._sender.send_nowait(batch)
            except trio.WouldBlock:
                await self._sender.send(batch)
            self._sent += len(train)
        await self._sender.flush()

    async def _settle(self, train: int) -> tuple[Ledger, Facts]:
        """Wait until everything has arrived or will not, and balance the counts."""
        while True:
            while self._under_way > 0:
                await self._receive()
            forwarder, sink = await self._forwarder.ask(), counts(self._receiver.statistics())
            sink |= attrs.asdict(self._arrivals)
            ledger = balance(counts(self._sender.statistics()), forwarder, sink, train)
            if not ledger.problems or self._silence > PATIENCE_SECONDS:
                return ledger, forwarder
            await self._receive()  # something may be late

    @property
    def _under_way(self) -> int:
        return self._sent - self._arrived - self._written_off

    @property
    def _silence(self) -> float:
        return time.perf_counter() - self._last_arrival

    async def _receive(self) -> None:
        """Take in what comes. If nothing does, that which is under way is lost, or very late."""
        with trio.move_on_after(WRITE_OFF_AFTER_SECONDS) as patience:
            batch = await self._receiver.receive()
        if patience.cancelled_caught:
            self._written_off += self._under_way
            await self._forwarder.ask()  # which fails if it has ended
            return
        self._last_arrival = time.perf_counter()
        self._arrived += len(batch)
        self._written_off += min(0, self._under_way)  # it was only late
        for train in batch.trains:
            self._arrivals.take(train)


@asynccontextmanager
async def open_path(
    name: str, command: Sequence[str], *, checked: bool
) -> AsyncGenerator[Path, None]:
    """Start this forwarder on a path of its own; at the end of the block, end it."""
    with open_end() as udp:
        port = udp.getsockname()[1]
        async with open_child(name, (*command, f"{port}")) as forwarder:
            yield Path(udp, forwarder, checked)
