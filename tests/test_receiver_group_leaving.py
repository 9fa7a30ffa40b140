# UdpReceiverGroup: who leaves it, and what is told of them.

from __future__ import annotations

import errno
import os
import socket
import sys

import pytest
import trio
import trio.testing

from snaptun_trio import (
    PacketTrain,
    ReceiverClosedError,
    ReceiverFailedError,
    ReceiverGroupError,
    UdpBatchReceiver,
    UdpReceiverGroup,
)
from snaptun_trio._losses import ReceiveLosses

from . import ends, groups, scripted
from .groups import receive, send

pytestmark = pytest.mark.usefixtures("poller")


# -- who leaves


@pytest.mark.core
async def test_closing_the_group_tells_who_waits_and_closes_nobody(
    backend: str, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    receiver = UdpBatchReceiver(udp())
    group, told = UdpReceiverGroup([receiver]), list[str]()

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError, match="the group is closed") as caught:
            await group.receive()
        told.append(type(caught.value).__name__)

    nursery.start_soon(read)
    await trio.testing.wait_all_tasks_blocked()
    group.close()
    group.close()
    await trio.testing.wait_all_tasks_blocked()
    assert told == ["ClosedResourceError"], "it is about no receiver"
    assert ends.nothing_waits(receiver)
    with trio.move_on_after(0):
        await receiver.receive()


@pytest.mark.core
@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize("what", ["receiver", "socket", "socket without a word"])
async def test_who_is_closed_is_named_once_and_has_left(
    backend: str, udp: ends.MakeSocket, nursery: trio.Nursery, what: str, when: str
) -> None:
    peer, stays = udp(), udp()
    sock = udp()
    closed = UdpBatchReceiver(sock if "word" in what else trio.socket.from_stdlib_socket(sock))
    group = UdpReceiverGroup([UdpBatchReceiver(stays), closed])
    told: list[UdpBatchReceiver] = []
    began = trio.Event()

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError) as caught:
            began.set()
            await group.receive()
        assert isinstance(caught.value, ReceiverClosedError)
        told.append(caught.value.receiver)

    if when == "during":
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
    if what == "receiver":
        closed.close()
    else:
        closed.socket.close()
    if when == "before":
        nursery.start_soon(read)
    with trio.fail_after(ends.PATIENCE):
        while not told:
            await trio.lowlevel.checkpoint()
    assert told == [closed]
    assert closed not in group
    assert len(group) == 1
    send(peer, b"x", stays)
    assert (await receive(group))[1] == [b"x"]
    with pytest.raises(trio.WouldBlock):
        group.receive_nowait()
    group.close()


async def test_who_is_discarded_after_it_was_closed_is_not_reported(
    backend: str, udp: ends.MakeSocket
) -> None:
    receiver = UdpBatchReceiver(udp())
    group = UdpReceiverGroup([receiver])
    receiver.close()
    assert receiver in group, "until it is reported"
    group.discard(receiver)
    with pytest.raises(trio.WouldBlock):
        group.receive_nowait()
    group.close()


async def test_a_new_socket_with_the_number_of_a_closed_one_is_another(
    backend: str, udp: ends.MakeSocket
) -> None:
    peer, old = udp(), ends.bound_socket()
    first = UdpBatchReceiver(old)
    group = UdpReceiverGroup([first])
    number = old.fileno()
    old.close()
    new = udp()
    assert new.fileno() == number
    second = UdpBatchReceiver(new)
    group.add(second)
    send(peer, b"for the new one", new)
    found: list[object] = []
    for _ in range(2):
        try:
            found.append(await receive(group))
        except ReceiverClosedError as error:
            found.append(error.receiver)
    assert first in found
    assert (second, [b"for the new one"]) in found
    assert list(group) == [second]
    group.close()


def test_whose_number_a_new_member_has_is_reported_at_once(
    backend: str, udp: ends.MakeSocket
) -> None:
    old = ends.bound_socket()
    first = UdpBatchReceiver(old)
    group = UdpReceiverGroup([first])
    number = old.fileno()
    old.close()
    new = udp()
    assert new.fileno() == number
    group.add(UdpBatchReceiver(new))
    with pytest.raises(ReceiverClosedError) as caught:
        group.receive_nowait()
    assert caught.value.receiver is first
    with pytest.raises(trio.WouldBlock):
        group.receive_nowait()
    group.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a descriptor cannot be duplicated so")
