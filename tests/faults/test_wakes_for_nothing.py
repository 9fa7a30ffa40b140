# Wake-ups that come to nothing and are no spin: F45 of the fault matrix and its relatives.
#
# A datagram with a bad checksum, an ICMP message, another reader of the same socket: each wakes a
# task that finds nothing. Strangers can do that at any rate. The pauses that keep a task from
# spinning on a socket which is ready for ever must not begin then: they would let a stranger slow
# everybody else. So what is counted is pauses, and there may be none.

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from snaptun_trio import UdpBatchReceiver, UdpReceiverGroup

from .. import groups
from . import harness, laws, ledger, packets, sockets, tun

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("backend")

HERE, STRANGER = "10.0.0.1", "10.0.0.2"
WAKES = 100


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each pause was, in seconds, since the test began."""
    found: list[float] = []
    real_sleep = trio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            found.append(seconds)
        await real_sleep(seconds)

    monkeypatch.setattr(trio, "sleep", sleep)
    return found


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which way each wait was that has ended, since the test began."""
    ended: list[str] = []
    for name in ("wait_readable", "wait_writable"):
        real = getattr(trio.lowlevel, name)

        async def wait(sock: socket.socket, name: str = name, real: object = real) -> None:
            await real(sock)  # type: ignore[operator]
            ended.append(name)

        monkeypatch.setattr(trio.lowlevel, name, wait)
    return ended


def bad(target: tuple[str, int]) -> bytes:
    """A datagram whose checksum is wrong.

    A longer one: up to 76 bytes the kernel looks before it wakes anybody (CHECKSUM_BREAK of
    include/linux/skbuff.h), beyond that only when somebody reads.
    """
    return packets.udp_packet((STRANGER, 7), target, bytes(200), checksum=1)


def drops(receiver: UdpBatchReceiver) -> int:
    return receiver.statistics().buffers_dropped_by_kernel or 0


def after_each_fruitless_try(
    receiver: UdpBatchReceiver, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]
) -> None:
    """Do something at the worst moment: the receiver has just found nothing."""
    real = receiver._take

    def take() -> object:
        batch = real()
        if batch is None:
            act()
        return batch

    monkeypatch.setattr(receiver, "_take", take)


@pytest.mark.own_network
async def test_f45_bad_checksums_one_by_one_cause_no_pause(
    pauses: list[float], waits: list[str]
) -> None:
    with tun.Tun("tun0", ip=HERE, peer_ip=STRANGER) as device, sockets.udp(HERE) as into:
        receiver = UdpBatchReceiver(into)
        target = into.getsockname()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.receive)
            await wait_all_tasks_blocked()
            for number in range(WAKES):
                assert device.write(bad(target)) == 0
                with trio.fail_after(harness.PATIENCE):
                    while len(waits) <= number:
                        await trio.lowlevel.checkpoint()
            assert device.write(packets.udp_packet((STRANGER, 7), target, b"good")) == 0
        assert receiver.statistics().datagrams_received == 1
        assert drops(receiver) == WAKES
        assert pauses == []


