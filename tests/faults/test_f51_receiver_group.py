# The sockets of a receiver group close and fail, and their numbers are reused: F51 of the fault
# matrix.
#
# A group of a thousand, in which much of that happens at once and again and again. Whoever is lost
# is left out and reported once; all others receive what is theirs; and no call reaches a socket
# that has got the number of another, on either side. Each datagram says whom it is for.

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import (
    PacketBufPool,
    ReceiverClosedError,
    ReceiverFailedError,
    ReceiverGroupError,
    UdpBatchReceiver,
    UdpReceiverGroup,
)

from .. import groups
from . import harness, sockets

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("backend", "poller")

MEMBERS = {"epoll": 1000, "tasks": 200}  # a task for each at each wait is slow


@pytest.fixture(params=groups.POLLERS)
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with each poller: whatever group is made from here on uses it."""
    name: str = request.param
    groups.use_poller(monkeypatch, name)
    return name


class Crowd:
    """A group, its sockets, and strangers that nobody of the group may read."""

    def __init__(self, stack: contextlib.ExitStack, count: int) -> None:
        self._stack = stack
        self._pool = PacketBufPool()
        self.out = stack.enter_context(sockets.udp())
        self.group = stack.enter_context(UdpReceiverGroup())
        self.strangers: list[socket.socket] = []
        self.lost: set[UdpBatchReceiver] = set()
        self.told: Counter[UdpBatchReceiver] = Counter()
        self.received: Counter[UdpBatchReceiver] = Counter()
        self.sent: Counter[UdpBatchReceiver] = Counter()
        for _ in range(count):
            self.join()

    def join(self) -> UdpBatchReceiver:
        """One more member."""
        receiver = UdpBatchReceiver(self.open(), self._pool)
        self.group.add(receiver)
        return receiver

    def open(self) -> socket.socket:
        """One more socket; it has the lowest number that is free."""
        return self._stack.enter_context(sockets.udp(receive_buffer=16_384))

    def send(self, receiver: UdpBatchReceiver) -> None:
        """To a member that is well."""
        self.sent[receiver] += 1
        self.out.sendto(b"%d" % id(receiver), receiver.socket.getsockname())

    def settle(self, sock: socket.socket) -> None:
        """Strangers, and something for each to lose."""
        self.strangers.append(sock)
        self.out.sendto(b"a stranger's", sock.getsockname())

    async def receive(self) -> None:
        """Receive once, and enter it."""
        try:
            with trio.fail_after(harness.PATIENCE):
                receiver, batch = await self.group.receive()
        except ReceiverGroupError as error:
            self.told[error.receiver] += 1
            return
        for packet, _ in batch:
            assert packet == b"%d" % id(receiver), "somebody else's datagram"
            self.received[receiver] += 1

    async def receive_all(self) -> None:
        """Until all that was sent has come, and all who were lost are told."""
        while self.received != self.sent or set(self.told) != self.lost:
            await self.receive()

    def check(self) -> None:
        """Nobody was told of twice, nothing is left, and the strangers have what is theirs."""
        with pytest.raises(trio.WouldBlock):
            self.group.receive_nowait()
        assert set(self.told.values()) <= {1}
        assert not self.lost & set(self.group)
        for sock in self.strangers:
            assert list(sockets.drain(sock)) == [b"a stranger's"]


@pytest.fixture
def crowd(poller: str) -> Iterator[Crowd]:
    with groups.room_for(2 * MEMBERS[poller]), contextlib.ExitStack() as stack:
        yield Crowd(stack, MEMBERS[poller])


async def test_f51_members_that_close_in_every_way_are_told_once_and_the_others_receive(
    crowd: Crowd, seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(3):
        for receiver in list(crowd.group):
            match chance.randrange(8):
                case 0:
                    crowd.lost.add(receiver)
                    receiver.close()
                case 1:
                    crowd.lost.add(receiver)
                    receiver.socket.close()
                case 2:
                    crowd.group.discard(receiver)
                    receiver.socket.close()
                case _:
                    crowd.send(receiver)
        await crowd.receive_all()
        for _ in range(20):
            crowd.join()
    crowd.check()


@pytest.mark.parametrize("to", ["strangers", "members"])
async def test_f51_numbers_that_are_given_to_others_are_never_mixed_up(
    crowd: Crowd, to: str
) -> None:
    """Sockets close with datagrams in them; their numbers go to others."""
    for receiver in list(crowd.group)[::3]:
        crowd.out.sendto(b"to be lost with its socket", receiver.socket.getsockname())
    numbers = set()
    for receiver in list(crowd.group)[::3]:
        numbers.add(receiver.socket.fileno())
        crowd.lost.add(receiver)
        receiver.socket.close()
    renumbered = set()
    for _ in numbers:
        if to == "members":
            newcomer = crowd.join()
            renumbered.add(newcomer.socket.fileno())
            crowd.send(newcomer)
        else:
            sock = crowd.open()
            renumbered.add(sock.fileno())
            crowd.settle(sock)
    assert renumbered == numbers, "the kernel gives the lowest that is free"
    for receiver in set(crowd.group) - crowd.lost:
        crowd.send(receiver)
    await crowd.receive_all()
    crowd.check()


async def test_f51_numbers_that_change_hands_while_a_child_holds_the_old_sockets(
    crowd: Crowd,
) -> None:
    """What a child inherited goes on receiving, and the system's set goes on saying so, under
    numbers that are others' by now. It may neither be believed nor make a spin."""
    held, old = [], list(crowd.group)[::10]
    addresses = [receiver.socket.getsockname() for receiver in old]
    for receiver in old:
        held.append(os.dup(receiver.socket.fileno()))
        crowd.lost.add(receiver)
        receiver.socket.close()
    for number, address in enumerate(addresses):
        if number % 2:
            crowd.join()
        else:
            crowd.settle(crowd.open())
        crowd.out.sendto(b"the child's", address)
    await crowd.receive_all()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.group.receive)
        await trio.testing.wait_all_tasks_blocked()  # in a spin it would never be
        nursery.cancel_scope.cancel()
    for receiver in crowd.group:
        crowd.send(receiver)
    await crowd.receive_all()
    crowd.check()
    for number in held:
        os.close(number)


