# A socket that is full in the middle of a batch while a pump forwards: what it did not take goes as
# soon as it takes more, whether or not anything else ever comes in.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import BatchPump, UdpBatchReceiver, UdpBatchSender

from . import ends
from .faults import interposer

if TYPE_CHECKING:
    from snaptun_trio import PacketBatch

# Sizes that make no train, so that the socket can be full before each of them.
PACKETS = [bytes([number]) * (100 + number) for number in range(6)]


@pytest.mark.parametrize("full_before", range(6))
async def test_what_a_full_socket_left_of_the_last_batch_is_sent(
    backend: str,
    udp: ends.MakeSocket,
    monkeypatch: pytest.MonkeyPatch,
    nursery: trio.Nursery,
    full_before: int,
) -> None:
    # A call that took something ends short; the next one is told that the socket is full.
    left = [1, 1] if full_before else [1]

    def full_once(message: interposer.Message) -> int:
        if message.payload == PACKETS[full_before] and left:
            left.pop()
            return errno.EAGAIN
        return 0

    interposer.Interposer(monkeypatch, full_once)
    source, middle, sink = udp(), udp(), udp()
    target = ends.address_of(sink)

    def handler(batch: PacketBatch) -> PacketBatch:
        return batch.to(target)

    sender = UdpBatchSender(udp())
    pump = BatchPump(UdpBatchReceiver(middle), sender, handler=handler)
    await nursery.start(pump.run)
    await trio.testing.wait_all_tasks_blocked()
    for packet in PACKETS:
        source.sendto(packet, ends.address_of(middle))
    with trio.fail_after(ends.PATIENCE):
        while pump.statistics().datagrams_received < len(PACKETS):
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
    assert not left, "the socket was full"
    assert sender.is_empty
    assert ends.read_plainly(sink, len(PACKETS)) == PACKETS
    statistics = pump.statistics()
    assert statistics.datagrams_sent == len(PACKETS)
    assert statistics.datagrams_failed == statistics.datagrams_discarded == 0
    pump.close()
