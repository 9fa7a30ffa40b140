# Cancellation loses nothing and doubles nothing: F24 and F25 of the fault matrix.
#
# At every checkpoint that an operation has, found by counting; and at random moments under load.
# Afterwards the law L5 holds: what was delivered, what is left in the kernel and what it dropped
# are together what was sent. The statistics add up after every single cancellation.

from __future__ import annotations

import random
import signal
import socket
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from snaptun_trio import (
    BatchPump,
    PacketBatch,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
    open_batch_pump,
)

from . import cancelling, harness, laws, ledger, netns, sockets

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Cancelled = Callable[[Callable[[], Awaitable[object]]], Awaitable[bool]]

pytestmark = pytest.mark.usefixtures("backend")

IN_A_NORMAL_RUN = 5_000
"""Cancellations that each of the tests under load makes; the long forms make a million."""


# -- F24: at every checkpoint


@pytest.mark.parametrize("how", ["receive", "recv_batch", "async for"])
@pytest.mark.parametrize("waiting", [0, 1, 3])
async def test_f24_receiving_cancelled_at_every_checkpoint(how: str, waiting: int) -> None:
    """With datagrams queued before, or coming while it waits: each is delivered exactly once."""
    with sockets.udp() as out, sockets.udp() as into:
        receiver = UdpBatchReceiver(into, batch_size=2)

        async def scenario(cancelled: Cancelled) -> None:
            book = ledger.Ledger()
            delivered: list[bytes] = []

            async def operation() -> None:
                if how == "receive":
                    delivered.extend(packet for packet, _ in await receiver.receive())
                elif how == "recv_batch":
                    await receiver.recv_batch(lambda packet, address: delivered.append(packet))
                else:
                    async for batch in receiver:
                        delivered.extend(packet for packet, _ in batch)
                        if len(delivered) >= 4:
                            break

            async def send_later() -> None:
                await wait_all_tasks_blocked()
                for datagram in book.write_many(4):
                    out.sendto(datagram, into.getsockname())

            for datagram in book.write_many(waiting):
                out.sendto(datagram, into.getsockname())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_later)
                await cancelled(operation)
                laws.receiver_adds_up(receiver.statistics())
            book.deliver_all(delivered)
            await harness.collect(receiver, book)
            laws.l5_cancelled(book.account())

        await cancelling.at_every_checkpoint(scenario, at_least=1)


async def test_f24_a_handler_that_raises_and_a_cancellation_lose_nothing_together() -> None:
    """recv_batch, a handler that raises in the middle, the rest held back; cancelled at every
    checkpoint of the next receive: the rest is still there."""
    with sockets.udp() as out, sockets.udp() as into:
        receiver = UdpBatchReceiver(into)
        sender = UdpBatchSender(out)

        async def scenario(cancelled: Cancelled) -> None:
            book = ledger.Ledger()
            await sender.send(harness.batch_of(book.write_many(10), into.getsockname()))
            seen: list[bytes] = []

            def handler(packet: bytes, address: object) -> None:
                seen.append(packet)
                if len(seen) % 3 == 0:
                    raise RuntimeError("the third")

            with pytest.raises(RuntimeError, match="the third"):
                await receiver.recv_batch(handler)
            assert receiver.statistics().datagrams_held == 7

            async def operation() -> None:
                while len(seen) < 10:
                    with pytest.raises(RuntimeError) if len(seen) < 9 else nullcontext():
                        await receiver.recv_batch(handler)

            await cancelled(operation)
            laws.receiver_adds_up(receiver.statistics())
            book.deliver_all(seen)
            await harness.collect(receiver, book)
            laws.l2_clean(book.account())

        await cancelling.at_every_checkpoint(scenario, at_least=3)


