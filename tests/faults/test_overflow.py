# More than the receiver's buffer holds: F23 and F37 of the fault matrix.
#
# The kernel drops, and counts what it drops in buffers: with GRO off a buffer is a datagram, with
# GRO on a whole train. The statistics say so in their name, and the law L4 is exact in that unit.

from __future__ import annotations

import random
import socket

import pytest
import trio

from snaptun_trio import (
    BatchPump,
    PacketBatch,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import harness, laws, ledger, own_process, sockets

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("receive_buffer", [2304, 20_000, 200_000])
@pytest.mark.parametrize("gso", [False, True])
async def test_f23_with_gro_off_drops_are_datagrams(
    receive_buffer: int, gso: bool, seed: int
) -> None:
    """sent = delivered + dropped, to the datagram."""
    sizes = harness.random_sizes(random.Random(seed), 3000)
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp(receive_buffer=receive_buffer) as into:
        sender = UdpBatchSender(out, gso=gso)
        receiver = UdpBatchReceiver(into, gro=False)
        for start in range(0, len(sizes), 300):
            datagrams = [book.write(size=size) for size in sizes[start : start + 300]]
            await sender.send(harness.batch_of(datagrams, into.getsockname()))
            harness.collect_nowait(receiver, book)

        def settled() -> bool:
            dropped = receiver.statistics().buffers_dropped_by_kernel
            return book.account().missing == dropped

        await harness.collect(receiver, book, settled)
        counters, account = receiver.statistics(), book.account()
        dropped = counters.buffers_dropped_by_kernel
        assert dropped is not None
        assert dropped > 0
        laws.l4_overflow(
            sent=account.sent, delivered=account.delivered, dropped=dropped, unit="datagrams"
        )
        assert account.duplicates == account.damaged == account.late == 0
        laws.sender_adds_up(sender.statistics(), account)
        laws.receiver_adds_up(counters, account.delivered)


@pytest.mark.parametrize("segments", [2, 10, 50])
async def test_f23_with_gro_on_drops_are_trains_and_no_train_is_partly_delivered(
    segments: int,
) -> None:
    """sent = delivered + dropped, in buffers; what is missing is whole trains."""
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp(receive_buffer=50_000) as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        if not sender.gso or not receiver.statistics().gro:
            pytest.skip("this kernel has no UDP_SEGMENT or no UDP_GRO")
        for number in range(500):
            # One train a call: the sender would make one message of several that are alike.
            data = b"".join(book.write_many(segments, flow=1, size=500))
            await sender.send(PacketBatch([PacketTrain(data, 500, into.getsockname())]))
            if number % 120 == 0:
                harness.collect_nowait(receiver, book)

        def settled() -> bool:
            dropped = receiver.statistics().buffers_dropped_by_kernel
            return dropped is not None and book.account().missing == dropped * segments

        await harness.collect(receiver, book, settled)
        counters, account = receiver.statistics(), book.account()
        dropped = counters.buffers_dropped_by_kernel
        assert dropped is not None
        assert dropped > 0
        # One send is one buffer here: same size, at most 64 KiB less the headers, on loopback.
        laws.l4_overflow(
            sent=sender.statistics().trains_sent,
            delivered=counters.trains_received,
            dropped=dropped,
            unit="buffers",
        )
        assert account.missing == dropped * segments
        assert account.duplicates == account.damaged == account.late == 0
        laws.sender_adds_up(sender.statistics(), account)


async def test_f23_an_application_that_stops_reading_loses_in_the_kernel_and_nowhere_else() -> None:
    """The pump's channel fills, its receiving task stops, the kernel drops and counts; then the
    application reads on, and every datagram is either with it or among the drops."""
    book = ledger.Ledger()
    with (
        sockets.udp() as out,
        sockets.udp(receive_buffer=20_000) as into,
        sockets.udp() as back,
    ):
        sender = UdpBatchSender(out, gso=False)
        receiver = UdpBatchReceiver(into, gro=False)
        pump = BatchPump(receiver, UdpBatchSender(back), capacity=2)
        async with trio.open_nursery() as nursery:
            await nursery.start(pump.run)
            for _ in range(200):
                await sender.send(harness.batch_of(book.write_many(50), into.getsockname()))
            held = receiver.statistics()
            assert held.buffers_dropped_by_kernel

            def settled() -> bool:
                return book.account().missing == receiver.statistics().buffers_dropped_by_kernel

            with trio.move_on_after(harness.PATIENCE):
                while not settled():
                    with trio.move_on_after(0.02):
                        batch = await pump.incoming.receive()
                        book.deliver_all(packet for packet, _ in batch)
            nursery.cancel_scope.cancel()
        account = book.account()
        dropped = receiver.statistics().buffers_dropped_by_kernel
        assert dropped is not None
        laws.l4_overflow(
            sent=account.sent, delivered=account.delivered, dropped=dropped, unit="datagrams"
        )
        assert account.duplicates == account.late == account.damaged == 0


async def test_the_drop_count_begins_with_the_receiver_not_with_the_socket() -> None:
    """What the kernel dropped before the receiver was made is not its loss."""
    with sockets.udp() as out, sockets.udp(receive_buffer=2304) as into:
        for _ in range(100):
            out.sendto(bytes(1000), into.getsockname())
        assert sockets.drops(into) > 0
        receiver = UdpBatchReceiver(into)
        assert receiver.statistics().buffers_dropped_by_kernel == 0


def test_f37_a_worker_that_is_killed_takes_its_own_queue_with_it_and_nothing_else() -> None:
    """Two processes share a port; one is killed with datagrams waiting. The other loses nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as survivor:
        survivor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        survivor.setblocking(False)
        survivor.bind(("127.0.0.1", 0))
        port = survivor.getsockname()[1]
        ready, tell = socket.socketpair()
        child = own_process.fork()
        if child == 0:
            worker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", port))
            tell.send(b"!")
            signal_never_comes, _ = socket.socketpair()
            signal_never_comes.recv(1)
        with ready, tell:
            ready.recv(1)
        receiver = UdpBatchReceiver(survivor)
        book, theirs = ledger.Ledger(), 0
        flows = [sockets.udp() for _ in range(40)]
        ours: list[int] = []
        for flow, sock in enumerate(flows):
            sock.sendto(book.write(flow), ("127.0.0.1", port))
            before = book.account().delivered
            harness.collect_nowait(receiver, book)
            if book.account().delivered > before:
                ours.append(flow)
            else:
                theirs += 1
        assert ours
        assert theirs
        own_process.kill(child)
        for flow, sock in enumerate(flows):
            for _ in range(5):
                sock.sendto(book.write(flow), ("127.0.0.1", port))
        harness.collect_nowait(receiver, book)
        account = book.account()
        assert account.missing == theirs  # Exactly what waited in the worker's queue.
        assert account.duplicates == account.late == 0
        for sock in flows:
            sock.close()
