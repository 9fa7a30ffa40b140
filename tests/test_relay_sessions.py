# The sessions of a relay: who may come, who has to go, and what becomes of what is under way.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import UdpRelay, _relay_front
from snaptun_trio._kernel._fan import Received
from snaptun_trio._messages import TrainMessages
from snaptun_trio._relay_sessions import RelaySession, RelaySessions

from . import ends, relays

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from snaptun_trio import Address
    from snaptun_trio._kernel._fan import Fan, Link

pytestmark = pytest.mark.usefixtures("backend")

IDLE = 64.0
GRAIN = 1.0
"""That a session is in use is noted so often, see `_relay_sessions`."""


def forwarding(relay: UdpRelay) -> RelaySessions:
    found = relays.forwarding_of(relay)
    assert isinstance(found, RelaySessions)
    return found


def session_of(relay: UdpRelay, client: socket.socket) -> RelaySession:
    found = forwarding(relay)._table.get(ends.address_of(client))
    assert found is not None
    return found


# -- silence


async def test_a_session_ends_when_nothing_goes_either_way(
    udp: ends.MakeSocket, mock_clock: trio.testing.MockClock
) -> None:
    target, clients = udp(), [udp() for _ in range(3)]
    async with relays.running([target], idle_timeout=IDLE) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(3):
            await stage.send(number, b"%d" % number)
        came = dict(await relays.receive(target, 3))
        for _ in range(4):
            mock_clock.jump(IDLE / 2)
            await stage.send(0, b"client 0 speaks")
            target.sendto(b"client 1 is spoken to", came[b"1"])
            await trio.lowlevel.wait_readable(clients[1])
            relays.waiting(clients[1])
            await trio.testing.wait_all_tasks_blocked()
        told = relays.laws(relay)
        assert (told.sessions, told.sessions_expired) == (2, 1)
        assert forwarding(relay)._table.get(ends.address_of(clients[2])) is None
        mock_clock.jump(IDLE + 2 * GRAIN)
        await relays.until(relay, lambda seen: seen.sessions_expired == 3)
        target.sendto(b"too late", came[b"1"])
        relays.waiting(target)
        await stage.send(1, b"again")
        ((packet, address),) = await relays.receive(target, 1)
        assert (packet, relays.laws(relay).sessions_created) == (b"again", 4)
        assert address != came[b"1"]


async def test_a_session_never_ends_before_its_time(
    udp: ends.MakeSocket, mock_clock: trio.testing.MockClock
) -> None:
    """What goes through it just before the next note of that is heard of as well."""
    target, client = udp(), udp()
    async with relays.running([target], idle_timeout=IDLE) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"one", b"two")
        mock_clock.jump(GRAIN * 0.9)
        await stage.send(0, b"three")
        mock_clock.jump(IDLE * 0.999)
        await trio.testing.wait_all_tasks_blocked()
        assert relays.laws(relay).sessions == 1
        mock_clock.jump(2 * GRAIN)
        await relays.until(relay, lambda seen: not seen.sessions)


async def test_an_answer_that_came_before_a_session_ends_is_sent(
    udp: ends.MakeSocket, mock_clock: trio.testing.MockClock
) -> None:
    target, client = udp(), udp()
    async with relays.running([target], idle_timeout=IDLE) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"question")
        ((_, address),) = await relays.receive(target, 1)
        target.sendto(b"the last answer", address)
        forwarding(relay)._expire(session_of(relay, client))
        assert await relays.payloads(client, 1) == [b"the last answer"]


async def test_a_session_ends_within_a_second_of_its_time(
    udp: ends.MakeSocket, mock_clock: trio.testing.MockClock
) -> None:
    target, client = udp(), udp()
    async with relays.running([target], idle_timeout=6400.0) as relay:
        await relays.Stage(relay, [client]).send(0, b"x")
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(6401.1)
        await relays.until(relay, lambda seen: seen.sessions_expired == 1)


async def test_never_is_never(udp: ends.MakeSocket, mock_clock: trio.testing.MockClock) -> None:
    target, client = udp(), udp()
    async with relays.running([target], idle_timeout=float("inf")) as relay:
        await relays.Stage(relay, [client]).send(0, b"x")
        mock_clock.jump(1e9)
        await trio.testing.wait_all_tasks_blocked()
        assert relays.laws(relay).sessions == 1


# -- room


