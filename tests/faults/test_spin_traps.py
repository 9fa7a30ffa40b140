# Sockets that are "ready" for ever and give nothing: F17, F21 and the traps S4, S10, S11, SHUT_RD.
#
# Each test waits in the trap twice: with the loop that everybody writes first (wait, try, wait
# again), and with the library. What counts is how often tasks run, on a clock that jumps to the
# next deadline when all of them rest. The naive loop runs two hundred times, and not a moment
# passes; the library lets twenty seconds pass in some more. The figures are printed with -rP.

from __future__ import annotations

import errno
import math
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from snaptun_trio import SendBatchError, UdpBatchReceiver, UdpBatchSender

from .. import ends
from . import harness, ledger, netns, sockets

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

pytestmark = pytest.mark.usefixtures("backend")

TRAPPED = 200  # turns without a moment's rest
SECONDS = 20
MOST_TURNS = 500 * SECONDS  # a turn with a system call takes some 50 us: a fortieth of a processor
DRAINED = 50  # turns where the cause is taken away, and nothing wakes the task any more


class Turns(trio.abc.Instrument):
    """Counts how often tasks run inside its block, and ends the block after so many turns."""

    def __init__(self, most: int) -> None:
        self.count = 0
        self._most = most
        self._scope = trio.CancelScope()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1
        if self.count >= self._most:
            self._scope.cancel()

    def __enter__(self) -> Self:
        self._scope.__enter__()
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        trio.lowlevel.remove_instrument(self)
        return bool(self._scope.__exit__(kind, error, traceback))


async def receive_naively(sock: socket.socket) -> None:
    while True:
        try:
            sock.recv(65_536)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
        except OSError:
            await trio.lowlevel.checkpoint()


async def send_naively(sock: socket.socket, data: bytes, target: tuple[str, int]) -> None:
    while True:
        try:
            sock.sendto(data, target)
        except ConnectionRefusedError:
            await trio.lowlevel.checkpoint()
        except OSError:  # EAGAIN, ENOBUFS: no room.
            await trio.lowlevel.wait_writable(sock)
        else:
            await trio.lowlevel.checkpoint()


async def show_the_trap(loop: Awaitable[object]) -> None:
    """A naive loop spins in it: it never rests, so no time passes."""
    start = trio.current_time()
    with Turns(TRAPPED) as turns:
        await loop
    assert turns.count >= TRAPPED
    assert trio.current_time() == start, "the trap does not trap the naive loop: nothing was shown"


async def rest_in_the_trap(
    trap: str, wait: Callable[[], Awaitable[object]], most: int = MOST_TURNS
) -> None:
    """A wait of ours that does not end rests nearly all the time."""
    start = trio.current_time()
    with Turns(most) as turns, trio.move_on_after(SECONDS):
        await wait()
        raise AssertionError("it came back")
    passed = trio.current_time() - start
    print(f"{trap}: {turns.count} turns in {passed:.1f} seconds")
    assert turns.count < most
    assert passed >= SECONDS


def with_unread_error(sock: socket.socket) -> None:
    """Switch IP_RECVERR on and let an error come in that nobody reads."""
    sockets.with_error_queue(sock)
    with sockets.udp() as dead:
        sock.sendto(b"x", ends.deafen(dead))