@pytest.mark.own_network
@pytest.mark.parametrize("how", ["flush", "send"])
@pytest.mark.parametrize("gso", [False, True])
async def test_f24_f25_sending_cancelled_at_every_checkpoint_leaves_exactly_the_rest(
    how: str, gso: bool
) -> None:
    """Over a slow link, with EAGAIN many times over: what was sent is an exact prefix, the rest is
    queued, and a later flush sends it; a batch that was not accepted is not sent at all."""
    netns.slow_link("4mbit")
    with sockets.udp(send_buffer=2304) as out, sockets.udp() as into:
        receiver = UdpBatchReceiver(into)
        target = into.getsockname()

        async def scenario(cancelled: Cancelled) -> None:
            book = ledger.Ledger()
            sender = UdpBatchSender(out, gso=gso)
            # Each is larger than the one before, so that no two of them make a train.
            for number in range(20):
                sender.try_queue_packet(book.write(size=600 + number), target)
            trains = [
                PacketTrain(b"".join(book.write_many(2, size=size)), size, target)
                for size in range(500, 510)
            ]
            batch = PacketBatch(trains)

            async def operation() -> None:
                await (sender.send(batch) if how == "send" else sender.flush())

            await cancelled(operation)
            counters = sender.statistics()
            laws.sender_adds_up(counters)
            accepted = counters.datagrams_submitted
            assert accepted in (20, 40)
            sent = counters.datagrams_sent

            def prefix_arrived() -> bool:
                return book.account().unique == sent

            await harness.collect(receiver, book, prefix_arrived)
            account = book.account()
            assert (account.unique, account.duplicates, account.late) == (sent, 0, 0)
            first = account.first_missing
            assert first is None or first.number == sent
            if accepted == 20:
                with trio.fail_after(harness.PATIENCE):
                    await sender.send(batch)
            else:
                with trio.fail_after(harness.PATIENCE):
                    await sender.flush()
            await harness.collect(receiver, book)
            laws.l2_clean(book.account())
            laws.sender_adds_up(sender.statistics(), book.account())

        # On a slow machine the link keeps up, and there are fewer waits.
        await cancelling.at_every_checkpoint(scenario, at_least=2)


async def test_f24_operations_that_never_wait_are_cancelled_before_they_begin() -> None:
    """A scope that is cancelled already: nothing is received, nothing is sent, nothing accepted."""
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        sender.try_queue_packet(book.write(), into.getsockname())
        batch = harness.batch_of(book.write_many(3), into.getsockname())
        out.sendto(book.write(flow=1), into.getsockname())
        before = sender.statistics(), receiver.statistics()
        for operation in (receiver.receive, sender.flush, lambda: sender.send(batch)):
            with trio.CancelScope() as scope:
                scope.cancel()
                await operation()
            assert scope.cancelled_caught
        assert (sender.statistics(), receiver.statistics()) == before
        await sender.send(batch)
        await harness.collect(receiver, book)
        laws.l5_cancelled(book.account())


@pytest.mark.parametrize("handler", [False, True])
async def test_f24_a_pump_cancelled_at_every_checkpoint_accounts_for_every_batch(
    handler: bool,
) -> None:
    """What a cancelled pump had taken from the kernel is sent, or is counted as discarded."""
    with sockets.udp() as out, sockets.udp() as middle, sockets.udp() as into:

        async def scenario(cancelled: Cancelled) -> None:
            book = ledger.Ledger()
            target = into.getsockname()
            last = UdpBatchReceiver(into)
            receiver, sender = UdpBatchReceiver(middle, batch_size=1), UdpBatchSender(middle)
            pump = BatchPump(
                receiver, sender, handler=(lambda batch: batch.to(target)) if handler else None
            )
            for datagram in book.write_many(6):
                out.sendto(datagram, middle.getsockname())
            taken_by_us = 0

            async def operation() -> None:
                nonlocal taken_by_us
                async with trio.open_nursery() as nursery:
                    await nursery.start(pump.run)
                    if not handler:
                        for _ in range(6):
                            batch = await pump.incoming.receive()
                            taken_by_us += len(batch)
                            await pump.outgoing.send(batch.to(target))
                            taken_by_us -= len(batch)
                    await wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()

            await cancelled(operation)
            counters = pump.statistics()
            left = len(list(sockets.drain(middle)))
            assert counters.datagrams_received + left == 6
            arrived = counters.datagrams_sent
            await harness.collect(last, book, lambda: book.account().unique >= arrived)
            account = book.account()
            assert account.duplicates == account.late == account.damaged == 0
            assert account.unique == arrived
            # Each batch is one datagram here, so batches that wait in a channel can be added.
            waiting = counters.batches_incoming + counters.batches_outgoing
            gone = counters.datagrams_discarded + counters.datagrams_failed
            assert left + arrived + gone + waiting + taken_by_us == 6, counters

        await cancelling.at_every_checkpoint(scenario, at_least=3)


