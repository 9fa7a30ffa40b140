# Closing, sharing and inheriting: F26 to F30 of the fault matrix.
#
# A close at any moment, by anybody, has one clean outcome, and no call ever reaches a descriptor
# that has become somebody else's.

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from snaptun_trio import (
    PacketBufPool,
    UdpBatchReceiver,
    UdpBatchSender,
    open_batch_pump,
)

from . import harness, laws, ledger, limits, netns, own_process, sockets

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.usefixtures("backend")

Closer = "Callable[[UdpBatchReceiver, trio.socket.SocketType], Awaitable[None]]"


async def close_receiver(receiver: UdpBatchReceiver, sock: trio.socket.SocketType) -> None:
    receiver.close()


async def aclose_receiver(receiver: UdpBatchReceiver, sock: trio.socket.SocketType) -> None:
    await receiver.aclose()


async def close_socket(receiver: UdpBatchReceiver, sock: trio.socket.SocketType) -> None:
    sock.close()


CLOSERS = [close_receiver, aclose_receiver, close_socket]


# -- F26: close while somebody waits


@pytest.mark.parametrize("close", CLOSERS)
async def test_f26_a_waiting_reader_is_told_when_somebody_closes(
    close: Callable[[UdpBatchReceiver, trio.socket.SocketType], Awaitable[None]],
) -> None:
    sock = trio.socket.from_stdlib_socket(sockets.udp())
    receiver = UdpBatchReceiver(sock)
    told = []

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await receiver.receive()
        told.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        await close(receiver, sock)
    assert told == [True]
    with pytest.raises(trio.ClosedResourceError):
        await receiver.receive()
    with pytest.raises(trio.ClosedResourceError):
        receiver.receive_nowait()
    sock.close()


@pytest.mark.own_network
@pytest.mark.parametrize("close_what", ["sender", "socket"])
async def test_f26_a_waiting_writer_is_told_when_somebody_closes(close_what: str) -> None:
    netns.slow_link("8kbit", burst=2000)
    sock = trio.socket.from_stdlib_socket(sockets.udp(send_buffer=2304))
    with sockets.udp() as into:
        sender = UdpBatchSender(sock, gso=False)
        told = []

        async def write() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await sender.send(harness.batch_of([bytes(1000)] * 60, into.getsockname()))
            told.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            assert not told
            if close_what == "sender":
                sender.close()
            else:
                sock.close()
        assert told == [True]
        with pytest.raises(trio.ClosedResourceError):
            await sender.flush()
        laws.sender_adds_up(sender.statistics())
        sender.close()
        laws.sender_adds_up(sender.statistics())
        sock.close()


