# Functions that do anything, in the middle of anything: the account of a relay holds at every look.
#
# Each datagram says what the function is to do that gets it: pass it on, keep it, send it thrice,
# answer, end its own session, or all of them, raise, or look at the statistics. The functions count
# for themselves what they were given and what they made of it, and write down what has to arrive:
# the relay's account says the same, and exactly that arrives, each session's in order.

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings, strategies as st

from snaptun_trio import Address, PacketBatch, RelayClient, UdpRelay

from . import ends, relays

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from snaptun_trio import RelayFlow
    from snaptun_trio._kernel._fan import Link, Received, Sent
    from snaptun_trio._messages import Messages

CLIENTS, TARGETS, MOST = 6, 2, 4
IDLE = 64.0

Batch = PacketBatch[Address]

OPERATIONS = ("pass", "keep", "thrice", "answer", "others", "close", "all", "raise", "look", "same")
operations = st.sampled_from(OPERATIONS)
Burst = list[tuple[int, str]]
bursts = st.lists(st.tuples(st.integers(0, CLIENTS - 1), operations), min_size=1, max_size=8)
steps = st.one_of(
    st.tuples(st.just("send"), bursts),
    st.tuples(st.just("answer"), bursts),
    st.tuples(st.just("both"), bursts),
    st.tuples(st.just("close"), st.integers(0, 20)),
    st.tuples(st.just("late"), st.integers(0, 20)),
    st.tuples(st.just("pass"), st.sampled_from([10.0, 90.0])),
    st.tuples(st.just("targets"), st.sets(st.integers(0, TARGETS - 1), min_size=1)),
)
Step = tuple[str, object]


def check_sessions(by_port: list[list[bytes]], expected: list[list[bytes]]) -> None:
    """What came from each port is what one session sent, or several one after the other: the system
    may give the port of one that has ended to a later one."""
    left = sorted(expected)
    for came in by_port:
        while came:
            session = next(each for each in left if each[0] == came[0])
            left.remove(session)
            assert came[: len(session)] == session
            came = came[len(session) :]
    assert left == []


class Fault(Exception):
    """A fault of the program."""