@pytest.mark.own_network
async def test_f45_bad_checksums_at_the_worst_moment_cause_no_pause(
    pauses: list[float], waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood so fast that whenever the receiver has found nothing, the next one is there: the
    socket is called ready every time it is asked, as in a spin."""
    with tun.Tun("tun0", ip=HERE, peer_ip=STRANGER) as device, sockets.udp(HERE) as into:
        receiver = UdpBatchReceiver(into)
        target = into.getsockname()

        def flood() -> None:
            good = len(waits) == WAKES
            packet = packets.udp_packet((STRANGER, 7), target, b"good") if good else bad(target)
            assert device.write(packet) == 0

        after_each_fruitless_try(receiver, monkeypatch, flood)
        with trio.fail_after(harness.PATIENCE):
            assert [packet for packet, _ in await receiver.receive()] == [b"good"]
        assert len(waits) == WAKES + 1
        assert drops(receiver) == WAKES
        assert pauses == []


@pytest.mark.own_network
@pytest.mark.parametrize("poller", groups.POLLERS)
async def test_f45_bad_checksums_send_no_member_of_a_group_to_rest(
    monkeypatch: pytest.MonkeyPatch, poller: str
) -> None:
    """As fast as above: the socket is called ready each time, and another member is served."""
    groups.use_poller(monkeypatch, poller)
    with (
        tun.Tun("tun0", ip=HERE, peer_ip=STRANGER) as device,
        sockets.udp(HERE) as into,
        sockets.udp(HERE) as other,
    ):
        receiver = UdpBatchReceiver(into)
        target = into.getsockname()
        tries = 0

        def flood() -> None:
            nonlocal tries
            tries += 1
            good = tries == WAKES
            packet = packets.udp_packet((STRANGER, 7), target, b"good") if good else bad(target)
            assert device.write(packet) == 0

        after_each_fruitless_try(receiver, monkeypatch, flood)
        with UdpReceiverGroup([receiver, UdpBatchReceiver(other)]) as group:
            assert device.write(bad(target)) == 0
            with trio.fail_after(harness.PATIENCE):
                found, batch = await group.receive()
            assert found is receiver
            assert [packet for packet, _ in batch] == [b"good"]
            assert not group._resting
        assert drops(receiver) == WAKES


@pytest.mark.own_network
@pytest.mark.parametrize("bad_ones", [1, 20])
async def test_f45_a_good_peer_beside_bad_checksums_loses_nothing(
    pauses: list[float], bad_ones: int
) -> None:
    """Question and answer, with bad ones before each. The naive loop loses none either."""
    book = ledger.Ledger()
    with tun.Tun("tun0", ip=HERE, peer_ip=STRANGER) as device, sockets.udp(HERE) as into:
        receiver = UdpBatchReceiver(into)
        target = into.getsockname()
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                async for batch in receiver:
                    for packet, _ in batch:
                        book.deliver(packet)

            nursery.start_soon(serve)
            with trio.fail_after(harness.PATIENCE):
                for _ in range(200):
                    for _ in range(bad_ones):
                        device.write(bad(target))
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
                    device.write(packets.udp_packet((STRANGER, 7), target, book.write()))
                    while book.account().missing:
                        await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        laws.l2_clean(book.account())
        assert drops(receiver) == 200 * bad_ones
        assert pauses == []


async def test_another_reader_of_the_same_socket_causes_no_pause(
    pauses: list[float], waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that share a socket: both are woken, and the other is always first."""
    with sockets.udp() as into, sockets.udp() as out:
        receiver = UdpBatchReceiver(into)
        real = receiver._io.receive

        def too_late(*arguments: object) -> object:
            if len(waits) < WAKES:
                stolen.extend(sockets.drain(into))
            return real(*arguments)  # type: ignore[arg-type]

        stolen: list[bytes] = []
        monkeypatch.setattr(receiver._io, "receive", too_late)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.receive)
            await wait_all_tasks_blocked()
            for number in range(WAKES):
                out.sendto(b"for whoever is first", into.getsockname())
                with trio.fail_after(harness.PATIENCE):
                    while len(waits) <= number:
                        await trio.lowlevel.checkpoint()
        assert stolen == [b"for whoever is first"] * (WAKES - 1)
        assert pauses == []


async def test_errors_of_earlier_datagrams_one_by_one_cause_no_pause(
    pauses: list[float], waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody who knows the two ports can have them reported: with an ICMP message. Here the next
    one is there whenever the receiver has found nothing, so that the socket is ready each time."""
    with sockets.udp() as sock, sockets.udp() as dead:
        sock.connect(dead.getsockname())
        dead.close()
        receiver = UdpBatchReceiver(sock)

        def provoke() -> None:
            if len(waits) < WAKES:
                with contextlib.suppress(ConnectionRefusedError):
                    sock.send(b"nobody listens")

        after_each_fruitless_try(receiver, monkeypatch, provoke)
        with trio.fail_after(harness.PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receiver.receive)
                while len(waits) < WAKES:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert receiver.statistics().asynchronous_errors[errno.ECONNREFUSED] >= WAKES - 1
        assert pauses == []
