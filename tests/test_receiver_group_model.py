# A model of a receiver group: who is in it, what each socket was sent, and who is to be reported.
#
# Hypothesis adds, discards, closes and sends in any order, and opens sockets with the numbers of
# closed ones. Whatever it does, a receiver gives the datagrams that its own socket was sent, in
# order, and each that was closed while it was in the group is reported once.

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import Any

import hypothesis
import hypothesis.stateful as hs
import pytest
import trio
import trio.testing
from hypothesis import strategies as st

from snaptun_trio import (
    PacketBufPool,
    ReceiverClosedError,
    UdpBatchReceiver,
    UdpReceiverGroup,
)

from . import ends, groups

MOST_SOCKETS = 8


class GroupMachine(hs.RuleBasedStateMachine):
    """A group of one kind of poller, beside what must be true of it."""

    poller: str

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.out = self.stack.enter_context(ends.bound_socket())
        self.pool = PacketBufPool()
        with pytest.MonkeyPatch.context() as patch:
            groups.use_poller(patch, self.poller)
            self.group = UdpReceiverGroup()
        self.open: list[UdpBatchReceiver] = []
        self.members: list[UdpBatchReceiver] = []
        self.sent: defaultdict[UdpBatchReceiver, list[bytes]] = defaultdict(list)
        self.received: defaultdict[UdpBatchReceiver, list[bytes]] = defaultdict(list)
        self.to_report: set[UdpBatchReceiver] = set()
        self.numbers = iter(range(1_000_000))

    def pick(self, number: int) -> UdpBatchReceiver:
        """One of those that are open."""
        return self.open[number % len(self.open)]

    @hs.precondition(lambda self: len(self.open) < MOST_SOCKETS)
    @hs.rule(member=st.booleans(), of_trio=st.booleans())
    def make(self, member: bool, of_trio: bool) -> None:
        plain = self.stack.enter_context(ends.bound_socket())
        sock = trio.socket.from_stdlib_socket(plain) if of_trio else plain
        receiver = UdpBatchReceiver(sock, self.pool)
        self.open.append(receiver)
        if member:
            self.add(len(self.open) - 1)

    @hs.precondition(lambda self: self.open)
    @hs.rule(number=st.integers(0, 100))
    def add(self, number: int) -> None:
        receiver = self.pick(number)
        self.group.add(receiver)
        if receiver not in self.members:
            self.members.append(receiver)

    @hs.precondition(lambda self: self.open)
    @hs.rule(number=st.integers(0, 100))
    def discard(self, number: int) -> None:
        receiver = self.pick(number)
        self.group.discard(receiver)
        if receiver in self.members:
            self.members.remove(receiver)

    @hs.precondition(lambda self: self.open)
    @hs.rule(number=st.integers(0, 100), times=st.integers(1, 5))
    def send(self, number: int, times: int) -> None:
        receiver = self.pick(number)
        for _ in range(times):
            packet = b"%d" % next(self.numbers)
            self.out.sendto(packet, receiver.socket.getsockname())
            self.sent[receiver].append(packet)

    @hs.precondition(lambda self: self.open)
    @hs.rule(number=st.integers(0, 100), what=st.sampled_from(["receiver", "socket"]))
    def close(self, number: int, what: str) -> None:
        receiver = self.pick(number)
        self.open.remove(receiver)
        if what == "receiver":
            receiver.close()

        async def close_socket() -> None:
            receiver.socket.close()  # trio's asks for a run

        if what == "socket":
            trio.run(close_socket)
        self.sent[receiver] = list(self.received[receiver])  # the rest is lost with it
        if receiver in self.members:
            self.to_report.add(receiver)

    @hs.rule()
    def receive_nowait(self) -> None:
        with contextlib.suppress(trio.WouldBlock):
            while True:
                try:
                    self.enter(*self.group.receive_nowait())
                except ReceiverClosedError as error:
                    self.report(error.receiver)

    @hs.rule()
    def receive(self) -> None:
        """All that is there, and then nothing more comes, however long we wait."""

        async def receive_all() -> None:
            with trio.move_on_after(10):
                while True:
                    try:
                        self.enter(*await self.group.receive())
                    except ReceiverClosedError as error:
                        self.report(error.receiver)

        trio.run(receive_all, clock=trio.testing.MockClock(autojump_threshold=0))
        assert not self.to_report, "somebody was closed and not reported"
        for receiver in self.members:
            assert self.received[receiver] == self.sent[receiver]

    @hs.rule()
    def cancelled_receive(self) -> None:
        async def receive_nothing() -> None:
            with trio.CancelScope() as scope:
                scope.cancel()
                await self.group.receive()

        trio.run(receive_nothing)

    def enter(self, receiver: UdpBatchReceiver, batch: Any) -> None:  # noqa: ANN401
        assert receiver in self.members
        self.received[receiver] += [packet for packet, _ in batch]

    def report(self, receiver: UdpBatchReceiver) -> None:
        self.to_report.remove(receiver)
        self.members.remove(receiver)

    @hs.invariant()
    def the_group_is_who_is_in_it(self) -> None:
        assert list(self.group) == self.members
        assert len(self.group) == len(self.members)
        for receiver, packets in self.received.items():
            assert packets == self.sent[receiver][: len(packets)]

    def teardown(self) -> None:
        self.group.close()
        assert self.pool.statistics().slabs_in_use == 0
        for receiver in self.open:
            left = len(self.sent[receiver]) - len(self.received[receiver])
            if left:
                assert ends.payloads(receiver, left) == self.sent[receiver][-left:]
        self.stack.close()


@pytest.mark.parametrize("poller", groups.POLLERS)
def test_a_group_behaves_as_its_model(backend: str, poller: str) -> None:
    machine = type("Machine", (GroupMachine,), {"poller": poller})
    settings = hypothesis.settings(max_examples=40, stateful_step_count=30)
    hs.run_state_machine_as_test(machine, settings=settings)
