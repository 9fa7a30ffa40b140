# Sockets that are "ready" for ever and give nothing: F17, F21 and the traps S4, S10, S11, SHUT_RD.
#
# Each test waits in the trap for the same time twice: once with the loop that everybody writes
# first (wait, try, wait again), once with the library. The naive loop takes a whole processor, if
# it can get one. The library may take at most a twentieth; the figures are printed with -rP.

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from snaptun_trio import SendBatchError, UdpBatchReceiver, UdpBatchSender

from . import harness, ledger, limits, netns, sockets

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.usefixtures("backend")

SECONDS = 0.5
AT_MOST = 0.05


class Naive:
    """The loops that everybody writes first, and how often they went round."""

    def __init__(self) -> None:
        self.rounds = 0

    async def receive(self, sock: socket.socket) -> None:
        while True:
            self.rounds += 1
            try:
                sock.recv(65_536)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
            except OSError:
                await trio.lowlevel.checkpoint()

    async def send(self, sock: socket.socket, data: bytes, target: tuple[str, int]) -> None:
        while True:
            self.rounds += 1
            try:
                sock.sendto(data, target)
            except ConnectionRefusedError:
                await trio.lowlevel.checkpoint()
            except OSError:  # EAGAIN, ENOBUFS: no room.
                await trio.lowlevel.wait_writable(sock)
            else:
                await trio.lowlevel.checkpoint()


async def share_of_processor(wait: Callable[[], Awaitable[object]]) -> float:
    """How much of a processor a wait takes that does not end."""
    with limits.measured() as load:
        with trio.move_on_after(SECONDS):
            await wait()
            raise AssertionError("it came back")
    return load.cpu_seconds / SECONDS


def compare(trap: str, loop: Naive, naive: float, ours: float) -> None:
    """The figures, and the verdict on them.

    On a busy machine the naive loop does not get the whole processor that it would take, so it has
    to show by its rounds that it sits in the trap: a hundred in half a second without need.
    """
    print(f"{trap}: naive {naive:.1%} of a processor, ours {ours:.2%}")
    assert loop.rounds > 100, "the trap does not trap the naive loop: nothing was shown"
    assert ours < AT_MOST


def with_unread_error(sock: socket.socket) -> None:
    """Switch IP_RECVERR on and let an error come in that nobody reads."""
    sockets.with_error_queue(sock)
    with sockets.udp() as dead:
        nobody = dead.getsockname()
    sock.sendto(b"x", nobody)


async def test_s4_f21_an_unread_error_queue_does_not_keep_a_reader_awake() -> None:
    with sockets.udp() as one, sockets.udp() as two:
        with_unread_error(one)
        loop = Naive()
        naive = await share_of_processor(lambda: loop.receive(one))
        receiver = UdpBatchReceiver(two)
        with_unread_error(two)
        ours = await share_of_processor(receiver.receive)
        compare("an unread error queue, reading", loop, naive, ours)
        # And the receiver still receives.
        book = ledger.Ledger()
        one.sendto(book.write(), two.getsockname())
        await harness.collect(receiver, book)
        assert book.account().missing == 0
        assert receiver.statistics().asynchronous_errors[errno.ECONNREFUSED] >= 1


async def test_s4_f21_errors_that_keep_coming_do_not_keep_a_reader_awake() -> None:
    """Every 50 ms another datagram to a dead peer: the queue fills again and again."""
    with sockets.udp() as sock, sockets.udp() as dead:
        nobody = dead.getsockname()
        dead.close()
        sockets.with_error_queue(sock)
        receiver = UdpBatchReceiver(sock)

        async def wait() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receiver.receive)
                while True:
                    try:
                        sock.sendto(b"x", nobody)
                    except ConnectionRefusedError:
                        continue
                    await trio.sleep(0.05)

        assert await share_of_processor(wait) < AT_MOST


@pytest.mark.own_network
async def test_s4_f21_an_unread_error_queue_does_not_keep_a_writer_awake() -> None:
    """EPOLLERR wakes a writer that waits for room as well."""
    netns.slow_link("8kbit")

    def blocked() -> socket.socket:
        sock = sockets.udp(send_buffer=2304)
        sockets.with_error_queue(sock)
        return sock

    with blocked() as one, blocked() as two, sockets.udp() as into, sockets.udp() as dead:
        nobody = dead.getsockname()
        dead.close()
        target = into.getsockname()
        for sock in (one, two):
            sock.sendto(b"x", nobody)
        # The link takes its time; wait until the answers of both dead sends have come.
        for sock in (one, two):
            with trio.fail_after(harness.PATIENCE):
                await trio.lowlevel.wait_readable(sock)
        loop = Naive()
        naive = await share_of_processor(lambda: loop.send(one, bytes(1000), target))
        sender = UdpBatchSender(two, gso=False)
        batch = harness.batch_of([bytes(1000)] * 200, target)
        ours = await share_of_processor(lambda: sender.send(batch))
        compare("an unread error queue, writing", loop, naive, ours)


