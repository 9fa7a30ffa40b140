# UdpReceiverGroup: whose turn it is, who is in it, and what is told of those who leave.
#
# Everything runs with each poller that there is, on both backends. The model test is in
# test_receiver_group_model, what happens to a thousand at once in the fault suite.

from __future__ import annotations

import errno
import gc
import os
import socket
import sys
import weakref
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import (
    PacketBufPool,
    PacketTrain,
    ReceiverClosedError,
    ReceiverFailedError,
    ReceiverGroupError,
    UdpBatchReceiver,
    UdpReceiverGroup,
)
from snaptun_trio._losses import ReceiveLosses

from . import ends, groups, scripted

if TYPE_CHECKING:
    from snaptun_trio import Address

pytestmark = pytest.mark.usefixtures("poller")


@pytest.fixture(params=groups.POLLERS)
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with each poller: whatever group is made from here on uses it."""
    name: str = request.param
    groups.use_poller(monkeypatch, name)
    return name


def send(peer: socket.socket, packet: bytes, to: socket.socket) -> None:
    peer.sendto(packet, to.getsockname())
    ends.wait_until_readable(to)


async def receive(group: UdpReceiverGroup) -> tuple[UdpBatchReceiver, list[bytes]]:
    with trio.fail_after(ends.PATIENCE):
        receiver, batch = await group.receive()
    return receiver, [packet for packet, _ in batch]


# -- receiving


@pytest.mark.core
async def test_each_batch_comes_with_its_receiver(backend: str, udp: ends.MakeSocket) -> None:
    peer, socks = udp(), [udp() for _ in range(5)]
    receivers = [UdpBatchReceiver(sock) for sock in socks]
    with UdpReceiverGroup(receivers) as group:
        for number, sock in enumerate(socks):
            send(peer, b"for %d" % number, sock)
        found = [await receive(group) for _ in socks]
    expected = [(receiver, [b"for %d" % number]) for number, receiver in enumerate(receivers)]
    assert sorted(found, key=lambda item: item[1]) == expected


@pytest.mark.core
async def test_a_receive_waits_for_whoever_comes(
    backend: str, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    peer, socks = udp(), [udp() for _ in range(3)]
    receivers = [UdpBatchReceiver(sock) for sock in socks]
    found: list[tuple[UdpBatchReceiver, list[bytes]]] = []

    async def read(group: UdpReceiverGroup) -> None:
        async for receiver, batch in group:
            found.append((receiver, [packet for packet, _ in batch]))

    with UdpReceiverGroup(receivers) as group:
        nursery.start_soon(read, group)
        for receiver in [*receivers, *receivers]:
            await trio.testing.wait_all_tasks_blocked()
            before = len(found)
            peer.sendto(b"x", receiver.socket.getsockname())
            with trio.fail_after(ends.PATIENCE):
                while len(found) == before:
                    await trio.lowlevel.checkpoint()
            assert found[-1] == (receiver, [b"x"])
        nursery.cancel_scope.cancel()


@pytest.mark.core
async def test_nobody_has_a_second_turn_before_all_who_are_ready_had_one(
    backend: str, udp: ends.MakeSocket
) -> None:
    peer, socks = udp(), [udp() for _ in range(8)]
    receivers = [UdpBatchReceiver(sock, batch_size=1, gro=False) for sock in socks]
    with UdpReceiverGroup(receivers) as group:
        for _ in range(4):
            for sock in socks:
                send(peer, b"x", sock)
        for _ in range(4):
            turn = {(await receive(group))[0] for _ in socks}
            assert turn == set(receivers)


def test_receive_nowait_takes_what_is_there(backend: str, udp: ends.MakeSocket) -> None:
    """Outside of trio, too."""
    peer, socks = udp(), [udp() for _ in range(3)]
    group = UdpReceiverGroup([UdpBatchReceiver(sock) for sock in socks])
    with pytest.raises(trio.WouldBlock):
        group.receive_nowait()
    for sock in socks:
        send(peer, b"x", sock)
    assert {group.receive_nowait()[0] for _ in socks} == set(group)
    with pytest.raises(trio.WouldBlock):
        group.receive_nowait()
    group.close()
    with pytest.raises(trio.ClosedResourceError, match="the group is closed"):
        group.receive_nowait()


async def test_every_async_call_is_a_checkpoint(backend: str, udp: ends.MakeSocket) -> None:
    peer, socks = udp(), [udp() for _ in range(3)]
    group = UdpReceiverGroup([UdpBatchReceiver(sock) for sock in socks])
    for sock in socks:
        send(peer, b"x", sock)
    for _ in socks:
        with trio.testing.assert_checkpoints():
            await group.receive()
    with trio.testing.assert_checkpoints():
        await group.aclose()


@pytest.mark.core
async def test_a_cancelled_receive_loses_nothing(backend: str, udp: ends.MakeSocket) -> None:
    peer, socks = udp(), [udp() for _ in range(3)]
    group = UdpReceiverGroup([UdpBatchReceiver(sock) for sock in socks])
    rounds = 150
    found: list[bytes] = []

    async def read() -> None:
        found.extend([packet for packet, _ in (await group.receive())[1]])

    for number in range(rounds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for _ in range(number % 4):
                await trio.lowlevel.checkpoint()
            for sock in socks:
                peer.sendto(b"%d" % number, sock.getsockname())
            for _ in range(number % 3):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    while len(found) < rounds * len(socks):
        found += (await receive(group))[1]
    assert Counter(found) == {b"%d" % number: len(socks) for number in range(rounds)}
    group.close()


async def test_a_receive_in_a_cancelled_scope_takes_nothing(
    backend: str, udp: ends.MakeSocket
) -> None:
    peer, socks = udp(), [udp(), udp()]
    group = UdpReceiverGroup([UdpBatchReceiver(sock) for sock in socks])
    for sock in socks:
        send(peer, b"x", sock)
    first, _ = await receive(group)  # and the other one is known to be ready
    with trio.CancelScope() as scope:
        scope.cancel()
        await group.receive()
    assert scope.cancelled_caught
    assert (await receive(group))[0] is not first
    group.close()


@pytest.mark.core
async def test_a_second_task_is_turned_away_and_the_first_is_not_disturbed(
    backend: str, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    peer, sock = udp(), udp()
    group = UdpReceiverGroup([UdpBatchReceiver(sock)])
    found: list[list[bytes]] = []

    async def read() -> None:
        found.append((await receive(group))[1])

    nursery.start_soon(read)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError, match="another task"):
        await group.receive()
    peer.sendto(b"x", sock.getsockname())
    with trio.fail_after(ends.PATIENCE):
        while not found:
            await trio.lowlevel.checkpoint()
    assert found == [[b"x"]]
    group.close()


# -- who is in it


def test_a_group_is_a_container_of_its_receivers(backend: str, udp: ends.MakeSocket) -> None:
    one, two = UdpBatchReceiver(udp()), UdpBatchReceiver(udp())
    group = UdpReceiverGroup()
    assert (len(group), list(group), one in group) == (0, [], False)
    group.add(one)
    group.add(two)
    group.add(one)
    assert (len(group), list(group), one in group) == (2, [one, two], True)
    for member in group:
        group.discard(member)
    group.discard(one)
    assert (len(group), one in group) == (0, False)
    assert "text" not in group
    group.close()


def test_what_cannot_be_a_member_is_refused(backend: str, udp: ends.MakeSocket) -> None:
    sock = udp()
    receiver, twin, closed = UdpBatchReceiver(sock), UdpBatchReceiver(sock), UdpBatchReceiver(sock)
    closed.close()
    group, other = UdpReceiverGroup([receiver]), UdpReceiverGroup()
    with pytest.raises(TypeError, match="UdpBatchReceiver is needed, not <socket"):
        group.add(sock)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="same socket"):
        group.add(twin)
    with pytest.raises(trio.ClosedResourceError, match="receiver is closed"):
        group.add(closed)
    with pytest.raises(trio.BusyResourceError, match="a group"):
        other.add(receiver)
    with pytest.raises(trio.BusyResourceError, match="a group"):
        UdpReceiverGroup([twin, receiver])
    other.add(twin)  # a group that could not be made let it go
    other.discard(twin)
    group.close()
    with pytest.raises(trio.ClosedResourceError, match="group is closed"):
        group.add(twin)
    other.add(receiver)
    other.close()
    lost = udp()
    orphan = UdpBatchReceiver(lost)
    lost.close()
    with pytest.raises(trio.ClosedResourceError, match="socket was closed"):
        UdpReceiverGroup([orphan])


async def test_a_receiver_that_another_task_receives_from_is_refused(
    backend: str, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    receiver = UdpBatchReceiver(udp())
    nursery.start_soon(receiver.receive)
    await trio.testing.wait_all_tasks_blocked()
    group = UdpReceiverGroup()
    with pytest.raises(trio.BusyResourceError, match="another task"):
        group.add(receiver)
    nursery.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()


async def test_a_member_is_received_by_its_group_alone_until_it_is_discarded(
    backend: str, udp: ends.MakeSocket
) -> None:
    peer, sock = udp(), udp()
    receiver = UdpBatchReceiver(sock)
    group = UdpReceiverGroup([receiver])
    for call in (receiver.receive, lambda: receiver.recv_batch(lambda packet, address: None)):
        with pytest.raises(trio.BusyResourceError, match="a group"):
            await call()
    send(peer, b"taken", sock)
    assert ends.payloads(receiver, 1) == [b"taken"]  # without waiting it may
    group.discard(receiver)
    send(peer, b"mine", sock)
    assert [packet for packet, _ in await receiver.receive()] == [b"mine"]
    with pytest.raises(trio.WouldBlock):
        group.receive_nowait()
    group.close()


async def test_who_comes_and_goes_during_a_wait_is_noticed(
    backend: str, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    peer, stays, goes, comes = udp(), udp(), udp(), udp()
    leaver, comer = UdpBatchReceiver(goes), UdpBatchReceiver(comes)
    group = UdpReceiverGroup([UdpBatchReceiver(stays), leaver])
    found: list[tuple[UdpBatchReceiver, list[bytes]]] = []

    async def read() -> None:
        found.append(await receive(group))

    nursery.start_soon(read)
    await trio.testing.wait_all_tasks_blocked()
    group.discard(leaver)
    await trio.testing.wait_all_tasks_blocked()
    group.add(comer)
    await trio.testing.wait_all_tasks_blocked()
    send(peer, b"not for the group", goes)
    assert [packet for packet, _ in await leaver.receive()] == [b"not for the group"]
    assert not found
    peer.sendto(b"x", comes.getsockname())
    with trio.fail_after(ends.PATIENCE):
        while not found:
            await trio.lowlevel.checkpoint()
    assert found == [(comer, [b"x"])]
    group.close()


async def test_an_empty_group_waits_for_its_first_member(
    backend: str, udp: ends.MakeSocket, nursery: trio.Nursery
) -> None:
    peer, sock = udp(), udp()
    group, found = UdpReceiverGroup(), list[list[bytes]]()

    async def read() -> None:
        found.append((await receive(group))[1])

    nursery.start_soon(read)
    await trio.testing.wait_all_tasks_blocked()
    send(peer, b"x", sock)
    group.add(UdpBatchReceiver(sock))
    with trio.fail_after(ends.PATIENCE):
        while not found:
            await trio.lowlevel.checkpoint()
    assert found == [[b"x"]]
    group.close()


async def test_what_a_handler_left_over_is_received_by_the_group(
    backend: str, udp: ends.MakeSocket
) -> None:
    def fail(packet: bytes, address: Address) -> None:
        raise ArithmeticError

    peer, sock = udp(), udp()
    receiver = UdpBatchReceiver(sock)
    for _ in range(3):
        send(peer, b"x", sock)
    with pytest.raises(ArithmeticError):
        await receiver.recv_batch(fail)
    held = receiver.statistics().datagrams_held
    group = UdpReceiverGroup([receiver])
    found: list[bytes] = []
    while len(found) < 2:
        found += (await receive(group))[1]
    assert found == [b"x"] * 2
    assert held in (0, 1, 2)
    group.close()


async def test_a_group_that_is_dropped_is_collected(backend: str, udp: ends.MakeSocket) -> None:
    """Even while something looks after it once a second."""
    group = UdpReceiverGroup([UdpBatchReceiver(udp())])
    with trio.move_on_after(0):
        await group.receive()
    await trio.lowlevel.checkpoint()  # until then trio holds the Cancelled, and so the frames
    gone = weakref.ref(group)
    del group
    gc.collect()
    assert gone() is None


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
