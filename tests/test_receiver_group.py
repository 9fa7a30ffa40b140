# UdpReceiverGroup: whose turn it is, and who is in it.
#
# Everything runs with each poller that there is, on both backends. The model test is in
# test_receiver_group_model, what happens to a thousand at once in the fault suite.

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import (
    UdpBatchReceiver,
    UdpReceiverGroup,
)

from . import ends
from .groups import receive, send

if TYPE_CHECKING:
    from snaptun_trio import Address

pytestmark = pytest.mark.usefixtures("poller")


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
