# How many system calls a job takes, counted where the C library makes them: none only to hear
# what is known already.

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from snaptun_trio import BatchPump, UdpBatchReceiver, UdpBatchSender, _kernel

from . import ends, system_calls

if TYPE_CHECKING:
    from snaptun_trio import PacketBatch

pytestmark = pytest.mark.usefixtures("linux_backend")


@attrs.define
class Calls:
    """How often each of the two was called, whatever came of it."""

    receiving: int = 0
    sending: int = 0


@pytest.fixture
def calls(linux_backend: None, monkeypatch: pytest.MonkeyPatch) -> Calls:
    counted = Calls()

    def receive(*arguments: int) -> int:
        counted.receiving += 1
        return real_receive(*arguments)

    def send(*arguments: int) -> int:
        counted.sending += 1
        return real_send(*arguments)

    _kernel.choose_backend()  # which asks both calls whether they are there
    real_receive, real_send = system_calls.replace(monkeypatch, receive, send)
    return counted


async def test_forwarding_a_datagram_takes_three_calls(
    calls: Calls, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    """One that brings it, one that sends it, and one that says that nothing more is there."""
    source, middle, sink = udp(), udp(), udp()
    target = ends.address_of(sink)

    def handler(batch: PacketBatch) -> PacketBatch:
        return batch.to(target)

    pump = BatchPump(UdpBatchReceiver(middle), UdpBatchSender(udp()), handler=handler)
    await nursery.start(pump.run)
    await trio.testing.wait_all_tasks_blocked()
    for number in range(1, 21):
        calls.receiving = calls.sending = 0
        source.sendto(b"x", ends.address_of(middle))
        with trio.fail_after(ends.PATIENCE):
            while pump.statistics().datagrams_sent < number:
                await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
        assert (calls.receiving, calls.sending) == (2, 1)
    pump.close()


async def test_a_receive_that_waits_takes_two_calls(
    calls: Calls, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    incoming, source = udp(), udp()
    receiver = UdpBatchReceiver(incoming)

    async def send_later() -> None:
        await trio.testing.wait_all_tasks_blocked()
        source.sendto(b"x", ends.address_of(incoming))

    nursery.start_soon(send_later)
    with trio.fail_after(ends.PATIENCE):
        assert len(await receiver.receive()) == 1
    assert calls.receiving == 2


async def test_a_receive_that_need_not_wait_takes_one_call(
    calls: Calls, udp: ends.MakeSocket
) -> None:
    incoming, source = udp(), udp()
    receiver = UdpBatchReceiver(incoming)
    for packet in ends.numbered(10, 100):
        source.sendto(packet, ends.address_of(incoming))
    ends.wait_until_readable(incoming)
    assert len(await receiver.receive()) == 10
    assert calls.receiving == 1


async def test_the_receivers_own_count_is_of_the_calls_that_brought_something(
    calls: Calls, udp: ends.MakeSocket
) -> None:
    incoming, source = udp(), udp()
    receiver = UdpBatchReceiver(incoming)
    for number in range(1, 4):
        source.sendto(b"x", ends.address_of(incoming))
        assert ends.payloads(receiver, 1) == [b"x"]
        assert ends.nothing_waits(receiver)
        assert receiver.statistics().receive_calls == number


async def test_sending_takes_one_call_and_sending_nothing_takes_none(
    calls: Calls, udp: ends.MakeSocket
) -> None:
    with ends.make_pair(udp(), udp()) as pair:
        await pair.sender.flush()
        pair.sender.try_flush_best_effort()
        assert calls.sending == 0
        for packet in ends.numbered(10, 100):
            pair.sender.try_queue_packet(packet, pair.target)
        await pair.sender.flush()
        await pair.sender.flush()
        assert calls.sending == 1
        await pair.sender.send(ends.batch_of(ends.numbered(10, 100), pair.target))
        assert calls.sending == 2
        pair.sender.send_nowait(ends.batch_of(ends.numbered(10, 100), pair.target))
        assert calls.sending == 3
        assert pair.sender.statistics().send_calls == 3
