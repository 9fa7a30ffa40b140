# A model of a relay: who has a session, with which target, and what each datagram becomes.
#
# Hypothesis lets clients send and targets answer, in bursts and trains, lets time go by, takes
# targets away and brings them back, and stops the relay. Each datagram says whom it is from: it
# reaches the target that rendezvous hashing gives that client, each answer its own client, each
# client's in order; and what is dropped is what the model says, by reason.

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings, strategies as st

from snaptun_trio import UdpBatchSender, UdpRelay
from snaptun_trio._rendezvous import choose

from . import ends, relays

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from snaptun_trio import Address

CLIENTS, TARGETS, MOST = 7, 3, 4
IDLE, GRAIN = 64.0, 1.0
STEP = 2.0  # seconds; more than the grain, so that each use is noted


def client_of(packet: bytes) -> int:
    """Who sent this one."""
    return int(packet.split()[0])


Burst = list[tuple[int, int]]
"""Of which clients, and how many of each, as they come in with one call."""
bursts = st.lists(st.tuples(st.integers(0, CLIENTS - 1), st.integers(1, 3)), min_size=1, max_size=5)
steps = st.one_of(
    st.tuples(st.just("send"), bursts),
    st.tuples(st.just("send"), bursts),
    st.tuples(st.just("send"), st.just([(number, 1) for number in range(CLIENTS)])),
    st.tuples(st.just("train"), st.integers(0, CLIENTS - 1)),
    st.tuples(st.just("answer"), st.lists(st.integers(0, CLIENTS - 1), max_size=6)),
    st.tuples(st.just("pass"), st.sampled_from([10.0, 30.0, 90.0])),
    st.tuples(st.just("targets"), st.sets(st.integers(0, TARGETS - 1), min_size=1)),
)
Step = tuple[str, object]


class Session:
    """What the model knows of one."""

    def __init__(self, target: int, heard: float, established: bool) -> None:
        self.target, self.heard, self.established = target, heard, established


