# What is compared, each run as a process: the library's pump, and the loops that one writes with
# `trio.socket`, asyncio and uvloop. All do the same work: what arrives goes on to one target.
# None looks into the datagrams, nor knows where they come from.
#
# A line on the standard input asks for the counts, which a thread gives: what the loop is doing has
# no part in it. The CPU time is the whole process's.

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

import trio

from .. import BatchPump, PacketBatch, SendBatchError, UdpBatchReceiver, UdpBatchSender
from ._child import say
from ._path import LOOPBACK, counts, open_end

if TYPE_CHECKING:
    from collections.abc import Callable

    from .. import Address
    from ._child import Facts


class Forwarder:
    """Datagram by datagram; those do the counting themselves."""

    gro = False

    def __init__(self, target: Address) -> None:
        self.udp, self.target = open_end(), target
        # Where it receives nothing it still asks the kernel what that has dropped.
        self.receiver = UdpBatchReceiver(self.udp, gro=self.gro)
        self.received = self.sent = 0

    def counts(self) -> Facts:
        """What was received and sent, by the names that the library has for it."""
        received = ("receive_calls", "trains_received", "datagrams_received")
        sent = dict.fromkeys(("trains_sent", "datagrams_sent"), self.sent)
        return dict.fromkeys(received, self.received) | sent | {"datagrams_failed": 0, "gso": False}

    def report(self) -> Facts:
        """The counts, the CPU time, and where datagrams are expected."""
        facts = counts(self.receiver.statistics()) | self.counts()
        return facts | {"cpu": time.process_time(), "port": self.udp.getsockname()[1]}

    async def run(self) -> None:
        """Forward for ever."""
        raise NotImplementedError


class SocketForwarder(Forwarder):
    """Plain trio: receive a datagram, send it on."""

    async def run(self) -> None:
        udp = trio.socket.from_stdlib_socket(self.udp)
        while True:
            packet, _ = await udp.recvfrom(65_536)
            self.received += 1
            await udp.sendto(packet, self.target)
            self.sent += 1


class PumpForwarder(Forwarder):
    """The library: a pump with a handler that readdresses each batch."""

    gro = True

    def __init__(self, target: Address) -> None:
        super().__init__(target)
        self.sender = UdpBatchSender(self.udp)

    def handle(self, batch: PacketBatch) -> PacketBatch:
        """What becomes of a batch."""
        return batch.to(self.target)

    def counts(self) -> Facts:
        return counts(self.sender.statistics())

    async def run(self) -> None:
        await BatchPump(self.receiver, self.sender, handler=self.handle).run()


class ProtocolForwarder(Forwarder, asyncio.DatagramProtocol):
    """asyncio, and uvloop: a protocol that is called for each datagram."""

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.received += 1
        self.transport.sendto(data, self.target)
        self.sent += 1

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=self.udp)
        await loop.create_future()


def forward(forwarder: Forwarder, run: Callable[..., object] = trio.run) -> None:
    """Forward until the standard input ends."""

    def answer() -> None:
        # Not `sys.stdin`, whose lock must be free if the interpreter ends by itself.
        with open(0, closefd=False) as orders:
            for _ in orders:
                say(**forwarder.report())
        os._exit(0)  # whatever the loop is doing

    threading.Thread(target=answer, daemon=True).start()
    try:
        run(forwarder.run)
    except (OSError, SendBatchError) as error:
        say(error=" ".join(str(error).split()))
        raise SystemExit(1) from None


def main(name: str, port: str) -> None:
    """Be the forwarder of this name."""
    target = LOOPBACK, int(port)
    if name == "snaptun_trio pump":
        forward(PumpForwarder(target))
    elif name == "trio.socket":
        forward(SocketForwarder(target))
    else:
        new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
        if name == "uvloop":
            from uvloop import new_event_loop as new_loop
        with asyncio.Runner(loop_factory=new_loop) as runner:
            forward(ProtocolForwarder(target), lambda forever: runner.run(forever()))


if __name__ == "__main__":
    main(*sys.argv[1:])
