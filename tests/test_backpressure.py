# Backpressure: an application that stops reading stops the pump's receiving task, then the kernel
# drops, visibly, and no memory grows.

from __future__ import annotations

import contextlib
import socket
import sys

import pytest
import trio
import trio.testing

from snaptun_trio import BatchPump, PacketBufPool, UdpBatchReceiver, UdpBatchSender

from . import ends
from .test_pump import Sink, Source, batch, names


async def test_a_full_channel_stops_the_receiving_task(nursery: trio.Nursery) -> None:
    source = Source(*(batch(b"%d" % number) for number in range(20)), ends=False)
    pump = BatchPump(source, Sink(), capacity=3)
    await nursery.start(pump.run)
    await trio.testing.wait_all_tasks_blocked()
    statistics = pump.statistics()
    assert statistics.batches_incoming == 3
    assert statistics.batches_received == 4, "one more waits to be put in"
    assert names([await pump.incoming.receive() for _ in range(20)]) == [
        b"%d" % number for number in range(20)
    ]
    pump.close()


@pytest.mark.core
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a socket dropped")
async def test_an_application_that_stops_reading_costs_no_memory_and_the_drops_show(
    backend: str, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    incoming, outgoing = udp(receive_buffer=50_000), udp()
    pool = PacketBufPool()
    receiver = UdpBatchReceiver(incoming, pool)
    pump = BatchPump(receiver, UdpBatchSender(udp()), capacity=2)
    await nursery.start(pump.run)

    async def flood(rounds: int) -> None:
        for number in range(rounds):
            for _ in range(20):
                outgoing.sendto(number.to_bytes(2, "big") * 500, incoming.getsockname())
            await trio.testing.wait_all_tasks_blocked(0)

    await flood(20)
    first = pump.statistics()
    assert first.batches_received == 2 + 1
    assert first.batches_incoming == 2
    slabs = pool.statistics().most_in_use
    await flood(50)
    second = pump.statistics()
    assert second.batches_received == 3
    assert pool.statistics().most_in_use == slabs <= 4
    assert first.receiver is not None
    assert second.receiver is not None
    assert first.receiver.buffers_dropped_by_kernel is not None
    assert second.receiver.buffers_dropped_by_kernel is not None
    assert second.receiver.buffers_dropped_by_kernel >= (
        first.receiver.buffers_dropped_by_kernel + 50 * 20 - 100
    )

    # Reading resumes, and the stream goes on.
    while pump.statistics().batches_incoming or not nothing_queued(incoming):
        with contextlib.suppress(trio.WouldBlock):
            pump.incoming.receive_nowait()
        await trio.testing.wait_all_tasks_blocked(0)
    outgoing.sendto(b"resumed", incoming.getsockname())
    with trio.fail_after(ends.PATIENCE):
        assert [packet for packet, _ in await pump.incoming.receive()] == [b"resumed"]
    last = pump.statistics().receiver
    assert last is not None
    assert last.buffers_dropped_by_kernel is not None
    assert last.datagrams_received + last.buffers_dropped_by_kernel == 70 * 20 + 1
    await pump.aclose()


def nothing_queued(sock: socket.socket) -> bool:
    """Whether nothing waits in the kernel."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    return False