@pytest.mark.parametrize("close", CLOSERS)
async def test_f26_closed_between_the_wake_and_the_call_no_other_socket_is_read(
    close: Callable[[UdpBatchReceiver, trio.socket.SocketType], Awaitable[None]],
) -> None:
    """The datagram has come and the reader is about to run; then the socket is closed and its
    number is given to another socket, which has a datagram too. Nobody may take that one."""
    sock = trio.socket.from_stdlib_socket(sockets.udp())
    receiver = UdpBatchReceiver(sock)
    number = sock.fileno()
    with sockets.udp() as out:
        outcome: list[object] = []

        async def read() -> None:
            try:
                outcome.append([packet for packet, _ in await receiver.receive()])
            except trio.ClosedResourceError:
                outcome.append("closed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            out.sendto(b"for the old socket", sock.getsockname())
            await close(receiver, sock)
            sock.close()
            with sockets.udp() as trap:
                # Make sure that it is the number; the kernel gives the lowest that is free.
                assert trap.fileno() == number
                out.sendto(b"for the new socket", trap.getsockname())
                await wait_all_tasks_blocked()
                assert outcome in (["closed"], [[b"for the old socket"]])
                assert list(sockets.drain(trap)) == [b"for the new socket"]


async def test_f26_a_standard_library_socket_closed_under_us_is_never_read_by_its_number() -> None:
    """The owner closed it, and the number lives on: every later call says closed."""
    sock = sockets.udp()
    receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
    number = sock.fileno()
    sender.try_queue_packet(b"queued", sock.getsockname())
    trio.lowlevel.notify_closing(sock)
    sock.close()
    with sockets.udp() as trap:
        assert trap.fileno() == number
        trap.sendto(b"mine", trap.getsockname())
        for _ in range(3):
            with pytest.raises(trio.ClosedResourceError):
                await receiver.receive()
            with pytest.raises(trio.ClosedResourceError):
                receiver.receive_nowait()
            with pytest.raises(trio.ClosedResourceError):
                await sender.flush()
            with pytest.raises(trio.ClosedResourceError):
                sender.try_flush_best_effort()
        assert list(sockets.drain(trap)) == [b"mine"]
        # trio itself must not be left with a wrong idea of descriptor -1 (python-trio/trio#3520).
        other = UdpBatchReceiver(trap)
        with trio.move_on_after(0):
            await other.receive()
    laws.sender_adds_up(sender.statistics())


# -- F27, F28: twice, after, and two at once


async def test_f27_closing_twice_does_nothing_and_using_after_says_closed() -> None:
    with sockets.udp() as sock:
        receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
        sender.try_queue_packet(b"x", sock.getsockname())
        for _ in range(2):
            receiver.close()
            sender.close()
            await receiver.aclose()
            await sender.aclose()
        batch = harness.batch_of([b"x"], sock.getsockname())
        for call in (
            receiver.receive_nowait,
            sender.try_flush_best_effort,
            lambda: sender.send_nowait(batch),
            lambda: sender.try_queue_packet(b"x", sock.getsockname()),
            lambda: sender.try_queue_train(batch.trains[0]),
        ):
            with pytest.raises(trio.ClosedResourceError):
                call()
        for coroutine in (
            receiver.receive,
            lambda: receiver.recv_batch(lambda packet, address: None),
            sender.flush,
            lambda: sender.send(batch),
        ):
            with pytest.raises(trio.ClosedResourceError):
                await coroutine()
        laws.sender_adds_up(sender.statistics())
        assert sender.statistics().datagrams_discarded == 1
        assert sock.fileno() >= 0


async def test_f28_a_second_reader_is_refused_and_the_first_is_not_disturbed() -> None:
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        receiver = UdpBatchReceiver(into)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                book.deliver_all(packet for packet, _ in await receiver.receive())

            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            for _ in range(3):
                with pytest.raises(trio.BusyResourceError):
                    await receiver.receive()
            out.sendto(book.write(), into.getsockname())
        laws.l2_clean(book.account())


# -- F29: fork


async def test_f29_a_child_that_inherits_everything_and_leaves_disturbs_nothing() -> None:
    """fork in the middle of traffic; the child closes, collects and exits: the parent goes on."""
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        for number in range(20):
            await sender.send(harness.batch_of(book.write_many(40), into.getsockname()))
            if number % 5 == 2:
                _fork_and_leave(out, into)
            await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())


def _fork_and_leave(*inherited: socket.socket) -> None:
    child = own_process.fork()
    if child == 0:
        for sock in inherited:
            sock.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_f29_a_childs_traffic_never_shows_in_the_parents_memory() -> None:
    """The pool and the send headers are inherited too; what a child receives into them, and what
    it sends with them, must stay its own."""
    with sockets.udp() as out, sockets.udp() as into, sockets.udp() as others:
        pool = PacketBufPool()
        receiver, sender = UdpBatchReceiver(into, pool), UdpBatchSender(out)
        target = into.getsockname()

        def turn(payloads: list[bytes]) -> list[bytes]:
            sender.send_nowait(harness.batch_of(payloads, target, segments=3))
            return [packet for packet, _ in receiver.receive_nowait()]

        assert turn([b"parent"] * 9) == [b"parent"] * 9
        sender.send_nowait(harness.batch_of([b"kept"] * 9, target))
        kept = receiver.receive_nowait()
        child = own_process.fork()
        if child == 0:
            del kept  # In the child nobody sees that slab any more, so it is used again.
            inherited = UdpBatchReceiver(others, pool)
            for number in range(20):
                sender.send_nowait(
                    harness.batch_of([b"child"] * number, others.getsockname(), segments=2)
                )
                while True:
                    try:
                        inherited.receive_nowait()
                    except trio.WouldBlock:
                        break
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert [packet for packet, _ in kept] == [b"kept"] * 9
        for number in range(1, 20):
            payloads = [b"%05d" % number] * number
            assert turn(payloads) == payloads
        assert sender.gso == UdpBatchSender(out).gso