async def test_for_a_newcomer_goes_who_sent_once_and_was_silent_for_longest(
    udp: ends.MakeSocket, mock_clock: trio.testing.MockClock
) -> None:
    target, clients = udp(), [udp() for _ in range(7)]
    async with relays.running([target], max_sessions=3) as relay:
        stage = relays.Stage(relay, clients)

        def there() -> set[int]:
            known = forwarding(relay)._table.get
            return {n for n, one in enumerate(clients) if known(ends.address_of(one))}

        for number in range(3):
            await stage.send(number, b"x")
            mock_clock.jump(2.0)
        await stage.send(0, b"y")
        await stage.send(3, b"x")
        assert there() == {0, 2, 3}
        mock_clock.jump(2.0)
        # What is answered is not silent; that makes nobody established.
        with session_of(relay, clients[2]).io.plain() as plain:
            address = plain.getsockname()
        target.sendto(b"answer", address)
        assert await relays.payloads(clients[2], 1) == [b"answer"]
        await stage.send(4, b"x")
        assert there() == {0, 2, 4}
        mock_clock.jump(2.0)
        target.sendto(b"answer", address)
        assert await relays.payloads(clients[2], 1) == [b"answer"]
        assert {session_of(relay, clients[n]).established for n in (2, 4)} == {False}
        await stage.send(2, b"y")
        await stage.send(4, b"y")
        await stage.send(5, b"x", b"shed", b"all three")
        assert there() == {0, 2, 4}
        told = relays.laws(relay)
        assert (told.sessions_evicted, told.sessions_shed) == (2, 1)
        assert told.to_targets.dropped == {"table full": 3}


async def test_who_sends_several_at_once_is_established_at_once(udp: ends.MakeSocket) -> None:
    target, clients = udp(), [udp() for _ in range(2)]
    async with relays.running([target], max_sessions=1) as relay:
        stage = relays.Stage(relay, clients)
        await stage.send(0, b"one", b"two")
        await stage.send(1, b"shed")
        assert relays.laws(relay).to_targets.dropped == {"table full": 1}


async def test_who_has_to_go_is_sent_what_it_is_due(udp: ends.MakeSocket) -> None:
    """Newcomers and those who make room for them come in with one call, and so do answers."""
    target, clients = udp(), [udp() for _ in range(2)]
    async with relays.running([target], max_sessions=1) as relay:
        stage = relays.Stage(relay, clients)
        await stage.send(0, b"question")
        ((_, address),) = await relays.receive(target, 1)
        for _ in range(40):
            target.sendto(b"answer", address)
        await stage.send(1, b"newcomer")
        assert await relays.payloads(clients[0], 40) == [b"answer"] * 40
        told = relays.laws(relay)
        assert (told.sessions, told.sessions_evicted) == (1, 1)
        assert await relays.payloads(target, 1) == [b"newcomer"]


async def test_what_comes_in_one_batch_is_sent_before_its_session_has_to_go(
    udp: ends.MakeSocket,
) -> None:
    target, clients = udp(), [udp() for _ in range(5)]
    async with relays.running([target], max_sessions=1) as relay:
        for number, client in enumerate(clients):
            client.sendto(b"%d" % number, relay.local_address)
        assert await relays.payloads(target, 5) == [b"%d" % number for number in range(5)]
        assert relays.laws(relay).sessions_evicted == 4


@pytest.mark.parametrize("error", [errno.ECONNREFUSED, errno.EIO])
async def test_an_error_before_the_last_answers_costs_none_of_them(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """It is told first, and the answers are behind it; and a session ends only once."""
    target, other, client = udp(), udp(), udp()
    async with relays.running([target], max_sessions=1) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"question")
        ((_, address),) = await relays.receive(target, 1)
        target.sendto(b"answer", address)
        fan = forwarding(relay)._fan
        fail_next(monkeypatch, fan, error)
        forwarding(relay).set_targets([ends.address_of(other)])
        told = relays.laws(relay)
        assert (told.sessions, told.sessions_created) == (0, 1)
        assert (told.sessions_moved, told.sessions_failed) == (
            (1, 0) if error == errno.ECONNREFUSED else (0, 1)
        )
        if error == errno.ECONNREFUSED:
            assert await relays.payloads(client, 1) == [b"answer"]


def fail_next(monkeypatch: pytest.MonkeyPatch, fan: Fan, error: int) -> None:
    """The next socket that is read meets this error instead."""
    real = fan.receive

    def receive(links: Sequence[Link]) -> Received:
        monkeypatch.setattr(fan, "receive", real)
        return Received(TrainMessages.of_trains(()), 1, error)

    monkeypatch.setattr(fan, "receive", receive)


