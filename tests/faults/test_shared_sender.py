# Many tasks on one sender, with a socket that is full: F28 and F48 of the fault matrix.
#
# Nothing is stranded, nothing goes twice, each task learns of its own refusals only, and each
# keeps its order for an address.

from __future__ import annotations

import contextlib
import errno
import random
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from snaptun_trio import SendBatchError, UdpBatchReceiver, UdpBatchSender

from . import harness, laws, ledger, netns, sockets

if TYPE_CHECKING:
    from snaptun_trio import Address

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.own_network]

TASKS = 100


async def test_f28_many_writers_on_a_full_socket_all_get_through() -> None:
    netns.slow_link("8mbit", burst=3000)
    book = ledger.Ledger()
    with sockets.udp(send_buffer=2304) as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out, gso=False), UdpBatchReceiver(into)
        target = into.getsockname()
        packets = book.write_many(60, size=900)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send, harness.batch_of(packets[:30], target))
            await wait_all_tasks_blocked()
            assert not sender.is_empty, "the socket was not full"
            for packet in packets[30:]:
                nursery.start_soon(sender.send_packet, packet, target)
                await wait_all_tasks_blocked()
        assert sender.is_empty
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())


async def cancel_after(turns: int, scope: trio.CancelScope) -> None:
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    scope.cancel()


class Writers:
    """Many tasks that send with one sender, and are cancelled now and then."""

    def __init__(self, sender: UdpBatchSender, target: Address, dead: Address, seed: int) -> None:
        self._sender = sender
        self._target = target
        self._dead = dead
        self._chance = random.Random(seed)
        self.book = ledger.Ledger()
        self.closed = self.told_of_others = 0
        self.returned: list[bytes] = []
        self.cancelled: list[bytes] = []

    async def write(self, flow: int, packets: int) -> None:
        """What one of them does."""
        for _ in range(packets):
            packet = self.book.write(flow, size=self._chance.choice((60, 900)))
            refused = not self._chance.randrange(10)
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    if not self._chance.randrange(4):
                        nursery.start_soon(cancel_after, self._chance.randrange(8), scope)
                    try:
                        await self._send(packet, self._dead if refused else self._target)
                        assert not refused, "nobody told it that its packet was refused"
                        self.returned.append(packet)
                    except (OSError, SendBatchError):
                        self.told_of_others += not refused
                        self.book.refuse(packet, errno.ENETUNREACH)
                    except trio.ClosedResourceError:
                        self.closed += 1
                        return
                if scope.cancelled_caught:
                    self.cancelled.append(packet)
                nursery.cancel_scope.cancel()

    async def _send(self, packet: bytes, address: Address) -> None:
        if self._chance.randrange(2):
            await self._sender.send_packet(packet, address)
        else:
            await self._sender.send(harness.batch_of([packet], address))


async def all_that_was_sent(
    receiver: UdpBatchReceiver, book: ledger.Ledger, sent: int
) -> ledger.Account:
    """Receive until everything that was sent is there, once, whole and in order."""
    account = book.account()
    while account.unique < sent:
        book.deliver_all([packet for packet, _ in await receiver.receive()])
        account = book.account()
    assert (account.duplicates, account.damaged, account.late) == (0, 0, 0)
    return account


NOWHERE: Address = ("198.51.100.1", 9)  # RFC 5737; there is no route to it in the namespace


async def test_f48_100_tasks_that_are_cancelled_on_a_full_socket(seed: int) -> None:
    netns.slow_link("8mbit", burst=3000)
    with sockets.udp(send_buffer=2304) as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out, batch_size=32), UdpBatchReceiver(into)
        writers = Writers(sender, into.getsockname(), NOWHERE, seed)
        async with trio.open_nursery() as nursery:
            for flow in range(TASKS):
                nursery.start_soon(writers.write, flow, 8)
        with contextlib.suppress(SendBatchError):  # what a cancelled task was not told of
            await sender.flush()
        statistics = sender.statistics()
        laws.sender_adds_up(statistics)
        assert sender.is_empty
        account = await all_that_was_sent(receiver, writers.book, statistics.datagrams_sent)
        assert writers.cancelled, "nothing was cancelled"
        assert not writers.told_of_others
        # What is neither delivered nor refused was of a cancelled task.
        assert 0 <= account.missing <= len(writers.cancelled)
        for packet in writers.returned:
            name = ledger.read(packet)
            assert writers.book.times(name) == 1, f"{name}: sent, and never came"


async def test_f48_closing_while_100_tasks_send_wakes_all(seed: int) -> None:
    netns.slow_link("8mbit", burst=3000)
    with sockets.udp(send_buffer=2304) as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out, batch_size=32), UdpBatchReceiver(into)
        writers = Writers(sender, into.getsockname(), NOWHERE, seed)
        async with trio.open_nursery() as nursery:
            for flow in range(TASKS):
                nursery.start_soon(writers.write, flow, 1000)
            while sender.statistics().datagrams_sent < 50:
                writers.book.deliver_all([packet for packet, _ in await receiver.receive()])
            sender.close()
        assert (writers.closed, writers.told_of_others) == (TASKS, 0)
        statistics = sender.statistics()
        laws.sender_adds_up(statistics)
        assert statistics.datagrams_discarded > 0
        await all_that_was_sent(receiver, writers.book, statistics.datagrams_sent)
