# Closing a receiver, a sender, or the socket that was lent to them: before, during and after a
# wait.

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import Address, PacketBatch, PacketTrain, UdpBatchReceiver, UdpBatchSender
from snaptun_trio._kernel._interface import SocketIO

from . import ends, scripted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HERE: Address = ("127.0.0.1", 9)
ONE = PacketBatch([PacketTrain(b"x", 1, HERE)])
EMPTY = PacketBatch([])


@pytest.fixture
def receiver(kernel: scripted.ScriptedKernel, udp: ends.MakeSocket) -> UdpBatchReceiver:
    return UdpBatchReceiver(udp())


@pytest.fixture
def sender(kernel: scripted.ScriptedKernel, udp: ends.MakeSocket) -> UdpBatchSender:
    return UdpBatchSender(udp())


@pytest.mark.core
async def test_after_closing_everything_is_a_closed_resource(pair: ends.Pair) -> None:
    pair.receiver.close()
    pair.sender.close()
    calls: list[Callable[[], Awaitable[object]]] = [
        pair.receiver.receive,
        lambda: pair.receiver.recv_batch(lambda packet, address: None),
        pair.sender.flush,
        lambda: pair.sender.send(ONE),
        lambda: pair.sender.send(EMPTY),
    ]
    for call in calls:
        with pytest.raises(trio.ClosedResourceError):
            await call()
    plain: list[Callable[[], object]] = [
        pair.receiver.receive_nowait,
        pair.sender.try_flush_best_effort,
        lambda: pair.sender.send_nowait(ONE),
        lambda: pair.sender.try_queue_packet(b"x", HERE),
        lambda: pair.sender.try_queue_train(PacketTrain(b"x", 1, HERE)),
    ]
    for plain_call in plain:
        with pytest.raises(trio.ClosedResourceError):
            plain_call()


def close_end(end: UdpBatchReceiver | UdpBatchSender, what: str) -> None:
    """Close an end, or its socket as the owner should."""
    if what == "end":
        end.close()
    else:
        if isinstance(end.socket, socket.socket):
            trio.lowlevel.notify_closing(end.socket)
        end.socket.close()


async def check_closing_wakes(
    wait: Callable[[], Awaitable[object]], end: UdpBatchReceiver | UdpBatchSender, what: str
) -> None:
    """A task that waits is told. If it is not, it still waits once all tasks are blocked again."""
    told = False

    async def waiting() -> None:
        nonlocal told
        with pytest.raises(trio.ClosedResourceError):
            await wait()
        told = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting)
        await trio.testing.wait_all_tasks_blocked()
        assert not told
        close_end(end, what)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert told


@pytest.mark.core
@pytest.mark.parametrize("what", ["end", "socket"])
async def test_closing_wakes_the_task_that_waits_to_receive(pair: ends.Pair, what: str) -> None:
    await check_closing_wakes(pair.receiver.receive, pair.receiver, what)


@pytest.mark.parametrize("what", ["end", "socket"])
async def test_closing_a_trio_socket_or_its_receiver_wakes_the_task_that_waits(
    backend: str, what: str
) -> None:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await sock.bind(("127.0.0.1", 0))
    receiver = UdpBatchReceiver(sock)
    with sock:
        await check_closing_wakes(receiver.receive, receiver, what)


@pytest.mark.parametrize("what", ["end", "socket"])
@pytest.mark.parametrize("call", ["flush", "send"])
async def test_closing_wakes_the_task_that_waits_to_send(
    monkeypatch: pytest.MonkeyPatch, udp: ends.MakeSocket, what: str, call: str
) -> None:
    kernel = scripted.install(monkeypatch)
    # A real wait that lasts: this socket is always ready for writing, and never for reading.
    monkeypatch.setattr(scripted.ScriptedIO, "wait_writable", SocketIO.wait_readable)
    sender = UdpBatchSender(udp())
    kernel.sends.append(-errno.EAGAIN)

    async def wait() -> None:
        if call == "flush":
            sender.try_queue_packet(b"x", HERE)
            await sender.flush()
        else:
            await sender.send(ONE)

    await check_closing_wakes(wait, sender, what)
    assert kernel.sent == []


@pytest.mark.parametrize("what", ["end", "socket"])
async def test_closed_at_the_moment_of_waking_is_closed(
    receiver: UdpBatchReceiver,
    kernel: scripted.ScriptedKernel,
    what: str,
) -> None:
    """The wait is over and was a success, but before the task runs somebody closes."""

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await receiver.receive()

    async with trio.open_nursery() as waiting:
        waiting.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        kernel.receives.append([PacketTrain(b"x", 1, HERE)])
        kernel.waits.wake()
        close_end(receiver, what)
    assert kernel.receives, "a call was made on a closed socket"


@pytest.mark.core
async def test_a_closed_socket_is_never_waited_for(
    receiver: UdpBatchReceiver, sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    sender.try_queue_packet(b"x", HERE)
    receiver.socket.close()
    sender.socket.close()
    calls: list[Callable[[], Awaitable[object]]] = [
        receiver.receive,
        sender.flush,
        lambda: sender.send(ONE),
    ]
    for call in calls:
        with pytest.raises(trio.ClosedResourceError):
            await call()
    assert kernel.waits.begun == 0


async def test_a_socket_that_closes_under_the_system_call_is_never_waited_for(
    receiver: UdpBatchReceiver,
    kernel: scripted.ScriptedKernel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def close_and_find_nothing(*arguments: object) -> None:
        receiver.socket.close()

    monkeypatch.setattr(scripted.ScriptedIO, "receive", close_and_find_nothing)
    with pytest.raises(trio.ClosedResourceError):
        await receiver.receive()
    assert kernel.waits.begun == 0


async def test_the_socket_stays_open_and_usable(pair: ends.Pair) -> None:
    await pair.receiver.aclose()
    await pair.sender.aclose()
    again = UdpBatchSender(pair.sender.socket)
    again.try_queue_packet(b"x", pair.target)
    await again.flush()
    assert ends.payloads(UdpBatchReceiver(pair.receiver.socket), 1) == [b"x"]


async def test_closing_one_end_leaves_others_at_the_same_socket_alone(
    backend: str, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    sock = udp()
    receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
    done = trio.Event()

    async def receive() -> None:
        assert ends.address_of(sock) == (await receiver.receive()).trains[0].address
        done.set()

    nursery.start_soon(receive)
    await trio.testing.wait_all_tasks_blocked()
    sender.close()
    await trio.testing.wait_all_tasks_blocked()
    sock.sendto(b"x", sock.getsockname())
    with trio.fail_after(ends.PATIENCE):
        await done.wait()


async def test_a_sender_that_is_closed_between_two_turns_says_so(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    """The socket takes everything, but more is queued than three turns send.

    Whichever task runs first after the first turn, the sender is closed before the third.
    """
    sender = UdpBatchSender(udp())
    trains = [PacketTrain(bytes(n % 1000 + 1), 1000, ("127.0.0.1", 9)) for n in range(9000, 0, -1)]

    async def close_soon() -> None:
        while not kernel.sent:
            await trio.lowlevel.checkpoint()
        sender.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close_soon)
        with pytest.raises(trio.ClosedResourceError):
            await sender.send(PacketBatch(trains))
    statistics = sender.statistics()
    assert 0 < statistics.datagrams_sent == len(kernel.sent) < 9000
    assert statistics.datagrams_discarded == 9000 - len(kernel.sent)