class Model:
    """A relay beside what must be true of it."""

    def __init__(self, stack: contextlib.ExitStack, clock: trio.testing.MockClock) -> None:
        self.clock = clock
        self.clients = [
            stack.enter_context(ends.bound_socket(f"127.0.0.{1 + number}"))
            for number in range(CLIENTS)
        ]
        self.targets = [stack.enter_context(ends.bound_socket()) for _ in range(TARGETS)]
        self.where: list[Address] = [ends.address_of(target) for target in self.targets]
        self.relay = UdpRelay(("0.0.0.0", 0), self.where, max_sessions=MOST, idle_timeout=IDLE)
        self.chosen = set(range(TARGETS))
        self.sessions: dict[int, Session] = {}
        self.lines: dict[bool, list[int]] = {False: [], True: []}
        self.upstream: dict[int, Address] = {}
        self.numbers = [0] * CLIENTS
        self.out = [0] * TARGETS  # to each, since it became one
        self.counts: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.sent = self.answered = 0
        self.expected: list[list[bytes]] = [[] for _ in range(TARGETS)]
        self.stopping = False

    # -- the model

    def heard(self, client: int, *, more: bool) -> None:
        session = self.sessions[client]
        session.heard = trio.current_time()
        self.lines[session.established].remove(client)
        session.established = session.established or more
        self.lines[session.established].append(client)

    def end(self, client: int, why: str) -> None:
        session = self.sessions.pop(client)
        self.lines[session.established].remove(client)
        self.upstream.pop(client, None)
        self.counts[why] += 1

    def admit(self, client: int, count: int) -> bool:
        """Whether what a client sends with one call goes on."""
        if client in self.sessions:
            self.heard(client, more=True)
            return True
        full = len(self.sessions) >= MOST
        if self.stopping or (full and not self.lines[False]):
            self.dropped["stopping" if self.stopping else "table full"] += count
            self.counts["shed"] += 1
            return False
        if full:
            self.end(self.lines[False][0], "evicted")
        address = ends.address_of(self.clients[client])
        target = self.where.index(choose(address, [self.where[n] for n in sorted(self.chosen)]))
        self.sessions[client] = Session(target, trio.current_time(), count > 1)
        self.lines[count > 1].append(client)
        self.counts["created"] += 1
        return True

    # -- the steps

    async def send(self, burst: Burst) -> None:
        to = ("127.0.0.1", self.relay.local_address[1])
        packets: dict[int, list[bytes]] = {}
        for client, count in burst:
            for _ in range(count):
                self.numbers[client] += 1
                packet = b"%d %d" % (client, self.numbers[client])
                self.clients[client].sendto(packet, to)
                packets.setdefault(client, []).append(packet)
        await self.came(packets)

    async def train(self, client: int) -> None:
        to = ("127.0.0.1", self.relay.local_address[1])
        packets = []
        for _ in range(40):
            self.numbers[client] += 1
            packets.append(b"%d %05d" % (client, self.numbers[client]))
        UdpBatchSender(self.clients[client]).send_nowait(ends.batch_of(packets, to))
        await self.came({client: packets})

    async def came(self, packets: dict[int, list[bytes]]) -> None:
        for client, some in packets.items():
            self.sent += len(some)
            if self.admit(client, len(some)):
                to = self.sessions[client].target
                self.expected[to] += some
                self.out[to] += len(some)
        await relays.until(
            self.relay,
            lambda seen: (
                seen.to_targets.datagrams_in == self.sent and not seen.to_targets.datagrams_waiting
            ),
            self.clock,
        )
        for number, target in enumerate(self.targets):
            got = relays.waiting(target)
            assert sorted((packet for packet, _ in got), key=client_of) == sorted(
                self.expected[number], key=client_of
            ), "each client's in order"
            self.expected[number].clear()
            for packet, address in got:
                client = client_of(packet)
                if client in self.sessions:  # of one that had to go it says nothing
                    assert self.upstream.setdefault(client, address) == address

    async def answer(self, whom: list[int]) -> None:
        answers: dict[int, list[bytes]] = {}
        for client in whom:
            if client in self.sessions:
                self.answered += 1
                packet = b"answer %d to %d" % (self.answered, client)
                answers.setdefault(client, []).append(packet)
                self.targets[self.sessions[client].target].sendto(packet, self.upstream[client])
        await relays.until(
            self.relay,
            lambda seen: seen.to_clients.datagrams_in == self.answered,
            self.clock,
        )
        # Those of one moment are noted in the order in which the system calls them ready; for
        # which of them makes room first, the model asks.
        table = relays.forwarding_of(self.relay)._table
        for client in answers:
            self.heard(client, more=False)
        for established, line in ((False, table._strangers), (True, table._established)):
            names = [ends.address_of(client) for client in self.clients]
            real = [names.index(address) for address in line]
            assert sorted(real) == sorted(self.lines[established])
            quiet = [client for client in self.lines[established] if client not in answers]
            assert real[: len(quiet)] == quiet, "whoever was answered stands behind them"
            self.lines[established] = real
        for number, sock in enumerate(self.clients):
            assert [packet for packet, _ in relays.waiting(sock)] == answers.get(number, [])

    async def go_by(self, seconds: float) -> None:
        self.clock.jump(seconds)
        now = trio.current_time()
        for client, session in list(self.sessions.items()):
            if session.heard + IDLE + GRAIN <= now:
                self.end(client, "expired")
        await relays.until(
            self.relay, lambda seen: seen.sessions_expired == self.counts["expired"], self.clock
        )

    async def choose_targets(self, chosen: set[int]) -> None:
        self.chosen = chosen
        await self.relay.set_targets([self.where[number] for number in chosen])
        self.out = [count * (number in chosen) for number, count in enumerate(self.out)]
        for client, session in list(self.sessions.items()):
            if session.target not in chosen:
                self.end(client, "moved")

    def check(self) -> None:
        told = relays.laws(self.relay)
        assert told.sessions == len(self.sessions)
        for name in ("created", "expired", "evicted", "moved", "shed"):
            assert getattr(told, f"sessions_{name}") == self.counts[name], (name, told)
        assert told.to_targets.dropped == self.dropped
        assert told.to_clients.dropped == {}
        assert told.to_targets.datagrams_out == self.sent - self.dropped.total()
        assert told.to_clients.datagrams_out == self.answered
        with_whom = [session.target for session in self.sessions.values()]
        assert [(one.address, one.sessions, one.datagrams_out) for one in told.targets] == [
            (self.where[number], with_whom.count(number), self.out[number])
            for number in self.chosen
        ]
        assert not any(one.dropped or one.asynchronous_errors for one in told.targets)


async def play(program: list[Step], ending: str, clock: trio.testing.MockClock) -> None:
    with contextlib.ExitStack() as stack:
        model = Model(stack, clock)
        does: dict[str, Callable[..., object]] = {
            "send": model.send,
            "train": model.train,
            "answer": model.answer,
            "pass": model.go_by,
            "targets": model.choose_targets,
        }
        async with trio.open_nursery() as nursery:
            await nursery.start(model.relay.run)
            for name, argument in program:
                await does[name](argument)  # type: ignore[misc]
                model.check()
                await model.go_by(STEP)
            if ending == "stop":
                model.relay.stop()
                model.stopping = True
                for client in range(CLIENTS):
                    await model.send([(client, 1)])
                model.check()
                clock.jump(10.0)
                while not model.relay._end.is_set():
                    clock.jump(0.2)
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        left = len(model.sessions)
        told = relays.laws(model.relay)
        assert (told.sessions, told.sessions_closed) == (0, left)
        _nothing_more(model.clients, model.targets)


def _nothing_more(*sockets: list[socket.socket]) -> None:
    for some in sockets:
        for sock in some:
            assert relays.waiting(sock) == []


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    program=st.lists(steps, max_size=12),
    ending=st.sampled_from(["stop", "cancel"]),
)
def test_a_relay_does_what_its_model_does(backend: str, program: list[Step], ending: str) -> None:
    clock = trio.testing.MockClock()
    trio.run(play, program, ending, clock, clock=clock)


@pytest.mark.slow
@settings(max_examples=600, suppress_health_check=list(HealthCheck))
@given(
    program=st.lists(steps, min_size=5, max_size=40),
    ending=st.sampled_from(["stop", "cancel"]),
)
def test_a_relay_does_what_its_model_does_for_long(
    backend: str, program: list[Step], ending: str
) -> None:
    clock = trio.testing.MockClock()
    trio.run(play, program, ending, clock, clock=clock)