async def test_f24_open_batch_pump_cancelled_at_every_checkpoint_closes_its_socket() -> None:
    """At whatever point of opening, working and leaving: no descriptor is left behind."""
    from . import limits

    before = limits.open_descriptors()
    with sockets.udp() as into:
        with_into = limits.open_descriptors()

        async def scenario(cancelled: Cancelled) -> None:
            async def operation() -> None:
                async with open_batch_pump(("127.0.0.1", 0)) as pump:
                    await pump.outgoing.send(harness.batch_of([b"x"] * 100, into.getsockname()))
                    await trio.lowlevel.checkpoint()

            await cancelled(operation)
            assert limits.open_descriptors() == with_into

        await cancelling.at_every_checkpoint(scenario, at_least=3)
    assert limits.open_descriptors() == before


@pytest.mark.parametrize("what", ["receiver", "sender", "pump"])
async def test_f24_closing_cancelled_at_every_checkpoint_has_closed(what: str) -> None:
    """A cancelled `aclose` has done its work all the same."""
    with sockets.udp() as sock:

        async def scenario(cancelled: Cancelled) -> None:
            receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
            pump = BatchPump(receiver, sender)
            sender.try_queue_packet(b"x", sock.getsockname())
            closed = {"receiver": receiver, "sender": sender, "pump": pump}[what]
            await cancelled(closed.aclose)
            with pytest.raises(trio.ClosedResourceError):
                await {"receiver": receiver.receive, "sender": sender.flush, "pump": pump.run}[
                    what
                ]()
            laws.sender_adds_up(sender.statistics())

        await cancelling.at_every_checkpoint(scenario, at_least=1)


@pytest.mark.own_process
@pytest.mark.parametrize("how", ["receive", "recv_batch"])
def test_f24_control_c_at_any_moment_loses_nothing_that_was_received(how: str, seed: int) -> None:
    """KeyboardInterrupt strikes between any two bytecodes of ours, hundreds of times. The
    application's own code is protected here (`enable_ki_protection`), so what is lost is our loss.
    """
    rng = random.Random(seed)
    book = ledger.Ledger()

    def strike(number: int, frame: object) -> None:
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGALRM, strike)
    with sockets.udp() as out, sockets.udp() as into:
        receiver = UdpBatchReceiver(into)

        @trio.lowlevel.enable_ki_protection
        def handler(packet: bytes, address: object) -> None:
            book.deliver(packet)

        @trio.lowlevel.enable_ki_protection
        async def main() -> None:
            signal.setitimer(signal.ITIMER_REAL, rng.random() * 0.002 + 1e-6)
            while True:
                for datagram in book.write_many(5):
                    out.sendto(datagram, into.getsockname())
                if how == "receive":
                    book.deliver_all(packet for packet, _ in await receiver.receive())
                else:
                    await receiver.recv_batch(handler)

        for _ in range(300):
            with pytest.raises(KeyboardInterrupt):
                trio.run(main)
            laws.receiver_adds_up(receiver.statistics())
            harness.collect_nowait(receiver, book)
            laws.l5_cancelled(book.account())


@pytest.mark.parametrize("crash", ["exception in a sibling", "KeyboardInterrupt"])
async def test_f24_a_crash_beside_a_waiting_receive_loses_nothing(crash: str) -> None:
    """A sibling dies, or the user interrupts, with datagrams on their way in."""
    error = RuntimeError("crash") if crash.startswith("exc") else KeyboardInterrupt("crash")
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        receiver = UdpBatchReceiver(into)

        async def read() -> None:
            while True:
                book.deliver_all(packet for packet, _ in await receiver.receive())

        async def die() -> None:
            await wait_all_tasks_blocked()
            for datagram in book.write_many(5):
                out.sendto(datagram, into.getsockname())
            raise error

        for _ in range(50):
            with pytest.raises(BaseExceptionGroup) as caught:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read)
                    nursery.start_soon(die)
            assert caught.value.exceptions == (error,)
            await harness.collect(receiver, book)
            laws.l5_cancelled(book.account())
            laws.receiver_adds_up(receiver.statistics(), book.account().delivered)


