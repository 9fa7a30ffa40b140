# The waiter: what keeps a task from spinning on a socket that is ready for ever and gives nothing.

from __future__ import annotations

import errno
import socket
import sys

import pytest
import trio
import trio.testing

from snaptun_trio import PacketTrain, UdpBatchReceiver, UdpBatchSender
from snaptun_trio._kernel import socket_io
from snaptun_trio._waiter import ReadinessWaiter

from . import ends, scripted

IP_RECVERR = 11  # include/uapi/linux/in.h
IPV6_RECVERR = 25  # include/uapi/linux/in6.h
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has an error queue")


@pytest.fixture
def receiver(kernel: scripted.ScriptedKernel, udp: ends.MakeSocket) -> UdpBatchReceiver:
    """A receiver on a socket that is called ready for ever."""
    kernel.waits.always_ready = kernel.ready = True
    return UdpBatchReceiver(udp())


async def test_a_socket_that_is_ready_for_ever_is_not_asked_all_the_time(
    receiver: UdpBatchReceiver,
    kernel: scripted.ScriptedKernel,
    autojump_clock: trio.testing.MockClock,
) -> None:
    with trio.move_on_after(60):
        await receiver.receive()
    assert 60 / 0.1 < kernel.waits.begun < 60 / 0.05


async def test_pauses_end_when_something_comes(
    receiver: UdpBatchReceiver,
    kernel: scripted.ScriptedKernel,
    autojump_clock: trio.testing.MockClock,
) -> None:
    with trio.move_on_after(10):
        await receiver.receive()
    kernel.receives.append([PacketTrain(b"x", 1, None)])
    await receiver.receive()
    start = trio.current_time()
    begun = kernel.waits.begun
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.receive)
            while kernel.waits.begun < begun + 10:
                await trio.lowlevel.checkpoint()
            scope.cancel()
    assert trio.current_time() == start, "it waits without pauses again"


async def test_waits_that_were_cancelled_cause_no_pauses(
    kernel: scripted.ScriptedKernel,
    udp: ends.MakeSocket,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A program that looks at an idle socket with a timeout, many times, still gets the first
    datagram at once."""
    receiver = UdpBatchReceiver(udp())
    for _ in range(100):
        with trio.move_on_after(1):
            await receiver.receive()
    assert kernel.waits.begun == 100
    now = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.receive)
        while not kernel.waits.waiting:
            await trio.lowlevel.checkpoint()
        kernel.receives.append([PacketTrain(b"x", 1, None)])
        kernel.waits.wake()
    assert trio.current_time() == now


@pytest.mark.parametrize("what", ["receiver", "socket"])
async def test_closing_during_a_pause_is_noticed_and_the_socket_not_waited_for(
    receiver: UdpBatchReceiver,
    kernel: scripted.ScriptedKernel,
    mock_clock: trio.testing.MockClock,
    what: str,
) -> None:
    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await receiver.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()  # it pauses
        begun = kernel.waits.begun
        if what == "receiver":
            receiver.close()
        else:
            receiver.socket.close()
        mock_clock.jump(1)
    assert kernel.waits.begun == begun


@linux_only
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_error_queue_that_the_owner_switched_on_is_emptied(
    backend: str, udp: ends.MakeSocket, host: str, nursery: trio.Nursery
) -> None:
    """One unread entry keeps the socket ready for ever; the task must come to rest."""
    sock, nobody = udp(host), ends.deafen(udp(host))
    if host == "::1":
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    receiver = UdpBatchReceiver(sock)
    received: list[bytes] = []

    async def receive() -> None:
        received.extend([packet for packet, _ in await receiver.receive()])

    nursery.start_soon(receive)
    sock.sendto(b"nobody listens", nobody)
    with trio.fail_after(ends.PATIENCE):
        while receiver.statistics().asynchronous_errors.get(errno.ECONNREFUSED, 0) < 2:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        sock.sendto(b"hello", sock.getsockname())
        while not received:
            await trio.lowlevel.checkpoint()
    assert received == [b"hello"]


async def test_a_wait_is_always_a_checkpoint(udp: ends.MakeSocket) -> None:
    sock = udp()
    waiter = ReadinessWaiter(socket_io(sock), reading=False)
    with trio.testing.assert_checkpoints():
        await waiter.wait()
    waiter.close()
    with pytest.raises(trio.ClosedResourceError, match="the sender is closed"):
        await waiter.wait()


async def test_another_user_of_the_socket_is_reported_and_does_no_harm(
    backend: str, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    """Two receivers on one socket: trio lets only one task wait for it."""
    sock = udp()
    first, second = UdpBatchReceiver(sock), UdpBatchReceiver(sock)
    nursery.start_soon(first.receive)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await second.receive()
    sock.sendto(b"x", sock.getsockname())
    await trio.testing.wait_all_tasks_blocked()
    sock.sendto(b"y", sock.getsockname())
    with trio.fail_after(ends.PATIENCE):
        assert [packet for packet, _ in await second.receive()] == [b"y"]


async def test_the_same_for_sending(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(io: scripted.ScriptedIO) -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BusyResourceError

    monkeypatch.setattr(scripted.ScriptedIO, "wait_writable", busy)
    sender = UdpBatchSender(udp())
    sender.try_queue_packet(b"x", ("127.0.0.1", 9))
    kernel.sends.append(-errno.EAGAIN)
    with pytest.raises(trio.BusyResourceError):
        await sender.flush()
    await sender.flush()
    assert kernel.payloads == [b"x"]