async def test_f51_members_that_fail_are_told_once_with_what_the_kernel_said(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel answers with an error that is about no earlier datagram."""
    failing = list(crowd.group)[::5]
    for receiver in crowd.group:
        crowd.send(receiver)
    for receiver in failing:

        def fail(*arguments: object) -> None:
            raise OSError(5, "Input/output error")

        crowd.lost.add(receiver)
        del crowd.sent[receiver]
        monkeypatch.setattr(receiver._io, "receive", fail)
    told = Counter[int | None]()
    while crowd.received != crowd.sent or told.total() < len(failing):
        try:
            with trio.fail_after(harness.PATIENCE):
                receiver, batch = await crowd.group.receive()
        except ReceiverFailedError as error:
            crowd.told[error.receiver] += 1
            told[error.errno] += 1
        else:
            crowd.received[receiver] += len(batch)
    assert set(crowd.told) == crowd.lost
    assert told == {5: len(failing)}
    crowd.check()


async def test_f51_closing_while_a_batch_is_looked_at_is_told_next(crowd: Crowd) -> None:
    """All are ready at once; each closes the next one, before that one's turn."""
    everybody = list(crowd.group)
    for receiver in everybody:
        crowd.out.sendto(b"x", receiver.socket.getsockname())
    received: list[UdpBatchReceiver] = []
    told: list[UdpBatchReceiver] = []
    while len(received) + len(told) < len(everybody):
        try:
            with trio.fail_after(harness.PATIENCE):
                receiver, _ = await crowd.group.receive()
        except ReceiverClosedError as error:
            told.append(error.receiver)
            continue
        received.append(receiver)
        victim = next((one for one in crowd.group if one not in received), None)
        if victim is not None and victim not in crowd.lost:
            crowd.lost.add(victim)
            (victim if len(received) % 2 else victim.socket).close()
    assert set(told) == crowd.lost
    assert len(told) == len(crowd.lost)
    assert not set(received) & crowd.lost
    crowd.check()