async def test_a_session_whose_socket_fails_ends_alone(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, clients = udp(), [udp() for _ in range(2)]
    async with relays.running([target]) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(2):
            await stage.send(number, b"%d" % number)
        came = dict(await relays.receive(target, 2))
        fail_next(monkeypatch, forwarding(relay)._fan, errno.EIO)
        target.sendto(b"x", came[b"0"])
        await relays.until(relay, lambda seen: seen.sessions_failed)
        target.sendto(b"for 1", came[b"1"])
        assert await relays.payloads(clients[1], 1) == [b"for 1"]
        await stage.send(0, b"a new one")
        assert relays.laws(relay).sessions_created == 3
        relays.waiting(target)
        fail_next(monkeypatch, forwarding(relay)._fan, errno.EIO)
        target.sendto(b"x", came[b"1"])
        await relays.until(relay, lambda seen: seen.sessions_failed == 2)


# -- turns


async def test_answers_wait_for_no_time_to_go_by(
    udp: ends.MakeSocket, mock_clock: trio.testing.MockClock
) -> None:
    target, client = udp(), udp()
    async with relays.running([target]) as relay:
        await relays.Stage(relay, [client]).send(0, b"x")
        ((_, address),) = await relays.receive(target, 1)
        for number in range(3 * _relay_front._PATIENCE):
            target.sendto(b"%d" % number, address)
            await trio.lowlevel.wait_readable(client)
            assert [packet for packet, _ in relays.waiting(client)] == [b"%d" % number]


async def test_sockets_that_are_called_ready_and_have_nothing_make_no_spin(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    target, client = udp(), udp()
    async with relays.running([target]) as relay:
        await relays.Stage(relay, [client]).send(0, b"x")
        ((_, address),) = await relays.receive(target, 1)
        reads: list[int] = []

        def receive(links: Sequence[Link]) -> Received:
            reads.append(len(links))
            return Received(TrainMessages.of_trains(()), len(links), 0)

        with monkeypatch.context() as patch:
            patch.setattr(forwarding(relay)._fan, "receive", receive)
            target.sendto(b"y", address)
            await trio.testing.wait_all_tasks_blocked()  # in a spin it would never be
            assert len(reads) == _relay_front._PATIENCE
        mock_clock.jump(1.0)
        assert await relays.payloads(client, 1) == [b"y"]
        for number in range(_relay_front._PATIENCE // 2):
            target.sendto(b"%d" % number, address)
            await trio.lowlevel.wait_readable(client)
            relays.waiting(client)


# -- other targets


async def test_other_targets_move_only_the_sessions_of_those_that_are_gone(
    udp: ends.MakeSocket,
) -> None:
    targets = [udp() for _ in range(3)]
    clients = [udp(f"127.0.0.{number}") for number in range(1, 41)]
    async with relays.running(targets, ("0.0.0.0", 0)) as relay:
        stage = relays.Stage(relay, clients)
        here: Address = ("127.0.0.1", relay.local_address[1])
        for number in range(40):
            await stage.send(number, b"%d" % number, to=here)
        first = [dict(relays.waiting(target)) for target in targets]
        assert all(first)
        assert relay.targets == tuple(ends.address_of(target) for target in targets)
        for packet, address in first[2].items():
            targets[2].sendto(b"under way for " + packet, address)
        left = [ends.address_of(target) for target in reversed(targets[:2])]
        await relay.set_targets(left)
        assert relay.targets == tuple(left)
        assert "2 targets" in repr(relay)
        told = relays.laws(relay)
        assert told.sessions_moved == len(first[2]) == 40 - told.sessions
        for packet in first[2]:
            (got,) = await relays.payloads(clients[int(packet)], 1)
            assert got == b"under way for " + packet
        for number in range(40):
            await stage.send(number, b"%d" % number, to=here)
        second = [dict(relays.waiting(target)) for target in targets]
        assert not second[2]
        for before, after in zip(first[:2], second[:2]):
            assert before.items() <= after.items(), "the same clients, with the same sessions"
        assert relays.laws(relay).sessions_moved == len(first[2])


async def test_other_targets_that_cannot_be_had_change_nothing(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    async with relays.running([target]) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"x")
        with pytest.raises(OSError, match=r"targets=.*invalid"):
            await relay.set_targets([("name.invalid", 9)])
        with trio.CancelScope() as scope:
            scope.cancel()
            await relay.set_targets([("127.0.0.1", 9)])
        assert scope.cancelled_caught
        assert relay.targets == (ends.address_of(target),)
        await stage.send(0, b"y")
        assert await relays.payloads(target, 2) == [b"x", b"y"]
        assert relays.laws(relay).sessions_moved == 0


@pytest.mark.parametrize("duplicate", [False, True])
async def test_only_a_relay_that_runs_can_have_other_targets(
    udp: ends.MakeSocket, duplicate: bool
) -> None:
    relay = UdpRelay(("127.0.0.1", 0), [ends.address_of(udp())], duplicate=duplicate)
    with pytest.raises(RuntimeError, match="run"):
        await relay.set_targets([("127.0.0.1", 9)])
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        relay.stop()
    with relays.same_descriptors(), pytest.raises(RuntimeError, match="run"):
        await relay.set_targets([("127.0.0.1", 9)])
