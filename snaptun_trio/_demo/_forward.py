# The two forwarders that the demonstration compares: the library's pump, and the loop that one
# writes with `trio.socket`. Run as a process:
#
#     python -m snaptun_trio._demo._forward pump
#
# Both do the same work: whatever arrives on the socket goes on to one target. Neither looks into
# the datagrams, and neither knows the sender or the sink. The CPU time they report is the whole
# process's, all of its threads, in user mode and in the kernel.

from __future__ import annotations

import socket
import struct
import sys
import time
from typing import TYPE_CHECKING

import trio

import snaptun_trio

from ._ends import LOOPBACK, open_socket, receive_buffer_of
from ._talk import Orders, answer, serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from ._talk import Facts

    Make: TypeAlias = Callable[[trio.socket.SocketType, tuple[str, int]], "Forwarder"]

# SO_MEMINFO of include/uapi/asm-generic/socket.h (Linux 4.12), which the standard library does not
# name, and SK_MEMINFO_DROPS of include/uapi/linux/sock_diag.h: nine 32-bit words, this one last.
SO_MEMINFO = 55
MEMINFO = struct.Struct("=9I")
SK_MEMINFO_DROPS = 8


def datagrams_dropped(udp: trio.socket.SocketType) -> int | None:
    """What the kernel dropped from a socket without GRO, or `None` where it does not tell."""
    if sys.platform != "linux":
        return None
    try:
        meminfo = udp.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size)
    except OSError:
        return None
    dropped: int = MEMINFO.unpack(meminfo)[SK_MEMINFO_DROPS]
    return dropped


class PumpForwarder:
    """The library: a pump with a handler that readdresses each batch."""

    def __init__(self, udp: trio.socket.SocketType, target: tuple[str, int]) -> None:
        self._udp = udp
        self._target = target
        self._pump: snaptun_trio.BatchPump | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        target = self._target
        async with snaptun_trio.open_batch_pump(
            self._udp, handler=lambda batch: batch.to(target)
        ) as self._pump:
            task_status.started()
            await trio.sleep_forever()

    def counts(self) -> Facts:
        assert self._pump is not None
        statistics = self._pump.statistics()
        receiver, sender = statistics.receiver, statistics.sender
        assert receiver is not None
        assert sender is not None
        return {
            "receive_calls": receiver.receive_calls,
            "messages_received": receiver.trains_received,
            "datagrams_received": receiver.datagrams_received,
            "buffers_dropped": receiver.buffers_dropped_by_kernel,
            "gro": receiver.gro,
            "gso": sender.gso,
            "messages_sent": sender.trains_sent,
            "datagrams_sent": sender.datagrams_sent,
            "refused": statistics.datagrams_failed,
        }


class SocketForwarder:
    """Plain trio: receive a datagram, send it on."""

    def __init__(self, udp: trio.socket.SocketType, target: tuple[str, int]) -> None:
        self._udp = udp
        self._target = target
        self._received = 0
        self._sent = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        udp, target = self._udp, self._target
        task_status.started()
        while True:
            packet, _ = await udp.recvfrom(65_536)
            self._received += 1
            await udp.sendto(packet, target)
            self._sent += 1

    def counts(self) -> Facts:
        return {
            "receive_calls": self._received,
            "messages_received": self._received,
            "datagrams_received": self._received,
            "buffers_dropped": datagrams_dropped(self._udp),
            "gro": False,
            "gso": False,
            "messages_sent": self._sent,
            "datagrams_sent": self._sent,
            "refused": 0,
        }


Forwarder = PumpForwarder | SocketForwarder


async def run_forwarder(orders: Orders, make: Make) -> None:
    with await open_socket() as udp:
        answer({"port": udp.getsockname()[1], "receive_buffer": receive_buffer_of(udp)})
        if (settings := await orders.next()) is None:
            return
        forwarder = make(udp, (LOOPBACK, settings["target"]))

        def report(_order: Facts) -> Facts:
            return {**forwarder.counts(), "cpu": time.process_time()}

        await serve(orders, forwarder.run, report)


if __name__ == "__main__":
    kinds: dict[str, Make] = {"pump": PumpForwarder, "trio.socket": SocketForwarder}
    trio.run(run_forwarder, Orders(), kinds[sys.argv[1]])
