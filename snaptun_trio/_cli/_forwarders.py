# What is compared, each run as a process: the library's pump, and the loops that one writes with
# `trio.socket`, asyncio and uvloop. All do the same work: what arrives goes on to one target.
# None looks into the datagrams. The CPU time that they report is the whole process's.

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

import trio

import snaptun_trio

from ._ends import LOOPBACK, Role, counts, play
from ._talk import obey_orders

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._talk import Facts


class Forwarder(Role):
    """Datagram by datagram; those do the counting themselves."""

    gro = False

    def __init__(self) -> None:
        super().__init__()
        # Where it receives nothing it still asks the kernel what that has dropped.
        self._receiver = snaptun_trio.UdpBatchReceiver(self.udp, gro=self.gro)
        self.target = self.received = self.sent = 0

    def obey(self, order: Facts) -> Facts:
        report = super().obey(order) | counts(self._receiver.statistics())
        return report | self.counts() | {"cpu": time.process_time()}

    def counts(self) -> Facts:
        """What was received and sent, as the library counts it."""
        received = ("receive_calls", "trains_received", "datagrams_received")
        sent = dict.fromkeys(("trains_sent", "datagrams_sent"), self.sent)
        return dict.fromkeys(received, self.received) | sent | {"datagrams_failed": 0, "gso": False}


class SocketForwarder(Forwarder):
    """Plain trio: receive a datagram, send it on."""

    async def run(self) -> None:
        udp = trio.socket.from_stdlib_socket(self.udp)
        while True:
            packet, _ = await udp.recvfrom(65_536)
            self.received += 1
            await udp.sendto(packet, (LOOPBACK, self.target))
            self.sent += 1


class PumpForwarder(Forwarder):
    """The library: a pump with a handler that readdresses each batch."""

    gro = True

    def __init__(self) -> None:
        super().__init__()
        self._sender = snaptun_trio.UdpBatchSender(self.udp)

    def handle(self, batch: snaptun_trio.PacketBatch) -> snaptun_trio.PacketBatch:
        """What becomes of a batch."""
        return batch.to((LOOPBACK, self.target))

    async def run(self) -> None:
        await snaptun_trio.BatchPump(self._receiver, self._sender, handler=self.handle).run()

    def counts(self) -> Facts:
        return counts(self._sender.statistics())


class ProtocolForwarder(Forwarder, asyncio.DatagramProtocol):
    """asyncio, and uvloop: a protocol that is called for each datagram."""

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.received += 1
        self.transport.sendto(data, (LOOPBACK, self.target))
        self.sent += 1

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=self.udp)
        obey_orders(loop.call_soon_threadsafe, self.obey)
        await loop.create_future()


def main(name: str) -> None:
    """Be the forwarder of this name."""
    in_trio = {"snaptun_trio pump": PumpForwarder, "trio.socket": SocketForwarder}
    if name in in_trio:
        trio.run(play, in_trio[name])
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if name == "uvloop":
        from uvloop import new_event_loop as new_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(ProtocolForwarder().run())


if __name__ == "__main__":
    main(sys.argv[1])
