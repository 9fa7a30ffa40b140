# UdpReceiverGroup: sockets that are ready for ever do not make it spin, and it holds many.

from __future__ import annotations

import errno
import socket
import sys
from collections import Counter

import pytest
import trio
import trio.testing

from snaptun_trio import (
    PacketBufPool,
    PacketTrain,
    ReceiverClosedError,
    UdpBatchReceiver,
    UdpReceiverGroup,
)

from . import ends, groups, scripted
from .groups import receive, send

pytestmark = pytest.mark.usefixtures("poller")


# -- no spin


@pytest.fixture
def for_ever_ready(kernel: scripted.ScriptedKernel, poller: str) -> scripted.ScriptedKernel:
    """All sockets are called ready for ever, and have nothing."""
    if poller == "epoll":
        pytest.skip("a scripted socket says itself that it is ready")
    groups.make_ready(kernel)
    return kernel


async def test_a_socket_that_is_ready_for_ever_is_not_asked_all_the_time(
    for_ever_ready: scripted.ScriptedKernel,
    udp: ends.MakeSocket,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0
    real = scripted.ScriptedIO.receive

    def count(io: scripted.ScriptedIO, *arguments: int) -> object:
        nonlocal asked
        asked += 1
        return real(io, *arguments)

    monkeypatch.setattr(scripted.ScriptedIO, "receive", count)
    group = UdpReceiverGroup([UdpBatchReceiver(udp())])
    with trio.move_on_after(60):
        await group.receive()
    assert 60 / 0.1 < asked < 60 / 0.05
    for_ever_ready.receives.append([PacketTrain(b"x", 1, ("192.0.2.1", 9))])
    start = trio.current_time()
    assert (await receive(group))[1] == [b"x"]
    assert trio.current_time() - start < 0.1
    group.close()


@pytest.mark.skipif(sys.platform != "linux", reason="what a socket is like after shutdown")
async def test_a_socket_that_was_shut_down_comes_to_rest_and_holds_up_nobody(
    backend: str, udp: ends.MakeSocket, mock_clock: trio.testing.MockClock
) -> None:
    """It is ready for ever, and gives nothing. The clock stands still: its rest does not end."""
    peer, shut, good = udp(), udp(), udp()
    shut.connect(peer.getsockname())
    shut.shutdown(socket.SHUT_RD)
    group = UdpReceiverGroup([UdpBatchReceiver(shut), UdpBatchReceiver(good)])
    found: list[list[bytes]] = []

    async def read() -> None:
        async for _, batch in group:
            found.append([packet for packet, _ in batch])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for number in range(20):
            await trio.testing.wait_all_tasks_blocked()
            peer_of_good = ends.address_of(good)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"%d" % number, peer_of_good)
            while len(found) <= number:
                await trio.lowlevel.checkpoint()
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
        assert group._resting, "it rests again"
        nursery.cancel_scope.cancel()
    assert found == [[b"%d" % number] for number in range(20)]
    group.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has an error queue")
async def test_an_error_queue_that_the_owner_switched_on_is_emptied(
    backend: str, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    """One unread entry keeps the socket ready for ever; the task must come to rest."""
    sock, nobody = udp(), ends.deafen(udp())
    sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR, include/uapi/linux/in.h
    receiver = UdpBatchReceiver(sock)
    group, found = UdpReceiverGroup([receiver]), list[list[bytes]]()

    async def read() -> None:
        found.append((await receive(group))[1])

    nursery.start_soon(read)
    sock.sendto(b"nobody listens", nobody)
    with trio.fail_after(ends.PATIENCE):
        while receiver.statistics().asynchronous_errors.get(errno.ECONNREFUSED, 0) < 2:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        sock.sendto(b"hello", sock.getsockname())
        while not found:
            await trio.lowlevel.checkpoint()
    assert found == [[b"hello"]]
    group.close()


# -- how many


async def test_a_thousand_idle_members_hold_no_slab(
    backend: str, monkeypatch: pytest.MonkeyPatch, poller: str
) -> None:
    count = 1000 if poller == "epoll" else 100
    pool = PacketBufPool()
    with groups.many_sockets(count) as socks, ends.bound_socket() as peer:
        group = UdpReceiverGroup([UdpBatchReceiver(sock, pool) for sock in socks])
        for sock in socks:
            send(peer, b"x" * 100, sock)
        last: object = None
        for _ in socks:
            last = await group.receive()
        with trio.move_on_after(0):
            last = await group.receive()
        assert last is not None
        assert pool.statistics().slabs_in_use == 0
        assert pool.statistics().most_in_use <= 1
        group.close()


@pytest.mark.slow
async def test_ten_thousand_members(backend: str, poller: str) -> None:
    if poller != "epoll":
        pytest.skip("a task for each, at each wait: it works, and takes its time")
    pool = PacketBufPool()
    with groups.many_sockets(10_000) as socks, ends.bound_socket() as peer:
        receivers = [UdpBatchReceiver(sock, pool) for sock in socks]
        group = UdpReceiverGroup(receivers)
        for sock in socks:
            peer.sendto(b"x", sock.getsockname())
        found = Counter([(await receive(group))[0] for _ in socks])
        assert found == Counter(receivers)
        for receiver in receivers[::7]:
            receiver.close()
        told: set[UdpBatchReceiver] = set()
        while len(told) < len(receivers[::7]):
            with pytest.raises(ReceiverClosedError) as caught:
                await receive(group)
            told.add(caught.value.receiver)
        assert told == set(receivers[::7])
        assert len(group) == len(receivers) - len(told)
        group.close()