async def test_shut_rd_does_not_keep_a_reader_awake() -> None:
    def shut() -> socket.socket:
        sock = sockets.udp()
        sock.connect(sock.getsockname())
        sock.shutdown(socket.SHUT_RD)
        return sock

    with shut() as one, shut() as two:
        loop = Naive()
        naive = await share_of_processor(lambda: loop.receive(one))
        receiver = UdpBatchReceiver(two)
        ours = await share_of_processor(receiver.receive)
        compare("SHUT_RD", loop, naive, ours)


@pytest.mark.own_network
async def test_s10_f17_enobufs_with_a_writable_socket_does_not_keep_a_writer_awake() -> None:
    """A datagram that needs more fragments than the buffer holds: poll says go, the kernel no."""
    netns.run("ip link set lo mtu 1500")
    with sockets.udp() as one, sockets.udp() as two, sockets.udp() as into:
        target = into.getsockname()
        sender = UdpBatchSender(two, gso=False)
        for sock in (one, two):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            sock.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
        loop = Naive()
        naive = await share_of_processor(lambda: loop.send(one, bytes(30_000), target))
        with limits.measured() as load:
            with pytest.raises(SendBatchError) as caught:
                await sender.send(harness.batch_of([bytes(30_000)], target))
        assert caught.value.failures[0].error.errno == errno.ENOBUFS
        compare("ENOBUFS", loop, naive, load.cpu_seconds / SECONDS)


@pytest.mark.own_network
async def test_s11_a_socket_without_a_port_is_refused_before_it_can_spin() -> None:
    """No port is left, the socket is writable, and every send says EAGAIN."""
    netns.sysctl("net.ipv4.ip_local_port_range", "40000 40000")
    with (
        sockets.udp("0.0.0.0") as taken,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound,
    ):
        unbound.setblocking(False)
        target = ("127.0.0.1", taken.getsockname()[1])
        loop = Naive()
        naive = await share_of_processor(lambda: loop.send(unbound, b"x", target))
        with limits.measured() as load:
            with pytest.raises(ValueError, match="bound"):
                UdpBatchSender(unbound)
        compare("a socket without a port", loop, naive, load.cpu_seconds / SECONDS)


@pytest.mark.own_network
async def test_a_full_socket_does_not_keep_a_writer_awake() -> None:
    """The ordinary case, for comparison: a link that takes nothing for a long time."""
    netns.slow_link("8kbit")
    with sockets.udp(send_buffer=2304) as out, sockets.udp() as into:
        sender = UdpBatchSender(out, gso=False)
        batch = harness.batch_of([bytes(1000)] * 200, into.getsockname())
        assert await share_of_processor(lambda: sender.send(batch)) < AT_MOST


async def test_waiting_again_and_again_with_a_timeout_is_no_reason_to_be_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hundred receives that were cancelled while nothing came are not a spin trap. The next one
    must be woken by the datagram itself, and not sit out a pause that is meant for a trap."""
    sleeps: list[float] = []
    real_sleep = trio.sleep

    async def watched_sleep(seconds: float) -> None:
        sleeps.append(seconds)
        await real_sleep(seconds)

    with sockets.udp() as out, sockets.udp() as into:
        receiver = UdpBatchReceiver(into)
        for _ in range(100):
            with trio.move_on_after(0.0001):
                await receiver.receive()
        monkeypatch.setattr(trio, "sleep", watched_sleep)
        out.sendto(b"x", into.getsockname())
        assert [packet for packet, _ in await receiver.receive()] == [b"x"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.receive)
            await wait_all_tasks_blocked()
            out.sendto(b"y", into.getsockname())
        assert sleeps == []
        for _ in range(100):
            with trio.move_on_after(0.0001):
                await receiver.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.receive)
            await wait_all_tasks_blocked()
            out.sendto(b"z", into.getsockname())
        assert sleeps == []
