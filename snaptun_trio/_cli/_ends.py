# The two ends of a path, each run as a process: the sender, which numbers the datagrams and never
# has more under way than the receive buffers hold, and the sink, which checks each one. Neither
# knows what forwards between them.
#
# Flow control: the sink tells the sender every so often the number up to which everything is
# settled, delivered or lost: a path keeps the order, so what is below the highest number seen and
# has not come will not come. Only when a whole window is lost does nothing come back; then the
# sender writes it off after a while. Nothing of this touches the counts.

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import trio

import snaptun_trio

from . import _datagrams
from ._talk import obey_orders, say

if TYPE_CHECKING:
    from .. import ReceiverStatistics, SenderStatistics
    from ._talk import Facts

LOOPBACK = "127.0.0.1"
# Asked for on every socket. What the kernel gives (net.core.rmem_max), the window follows.
RECEIVE_BUFFER = 4 * 1024 * 1024
WRITE_OFF_AFTER_SECONDS = 1.0


def counts(statistics: SenderStatistics | ReceiverStatistics) -> Facts:
    """The plain numbers of the library's own statistics, by their names."""
    return attrs.asdict(statistics, filter=lambda _, value: not isinstance(value, Mapping))


class Role:
    """What a process of a path does, with one socket. An order is new values for attributes."""

    def __init__(self) -> None:
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.setblocking(False)
        self.udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self.udp.bind((LOOPBACK, 0))

    def obey(self, order: Facts) -> Facts:
        """Take an order, and report."""
        vars(self).update(order)
        granted = self.udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        return {"port": self.udp.getsockname()[1], "receive_buffer": granted}

    async def run(self) -> None:
        """Do it for ever."""
        raise NotImplementedError


async def play(kind: type[Role]) -> None:
    """Play a role until there are no more orders."""
    role = kind()
    obey_orders(trio.lowlevel.current_trio_token().run_sync_soon, role.obey)
    try:
        await role.run()
    except (OSError, snaptun_trio.SendBatchError) as error:
        say({"error": " ".join(str(error).split())})
        raise SystemExit(1) from None


class Sender(Role):
    """Sends trains when told how many: a burst of them back to back, one train in each call."""

    def __init__(self) -> None:
        super().__init__()
        self._sender = snaptun_trio.UdpBatchSender(self.udp)
        self.target = self.salt = self.size = self.train = self.window = self.burst = 0
        self.datagrams, self.seconds, self.started = 0, 0.0, 0.0
        self.sent = self.settled = 0
        self.wanted = trio.Event()

    def obey(self, order: Facts) -> Facts:
        """Begin to send, if the order says so."""
        report = super().obey(order) | counts(self._sender.statistics())
        if "datagrams" in order:
            self.started = time.perf_counter()
            self.wanted.set()
        return report | {"started": self.started, "busy": self.wanted.is_set()}

    async def run(self) -> None:
        while True:
            await self.wanted.wait()
            maker = _datagrams.TrainMaker(self.size, self.train, self.salt)
            until = self.sent + self.datagrams
            while self.sent < until and time.perf_counter() < self.started + self.seconds:
                end = min(self.sent + self.burst * self.train, until)
                # All are made first, so that they leave back to back.
                burst = [self._batch(maker.make(n)) for n in range(self.sent, end, self.train)]
                while self._read_settled() < end - self.window:
                    await self._wait_for_settled()
                for batch in burst:
                    try:
                        self._sender.send_nowait(batch)
                    except trio.WouldBlock:
                        await self._sender.send(batch)
                    self.sent += self.train
                await self._sender.flush()
            self.wanted = trio.Event()

    def _batch(self, data: bytes) -> snaptun_trio.PacketBatch:
        """One train, in a batch of its own: those of one batch could be merged."""
        train = snaptun_trio.PacketTrain(data, self.size, (LOOPBACK, self.target))
        return snaptun_trio.PacketBatch((train,))

    def _read_settled(self) -> int:
        with suppress(BlockingIOError):
            while True:
                self.settled = max(self.settled, int.from_bytes(self.udp.recv(8), "big"))
        return self.settled

    async def _wait_for_settled(self) -> None:
        with trio.move_on_after(WRITE_OFF_AFTER_SECONDS) as scope:
            await trio.lowlevel.wait_readable(self.udp)
        if scope.cancelled_caught:
            self.settled = self.sent


class Sink(Role):
    """Checks every datagram and counts."""

    def __init__(self) -> None:
        super().__init__()
        self._receiver = snaptun_trio.UdpBatchReceiver(self.udp)
        self.salt = self.tell = self.every = self.told = 0
        self._seen = bytearray()
        self.delivered = self.duplicates = self.corrupt = 0
        self.last_arrival = 0.0

    @property
    def settled(self) -> int:
        """The number up to which every datagram has come or will not come."""
        return len(self._seen)

    def obey(self, order: Facts) -> Facts:
        names = ("delivered", "duplicates", "corrupt", "settled", "last_arrival")
        report = super().obey(order) | counts(self._receiver.statistics())
        return report | {name: getattr(self, name) for name in names}

    async def run(self) -> None:
        async for batch in self._receiver:
            for train in batch.trains:
                self._check(train)
            self.last_arrival = time.perf_counter()
            if self.settled >= self.told + self.every:
                self.told = self.settled
                with suppress(OSError):  # a later one says more, and the sender can do without
                    self.udp.sendto(self.told.to_bytes(8, "big"), (LOOPBACK, self.tell))

    def _check(self, train: snaptun_trio.PacketTrain) -> None:
        seen, salt = self._seen, self.salt
        for packet in train:
            number = _datagrams.number_of(packet, salt)
            if number is None:
                self.corrupt += 1
            elif number < len(seen) and seen[number]:
                self.duplicates += 1
            else:
                if number >= len(seen):
                    seen.extend(bytes(number + 1 - len(seen)))
                seen[number] = 1
                self.delivered += 1


if __name__ == "__main__":
    trio.run(play, {"sender": Sender, "sink": Sink}[sys.argv[1]])