# -- F24 under load: at random moments


async def receive_under_load(cancellations: int, seed: int) -> int:
    """Cancel a receive at random moments while datagrams keep coming. Returns how often."""
    rng = random.Random(seed)
    book = ledger.Ledger()
    caught = 0
    with sockets.udp() as out, sockets.udp() as into:
        out.connect(into.getsockname())
        receiver = UdpBatchReceiver(into, batch_size=8)

        async def read(steps: int) -> None:
            for _ in range(steps):
                book.deliver_all(packet for packet, _ in await receiver.receive())

        async def keep_sending() -> None:
            while True:
                if rng.random() < 0.7:
                    out.send(book.write())
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_sending)
            with cancelling.Canceller() as canceller:
                while caught < cancellations:
                    checkpoint = rng.randrange(1, 4)
                    took_effect, _ = await canceller.cancel_at(checkpoint, lambda: read(20))
                    caught += took_effect
            nursery.cancel_scope.cancel()
        laws.receiver_adds_up(receiver.statistics(), book.account().delivered)
        harness.collect_nowait(receiver, book)
        laws.l5_cancelled(
            book.account(), dropped=receiver.statistics().buffers_dropped_by_kernel or 0
        )
    return caught


def saturate(sock: socket.socket) -> None:
    """The smallest send buffer: over a slow link nearly every message waits."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


async def send_under_load(cancellations: int, seed: int) -> int:
    """Cancel flush and send at random moments over a link that is too slow. Returns how often."""
    rng = random.Random(seed)
    book = ledger.Ledger()
    caught = 0
    with sockets.udp() as out, sockets.udp() as into, cancelling.Canceller() as canceller:
        saturate(out)
        target = into.getsockname()
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        pending: PacketBatch | None = None

        async def operation() -> None:
            nonlocal pending
            if rng.random() < 0.5:
                await sender.flush()
                return
            if pending is None:
                pending = PacketBatch(
                    [
                        PacketTrain(b"".join(book.write_many(2, size=100)), 100, target)
                        for _ in range(3)
                    ]
                )
            await sender.send(pending)

        while caught < cancellations:
            while not sender.is_full and rng.random() < 0.9:
                sender.try_queue_packet(book.write(1, rng.randrange(16, 120)), target)
            submitted = sender.statistics().datagrams_submitted
            # Mostly at the first wait; to get to the next one the link has to move.
            checkpoint = 1 if rng.random() < 0.95 else rng.randrange(2, 5)
            took_effect, _ = await canceller.cancel_at(checkpoint, operation)
            caught += took_effect
            if pending and sender.statistics().datagrams_submitted > submitted:
                pending = None  # Accepted: what is left of it is the sender's now.
            if caught % 64 == 0:
                harness.collect_nowait(receiver, book)
        if pending is not None:
            await sender.send(pending)
        with trio.fail_after(harness.PATIENCE):
            await sender.flush()
        await harness.collect(receiver, book)
        laws.sender_adds_up(sender.statistics(), book.account())
        laws.l5_cancelled(book.account())
        assert book.account().late == 0
    return caught


async def test_f24_receive_cancelled_at_random_under_load(seed: int) -> None:
    assert await receive_under_load(IN_A_NORMAL_RUN, seed) >= IN_A_NORMAL_RUN


@pytest.mark.own_network
async def test_f24_f25_sending_cancelled_at_random_under_load(seed: int) -> None:
    netns.slow_link("4mbit")
    assert await send_under_load(IN_A_NORMAL_RUN, seed) >= IN_A_NORMAL_RUN


@pytest.mark.soak
async def test_soak_receive_cancelled_at_random_under_load(rounds: int, seed: int) -> None:
    print(f"{await receive_under_load(rounds // 2, seed)} receives cancelled, nothing lost")


@pytest.mark.soak
@pytest.mark.own_network
async def test_soak_sending_cancelled_at_random_under_load(rounds: int, seed: int) -> None:
    netns.slow_link("4mbit")
    print(f"{await send_under_load(rounds // 2, seed)} sends cancelled, nothing lost or doubled")