class Model:
    """A relay, and what its functions know."""

    def __init__(self, stack: contextlib.ExitStack, clock: trio.testing.MockClock) -> None:
        self.clock = clock
        self.clients = [stack.enter_context(ends.bound_socket()) for _ in range(CLIENTS)]
        self.numbers = {ends.address_of(one): number for number, one in enumerate(self.clients)}
        self.targets = [stack.enter_context(ends.bound_socket()) for _ in range(TARGETS)]
        self.where = [ends.address_of(target) for target in self.targets]
        self.relay = UdpRelay(
            ("127.0.0.1", 0),
            self.where,
            from_client=self.from_client,
            from_target=self.from_target,
            on_error=self.on_error,
            max_sessions=MOST,
            idle_timeout=IDLE,
        )
        self.known: dict[RelayClient, None] = {}
        self.packets = 0
        # What the functions count: of each direction.
        self.came: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.added: Counter[str] = Counter()
        self.too_late = self.raised = self.asked = 0
        # What has to arrive.
        self.at_targets: dict[RelayClient, list[bytes]] = {}
        self.at_clients: list[list[bytes]] = [[] for _ in self.clients]

    def watch(self) -> None:
        """No socket is read or written that is closed: its number may be somebody else's."""
        fan = relays.forwarding_of(self.relay)._fan
        receive, send = fan.receive, fan.send

        def check(links: Sequence[Link]) -> None:
            assert all(link.io.sock.fileno() >= 0 for link in links)

        def checked_receive(links: Sequence[Link]) -> Received:
            check(links)
            received: Received = receive(links)
            return received

        def checked_send(links: Sequence[Link], batches: list[Messages], budget: int) -> Sent:
            check(links)
            sent: Sent = send(links, batches, budget)
            return sent

        fan.receive, fan.send = checked_receive, checked_send

    # -- the functions

    def from_client(self, batch: Batch, client: RelayClient) -> PacketBatch | list[bytes] | None:
        self.known[client] = None
        return self.count("to_targets", batch, client, self.at_targets.setdefault(client, []))

    def from_target(self, batch: Batch, client: RelayClient) -> PacketBatch | list[bytes] | None:
        assert client in self.known
        number = self.numbers[client.address]
        return self.count("to_clients", batch, client, self.at_clients[number])

    def count(
        self, way: str, batch: Batch, client: RelayClient, arrives: list[bytes]
    ) -> PacketBatch | list[bytes] | None:
        self.came[way] += len(batch)
        made: list[bytes] | None = []
        try:
            made = self.made_of(batch, client)
        finally:
            went = len(batch) if made is None else len(made)
            self.kept[way] += max(0, len(batch) - went)
            self.added[way] += max(0, went - len(batch))
        if made is None:
            arrives += [packet for packet, _ in batch]
            return batch
        arrives += made
        if not made or self.packets % 2:
            return made
        return PacketBatch.pack([(packet, None) for packet in made])

    def made_of(self, batch: Batch, client: RelayClient) -> list[bytes] | None:
        made: list[bytes] = []
        whole = True
        for packet, address in batch:
            assert address == client.address
            whole &= packet.endswith(b"same")
            match packet.split()[-1].decode():
                case "pass" | "same":
                    made.append(packet)
                case "thrice":
                    made += [packet] * 3
                case "answer":
                    self.answer(client, b"you sent " + packet)
                case "others":
                    for one in self.known:
                        self.answer(one, b"somebody sent " + packet)
                case "close":
                    client.close()
                    made.append(packet)
                case "all":
                    for one in self.known:
                        one.close()
                case "raise":
                    self.raised += 1
                    raise Fault
                case "look":
                    relays.laws(self.relay)
        return None if whole else made

    def on_error(self, error: Exception, client: RelayClient) -> None:
        assert isinstance(error, Fault), error
        self.asked += 1
        self.answer(client, b"sorry")

    def answer(self, client: RelayClient, packet: bytes) -> None:
        session = relays.forwarding_of(self.relay)._table.get(client.address)
        if session is not None and session.client is client:
            self.at_clients[self.numbers[client.address]].append(packet)
        else:
            self.too_late += 1
        self.added["to_clients"] += 1
        client.answer([packet])

    # -- the steps

    def packet(self, operation: str) -> bytes:
        self.packets += 1
        return b"%d %s" % (self.packets, operation.encode())

    def ask(self, burst: Burst) -> int:
        """Clients send; returns how many datagrams came by then when all of them have."""
        for client, operation in burst:
            self.clients[client].sendto(self.packet(operation), self.relay.local_address)
        return self.relay.statistics().to_targets.datagrams_in + len(burst)

    def reply(self, burst: Burst) -> int:
        """Targets send, by the sessions that there are; returns the same of these."""
        sessions = {
            self.numbers[session.address]: session
            for session in relays.forwarding_of(self.relay)._table
        }
        told = self.relay.statistics().to_clients.datagrams_in
        for client, operation in burst:
            session = sessions.get(client)
            if session is not None:
                target = self.targets[self.where.index(session.target)]
                target.sendto(self.packet(operation), session.io.sock.getsockname())
                told += 1
        return told

    async def send(self, burst: Burst) -> None:
        await self.settle(self.ask(burst), 0)

    async def answers(self, burst: Burst) -> None:
        await self.settle(0, self.reply(burst))

    async def both(self, burst: Burst) -> None:
        asked = self.ask(burst)
        await self.settle(asked, self.reply(burst))

    async def close(self, number: int) -> None:
        if number < len(self.known):
            [*self.known][number].close()
        await trio.lowlevel.checkpoint()

    async def late(self, number: int) -> None:
        if number < len(self.known):
            self.answer([*self.known][number], b"later")
        await trio.lowlevel.checkpoint()

    async def go_by(self, seconds: float) -> None:
        self.clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked()

    async def choose_targets(self, chosen: set[int]) -> None:
        await self.relay.set_targets([self.where[number] for number in chosen])

    async def settle(self, asked: int, answered: int) -> None:
        await relays.until(
            self.relay,
            lambda seen: (
                seen.to_targets.datagrams_in >= asked
                and seen.to_clients.datagrams_in >= answered
                and not seen.to_targets.datagrams_waiting
                and not seen.to_clients.datagrams_waiting
            ),
            self.clock,
        )

    # -- what must be true

    def check(self) -> None:
        told = relays.laws(self.relay)
        shed = told.to_targets.dropped.get("table full", 0)
        shed += told.to_targets.dropped.get("stopping", 0)
        self.check_flow("to_targets", told.to_targets, shed)
        self.check_flow("to_clients", told.to_clients, 0)
        assert told.to_clients.dropped.get("closed", 0) == self.too_late
        assert self.asked == self.raised
        for where, target in zip(self.where, self.targets):
            came: dict[Address, list[bytes]] = {}
            for packet, address in relays.waiting(target):
                came.setdefault(address, []).append(packet)
            expected = [some for one, some in self.at_targets.items() if one.target == where]
            check_sessions(list(came.values()), list(filter(None, expected)))
        self.at_targets.clear()
        for number, client in enumerate(self.clients):
            assert [packet for packet, _ in relays.waiting(client)] == self.at_clients[number]
            self.at_clients[number].clear()

    def check_flow(self, way: str, flow: RelayFlow, shed: int) -> None:
        assert flow.datagrams_in == self.came[way] + shed, flow
        assert flow.datagrams_added == self.added[way], flow
        assert flow.dropped.get("handler", 0) == self.kept[way], flow
        assert set(flow.dropped) <= {"handler", "closed", "table full", "stopping"}, flow