@pytest.mark.parametrize("renumbered", ["nobody", "a stranger", "a member"])
async def test_a_closed_socket_that_a_child_has_open_does_not_haunt_the_number(
    backend: str, udp: ends.MakeSocket, renumbered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a child inherited stays in the system's set. A second descriptor has the same effect."""
    peer, stays, old = udp(), udp(), ends.bound_socket()
    group = UdpReceiverGroup([UdpBatchReceiver(stays), UdpBatchReceiver(old)])
    inherited, address, number = os.dup(old.fileno()), old.getsockname(), old.fileno()
    old.close()
    new = udp() if renumbered != "nobody" else None
    if new is not None:
        assert new.fileno() == number
        peer.sendto(b"a stranger's", new.getsockname())
    if renumbered == "a member" and new is not None:
        new.recv(100)
        group.add(UdpBatchReceiver(new))
    peer.sendto(b"for the child", address)
    polls = 0
    real = type(group._poller).poll

    def poll(poller: object) -> object:
        nonlocal polls
        polls += 1
        return real(poller)  # type: ignore[arg-type]

    monkeypatch.setattr(type(group._poller), "poll", poll)
    with pytest.raises(ReceiverClosedError):
        await receive(group)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(group.receive)
        await trio.testing.wait_all_tasks_blocked()  # it would never be, in a spin
        assert polls < 100
        send(peer, b"x", stays)
    if renumbered == "a stranger" and new is not None:
        assert ends.read_plainly(new, 1) == [b"a stranger's"]
    os.close(inherited)
    group.close()


# -- errors


async def test_an_error_names_its_receiver_which_has_left(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    groups.make_ready(kernel)
    receiver = UdpBatchReceiver(udp())
    group = UdpReceiverGroup([receiver])
    kernel.receives.append(-errno.EIO)
    group._tell_of(receiver)
    with pytest.raises(OSError, match="Input/output") as caught:
        await group.receive()
    assert isinstance(caught.value, ReceiverFailedError)
    assert (caught.value.errno, caught.value.receiver) == (errno.EIO, receiver)
    assert len(group) == 0
    group.close()


@pytest.mark.skipif(sys.platform != "linux", reason="how a refusal comes back differs")
async def test_a_reported_refusal_names_its_receiver_which_stays(
    backend: str, udp: ends.MakeSocket
) -> None:
    sock, peer = udp(), udp()
    target = peer.getsockname()
    sock.connect(target)
    receiver = UdpBatchReceiver(sock, report_errors=True)
    group = UdpReceiverGroup([receiver])
    peer.close()
    for _ in range(2):
        sock.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError) as caught:
            await receive(group)
        assert isinstance(caught.value, ReceiverGroupError)
        assert caught.value.receiver is receiver
        assert receiver in group
    assert receiver.statistics().asynchronous_errors == {errno.ECONNREFUSED: 2}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back:
        back.bind(target)
        back.sendto(b"now I am", sock.getsockname())
        assert await receive(group) == (receiver, [b"now I am"])
    group.close()


@pytest.mark.parametrize("who", ["group", "receiver"])
async def test_an_error_behind_a_batch_is_told_next_though_the_socket_is_silent(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, who: str
) -> None:
    """Whoever had the batch: a member can be received from without waiting as well."""
    sock = udp()
    sock.connect(ends.deafen(udp()))
    receiver = UdpBatchReceiver(sock, report_errors=True)
    group = UdpReceiverGroup([receiver])
    kernel.losses = ReceiveLosses(error=scripted.error_of(errno.ECONNREFUSED))
    kernel.receives.append([PacketTrain(b"x", 1, ("127.0.0.1", 9))])
    if who == "group":
        group._tell_of(receiver)
        assert await receive(group) == (receiver, [b"x"])
    else:
        assert ends.payloads(receiver, 1) == [b"x"]
    kernel.losses = None
    with pytest.raises(ConnectionRefusedError):
        await receive(group)
    assert receiver in group
    group.close()


async def test_without_memory_nothing_is_lost(
    backend: str, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, sock = udp(), udp()
    receiver = UdpBatchReceiver(sock)
    group = UdpReceiverGroup([receiver])
    send(peer, b"x", sock)

    def no_memory(messages: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(receiver, "_account", no_memory)
        with pytest.raises(MemoryError):
            await receive(group)
    assert await receive(group) == (receiver, [b"x"])
    group.close()
