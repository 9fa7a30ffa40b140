# The two ends of the path: the sender, which numbers the datagrams and never has more of them
# under way than the receiving buffers hold, and the sink, which checks each one. Run as a process:
#
#     python -m snaptun_trio._demo._ends sender
#
# Neither knows what forwards between them, so that both legs of the demonstration get the same.
#
# Flow control: the sink tells the sender every so often the number up to which everything is
# settled, that is, delivered or lost: one path keeps the order, so what is below the highest number
# seen and has not come will not come. A lost datagram therefore costs no waiting. Only when
# a whole window is lost does nothing come back; then the sender writes it off after a while.
# Nothing of this touches the counts, which stay exact whatever is lost.

from __future__ import annotations

import socket
import struct
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

import snaptun_trio

from . import _datagrams
from ._talk import Orders, answer, serve

if TYPE_CHECKING:
    from ._talk import Facts

# Asked for on every socket. The kernel may give less (net.core.rmem_max), so what it
# gave is looked at, and the sender's window follows that.
RECEIVE_BUFFER = 4 * 1024 * 1024
WRITE_OFF_AFTER_SECONDS = 1.0
SETTLED = struct.Struct("<Q")
LOOPBACK = "127.0.0.1"


async def open_socket() -> trio.socket.SocketType:
    """A UDP socket on a free port of the loopback interface, with a large receive buffer."""
    udp = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    await udp.bind((LOOPBACK, 0))
    return udp


def receive_buffer_of(udp: trio.socket.SocketType) -> int:
    return udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


class Sender:
    """Sends trains when told how many: a burst of them back to back, one train in each call."""

    def __init__(
        self, udp: trio.socket.SocketType, settled: socket.socket, settings: Facts
    ) -> None:
        self._sender = snaptun_trio.UdpBatchSender(udp)
        self._settled_socket = settled
        self._target = (LOOPBACK, settings["target"])
        self._size: int = settings["size"]
        self._train: int = settings["train"]
        self._window: int = settings["window"]
        self._burst: int = settings["burst"]
        self._maker = _datagrams.TrainMaker(self._size, self._train, settings["salt"])
        self._sent = 0
        self._settled = 0
        self._started = 0.0
        self._until_number = 0
        self._until_time = 0.0
        self._wanted = trio.Event()

    def obey(self, order: Facts) -> Facts:
        """Begin to send, if the order says so, and report."""
        if "datagrams" in order:
            self._started = time.perf_counter()
            self._until_number = self._sent + order["datagrams"]
            self._until_time = self._started + order["seconds"]
            self._wanted.set()
        statistics = self._sender.statistics()
        return {
            "sent": self._sent,
            "messages": statistics.trains_sent,
            "gso": statistics.gso,
            "busy": self._wanted.is_set(),
            "started": self._started,
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            await self._wanted.wait()
            while self._sent < self._until_number and time.perf_counter() < self._until_time:
                burst = self._make_burst()
                self._read_settled()
                while self._sent + self._train * len(burst) > self._settled + self._window:
                    await self._wait_for_settled()
                for batch in burst:
                    try:
                        self._sender.send_nowait(batch)
                    except trio.WouldBlock:
                        await self._sender.send(batch)
                    self._sent += self._train
                await self._sender.flush()
            self._wanted = trio.Event()

    def _make_burst(self) -> list[snaptun_trio.PacketBatch]:
        """The next trains, each in a batch of its own: those of one batch could be merged."""
        end = min(self._sent + self._burst * self._train, self._until_number)
        return [
            snaptun_trio.PacketBatch(
                (snaptun_trio.PacketTrain(self._maker.make(first), self._size, self._target),)
            )
            for first in range(self._sent, end, self._train)
        ]

    def _read_settled(self) -> None:
        with suppress(BlockingIOError):
            while True:
                (settled,) = SETTLED.unpack(self._settled_socket.recv(SETTLED.size))
                self._settled = max(self._settled, settled)

    async def _wait_for_settled(self) -> None:
        with trio.move_on_after(WRITE_OFF_AFTER_SECONDS) as scope:
            await trio.lowlevel.wait_readable(self._settled_socket)
            self._read_settled()
        if scope.cancelled_caught:
            self._settled = self._sent


class Sink:
    """Checks every datagram and counts."""

    def __init__(
        self, udp: trio.socket.SocketType, settled: socket.socket, settings: Facts
    ) -> None:
        self._receiver = snaptun_trio.UdpBatchReceiver(udp)
        self._settled_socket = settled
        self._salt: int = settings["salt"]
        self._every: int = settings["settle_every"]
        self._seen = bytearray()
        self._told = 0
        self._delivered = 0
        self._duplicates = 0
        self._corrupt = 0
        self._last_arrival = 0.0

    def obey(self, order: Facts) -> Facts:
        """Report."""
        statistics = self._receiver.statistics()
        return {
            "messages": statistics.trains_received,
            "datagrams": statistics.datagrams_received,
            "buffers_dropped": statistics.buffers_dropped_by_kernel,
            "gro": statistics.gro,
            "delivered": self._delivered,
            "duplicates": self._duplicates,
            "corrupt": self._corrupt,
            "settled": len(self._seen),
            "last_arrival": self._last_arrival,
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        async for batch in self._receiver:
            for train in batch.trains:
                self._check(train)
            self._last_arrival = time.perf_counter()
            if len(self._seen) >= self._told + self._every:
                self._tell_settled()

    def _check(self, train: snaptun_trio.PacketTrain) -> None:
        seen, salt = self._seen, self._salt
        for packet in train:
            number = _datagrams.number_of(packet, salt)
            if number is None:
                self._corrupt += 1
            elif number < len(seen) and seen[number]:
                self._duplicates += 1
            else:
                if number >= len(seen):
                    seen.extend(bytes(number + 1 - len(seen)))
                seen[number] = 1
                self._delivered += 1

    def _tell_settled(self) -> None:
        self._told = len(self._seen)
        with suppress(OSError):  # a later one says more, and the sender can do without
            self._settled_socket.send(SETTLED.pack(self._told))


async def run_sender(orders: Orders) -> None:
    with await open_socket() as udp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as settled:
        settled.setblocking(False)
        settled.bind((LOOPBACK, 0))
        answer({"port": settled.getsockname()[1]})
        if (settings := await orders.next()) is not None:
            sender = Sender(udp, settled, settings)
            await serve(orders, sender.run, sender.obey)


async def run_sink(orders: Orders) -> None:
    with await open_socket() as udp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as settled:
        settled.setblocking(False)
        answer({"port": udp.getsockname()[1], "receive_buffer": receive_buffer_of(udp)})
        if (settings := await orders.next()) is not None:
            settled.connect((LOOPBACK, settings["tell"]))
            sink = Sink(udp, settled, settings)
            await serve(orders, sink.run, sink.obey)


if __name__ == "__main__":
    trio.run({"sender": run_sender, "sink": run_sink}[sys.argv[1]], Orders())