def test_f29_parent_and_child_share_a_queue_and_each_datagram_goes_to_one_of_them() -> None:
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        receiver, sender = UdpBatchReceiver(into, batch_size=16), UdpBatchSender(out)
        reader, writer = os.pipe()
        child = own_process.fork()
        if child == 0:
            with open(writer, "wb") as pipe:
                while True:
                    if os.getppid() == 1:
                        break
                    try:
                        batch = receiver.receive_nowait()
                    except trio.WouldBlock:
                        continue
                    packets = [packet for packet, _ in batch]
                    if b"end" in packets:
                        break
                    pipe.write(b"".join(packets))
            os._exit(0)
        os.close(writer)
        for _ in range(200):
            sender.send_nowait(harness.batch_of(book.write_many(50, size=32), into.getsockname()))
            try:
                batch = receiver.receive_nowait()
            except trio.WouldBlock:
                continue
            book.deliver_all(packet for packet, _ in batch)
        # The child ends when it reads this; until then it takes what is left, and so do we not.
        out.sendto(b"end", into.getsockname())
        with open(reader, "rb") as pipe:
            theirs = pipe.read()
        os.waitpid(child, 0)
        book.deliver_all(theirs[at : at + 32] for at in range(0, len(theirs), 32))
        account = book.account()
        dropped = receiver.statistics().buffers_dropped_by_kernel
        assert (account.missing, account.duplicates, account.damaged) == (0, 0, 0), dropped


# -- threads


def test_two_trio_runs_in_two_threads_do_not_mix_their_datagrams() -> None:
    """Each with sockets of its own. What is shared beneath them, caches and headers, is not theirs
    to notice."""
    failures: list[BaseException] = []

    async def exchange(flow: int) -> None:
        book = ledger.Ledger()
        with sockets.udp() as out, sockets.udp() as into:
            sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
            for number in range(200):
                sizes = [16 + (number * 7 + n) % 90 for n in range(50)]
                datagrams = [book.write(flow, size) for size in sizes]
                await sender.send(harness.batch_of(datagrams, into.getsockname()))
                await harness.collect(receiver, book)
            laws.l2_clean(book.account())
            laws.sender_adds_up(sender.statistics(), book.account())

    def run(flow: int) -> None:
        try:
            trio.run(exchange, flow)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(flow,)) for flow in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# -- F30: nothing left to open


@pytest.mark.own_process
async def test_f30_opening_without_descriptors_fails_cleanly_and_leaks_none() -> None:
    before = limits.open_descriptors()
    for spare in range(3):
        with limits.no_more_descriptors(spare):
            with contextlib.suppress(OSError) if spare else pytest.raises(OSError, match="files"):
                async with open_batch_pump(("127.0.0.1", 0)):
                    pass
        assert limits.open_descriptors() == before


@pytest.mark.own_network
async def test_f30_addresses_that_cannot_be_had_leak_no_descriptor() -> None:
    netns.sysctl("net.ipv4.ip_local_port_range", "40000 40001")
    with sockets.udp("127.0.0.1") as one, sockets.udp("127.0.0.1"):
        taken = one.getsockname()
        before = limits.open_descriptors()
        for address, code in (
            (taken, errno.EADDRINUSE),
            (("127.0.0.1", 0), errno.EADDRINUSE),
            (("10.1.2.3", 0), errno.EADDRNOTAVAIL),
        ):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                async with open_batch_pump(address):
                    raise AssertionError("it could be opened")
            assert caught.value.errno == code
        assert limits.open_descriptors() == before


async def test_f30_receivers_and_senders_own_no_descriptors() -> None:
    with sockets.udp() as sock:
        before = limits.open_descriptors()
        for _ in range(50):
            receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
            await sender.send(harness.batch_of([b"x"], sock.getsockname()))
            await receiver.receive()
        assert limits.open_descriptors() == before


@pytest.mark.own_process
async def test_f30_work_goes_on_while_no_descriptor_is_left() -> None:
    """A process that has run out: what is open already keeps sending and receiving."""
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with limits.no_more_descriptors():
            for _ in range(50):
                await sender.send(harness.batch_of(book.write_many(40), into.getsockname()))
                await harness.collect(receiver, book)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
        laws.l2_clean(book.account())