async def test_s4_f21_an_unread_error_queue_does_not_keep_a_reader_awake(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with sockets.udp() as one, sockets.udp() as two:
        with_unread_error(one)
        await show_the_trap(receive_naively(one))
        receiver = UdpBatchReceiver(two)
        with_unread_error(two)
        await rest_in_the_trap("an unread error queue, reading", receiver.receive, DRAINED)
        # And the receiver still receives.
        book = ledger.Ledger()
        one.sendto(book.write(), two.getsockname())
        await harness.collect(receiver, book)
        assert book.account().missing == 0
        assert receiver.statistics().asynchronous_errors[errno.ECONNREFUSED] >= 1


async def test_s4_f21_errors_that_keep_coming_do_not_keep_a_reader_awake(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Every 50 ms another datagram to a dead peer: the queue fills again and again."""
    with sockets.udp() as sock, sockets.udp() as dead:
        nobody = ends.deafen(dead)
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

        await rest_in_the_trap("errors that keep coming", wait)


@pytest.mark.own_network
async def test_s4_f21_an_unread_error_queue_does_not_keep_a_writer_awake(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """EPOLLERR wakes a writer that waits for room as well."""
    netns.slow_link("8kbit")

    def blocked() -> socket.socket:
        sock = sockets.udp(send_buffer=2304)
        sockets.with_error_queue(sock)
        return sock

    with blocked() as one, blocked() as two, sockets.udp() as into, sockets.udp() as dead:
        nobody = ends.deafen(dead)
        target = into.getsockname()
        for sock in (one, two):
            sock.sendto(b"x", nobody)
        # The link takes its time, in which the clock of the tests must not jump.
        autojump_clock.autojump_threshold = math.inf
        for sock in (one, two):
            await trio.lowlevel.wait_readable(sock)
        autojump_clock.autojump_threshold = 0
        await show_the_trap(send_naively(one, bytes(1000), target))
        sender = UdpBatchSender(two, gso=False)
        batch = harness.batch_of([bytes(1000)] * 200, target)
        await rest_in_the_trap(
            "an unread error queue, writing", lambda: sender.send(batch), DRAINED
        )


async def test_shut_rd_does_not_keep_a_reader_awake(autojump_clock: trio.testing.MockClock) -> None:
    def shut() -> socket.socket:
        sock = sockets.udp()
        sock.connect(sock.getsockname())
        sock.shutdown(socket.SHUT_RD)
        return sock

    with shut() as one, shut() as two:
        await show_the_trap(receive_naively(one))
        receiver = UdpBatchReceiver(two)
        await rest_in_the_trap("SHUT_RD", receiver.receive)


@pytest.mark.own_network
async def test_s10_f17_enobufs_with_a_writable_socket_does_not_keep_a_writer_awake(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A datagram that needs more fragments than the buffer holds: poll says go, the kernel no."""
    netns.run("ip link set lo mtu 1500")
    with sockets.udp() as one, sockets.udp() as two, sockets.udp() as into:
        target = into.getsockname()
        sender = UdpBatchSender(two, gso=False)
        for sock in (one, two):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            sock.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
        await show_the_trap(send_naively(one, bytes(30_000), target))
        with Turns(MOST_TURNS) as turns, pytest.raises(SendBatchError) as caught:
            await sender.send(harness.batch_of([bytes(30_000)], target))
        assert caught.value.failures[0].error.errno == errno.ENOBUFS
        assert turns.count < 10


@pytest.mark.own_network
async def test_s11_a_socket_without_a_port_is_refused_before_it_can_spin(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """No port is left, the socket is writable, and every send says EAGAIN."""
    netns.sysctl("net.ipv4.ip_local_port_range", "40000 40000")
    with (
        sockets.udp("0.0.0.0") as taken,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound,
    ):
        unbound.setblocking(False)
        target = ("127.0.0.1", taken.getsockname()[1])
        await show_the_trap(send_naively(unbound, b"x", target))
        with pytest.raises(ValueError, match="bound"):
            UdpBatchSender(unbound)


@pytest.mark.own_network
async def test_a_full_socket_does_not_keep_a_writer_awake(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The ordinary case, for comparison: a link that takes nothing for a long time."""
    netns.slow_link("8kbit")
    with sockets.udp(send_buffer=2304) as out, sockets.udp() as into:
        sender = UdpBatchSender(out, gso=False)
        batch = harness.batch_of([bytes(1000)] * 200, into.getsockname())
        await rest_in_the_trap("a full socket", lambda: sender.send(batch))


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