async def play(
    program: list[Step], ending: str, last: Burst, clock: trio.testing.MockClock
) -> None:
    with contextlib.ExitStack() as stack:
        model = Model(stack, clock)
        does: dict[str, Callable[..., object]] = {
            "send": model.send,
            "answer": model.answers,
            "both": model.both,
            "close": model.close,
            "late": model.late,
            "pass": model.go_by,
            "targets": model.choose_targets,
        }
        async with trio.open_nursery() as nursery:
            await nursery.start(model.relay.run)
            model.watch()
            for name, argument in program:
                await does[name](argument)  # type: ignore[misc]
                model.check()
            if ending == "stop":
                model.relay.stop()
                await model.send([(number, "pass") for number in range(CLIENTS)])
                model.check()
                clock.jump(10.0)
                while not model.relay._end.is_set():
                    clock.jump(0.2)
                    await trio.lowlevel.checkpoint()
            else:
                model.ask(last)
                model.reply(last)
            nursery.cancel_scope.cancel()
        model.check()
        assert model.relay.statistics().sessions == 0


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(
    program=st.lists(steps, max_size=12), ending=st.sampled_from(["stop", "cancel"]), last=bursts
)
def test_whatever_functions_do_the_account_holds(
    backend: str, program: list[Step], ending: str, last: Burst
) -> None:
    clock = trio.testing.MockClock()
    trio.run(play, program, ending, last, clock, clock=clock)


@pytest.mark.slow
@settings(max_examples=800, suppress_health_check=list(HealthCheck))
@given(
    program=st.lists(steps, min_size=5, max_size=40),
    ending=st.sampled_from(["stop", "cancel"]),
    last=bursts,
)
def test_whatever_functions_do_for_long_the_account_holds(
    backend: str, program: list[Step], ending: str, last: Burst
) -> None:
    clock = trio.testing.MockClock()
    trio.run(play, program, ending, last, clock, clock=clock)
