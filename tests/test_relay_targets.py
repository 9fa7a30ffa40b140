# What a relay tells of each of its targets: which one is dead, or slow. That it is never more than
# all of them together is held by `relays.laws`, wherever a test looks at a relay.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from snaptun_trio import RelayStatistics, RelayTarget, UdpRelay
from snaptun_trio._rendezvous import choose

from . import ends, refusals, relays

if TYPE_CHECKING:
    from snaptun_trio import Address

pytestmark = pytest.mark.usefixtures("backend")


def clients_of(target: Address, targets: list[Address]) -> list[str]:
    """Hosts whose target this is."""
    hosts = [f"127.0.0.{number}" for number in range(1, 60)]
    return [host for host in hosts if choose((host, 9), targets) == target]


def line_of(seen: RelayStatistics, target: Address) -> RelayTarget:
    """What is told of a target."""
    (line,) = [one for one in seen.targets if one.address == target]
    return line


def check_equal(seen: RelayStatistics) -> None:
    """Nothing that went to targets is in none of them."""
    flow, targets = seen.to_targets, seen.targets
    assert sum(one.datagrams_out for one in targets) == flow.datagrams_out
    for of_all, of_each in (
        (flow.dropped, [one.dropped for one in targets]),
        (flow.asynchronous_errors, [one.asynchronous_errors for one in targets]),
    ):
        assert {key: sum(one.get(key, 0) for one in of_each) for key in of_all} == of_all


def set_verdict(
    relay: UdpRelay, target: Address, codes: dict[int, int], code: int = errno.EAGAIN
) -> None:
    """Let sockets to a target be refused everything from here on."""
    for upstream in relays.forwarding_of(relay).upstreams():
        if upstream.target == target:
            codes[upstream.io.sock.fileno()] = code


@pytest.mark.core
@pytest.mark.parametrize("duplicate", [False, True])
async def test_each_target_has_what_went_to_it(udp: ends.MakeSocket, duplicate: bool) -> None:
    targets = [udp() for _ in range(3)]
    where = [ends.address_of(target) for target in targets]
    clients = [udp(f"127.0.0.{number}") for number in range(1, 30)]
    relay = UdpRelay(("0.0.0.0", 0), where, duplicate=duplicate)
    assert relays.laws(relay).targets == ()
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        stage = relays.Stage(relay, clients)
        to: Address = ("127.0.0.1", relay.local_address[1])
        for number in range(len(clients)):
            await stage.send(number, b"one", b"two", bytes(1000), to=to)
        told = relays.laws(relay)
        nursery.cancel_scope.cancel()
    check_equal(told)
    assert [one.address for one in told.targets] == where
    assert [one.datagrams_out for one in told.targets] == [
        len(relays.waiting(target)) for target in targets
    ]
    assert all(one.datagrams_out for one in told.targets)
    assert [3 * one.sessions for one in told.targets] == [
        0 if duplicate else one.datagrams_out for one in told.targets
    ]
    after = relays.laws(relay)
    assert after.targets == tuple(attrs.evolve(one, sessions=0) for one in told.targets)


@pytest.mark.parametrize("duplicate", [False, True])
async def test_a_dead_target_is_the_one_that_shows_it(
    udp: ends.MakeSocket, duplicate: bool
) -> None:
    live, dead = udp(), ends.deafen(udp())
    where = [ends.address_of(live), dead]
    clients = [udp(clients_of(one, where)[0]) for one in where]
    async with relays.running(where, ("0.0.0.0", 0), duplicate=duplicate) as relay:
        stage = relays.Stage(relay, clients)
        for _ in range(5):
            for number in range(2):
                await stage.send(number, b"x", to=("127.0.0.1", relay.local_address[1]))
        told = await relays.until(relay, lambda seen: seen.to_targets.asynchronous_errors)
        assert line_of(told, where[0]).asynchronous_errors == {}
        assert line_of(told, where[0]).dropped == {}
        assert set(line_of(told, dead).asynchronous_errors) == {"ECONNREFUSED"}
        check_equal(told)
    check_equal(relays.laws(relay))


@pytest.mark.parametrize("duplicate", [False, True])
@pytest.mark.parametrize(
    ("code", "reason"), [(errno.EAGAIN, "socket full"), (errno.EPERM, "EPERM")]
)
async def test_a_slow_target_is_the_one_that_shows_it(
    udp: ends.MakeSocket,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
    duplicate: bool,
    code: int,
    reason: str,
) -> None:
    """While its sockets are there, and when they are gone."""
    targets = [udp(), udp()]
    where = [ends.address_of(target) for target in targets]
    clients = [udp(clients_of(one, where)[0]) for one in where]
    async with relays.running(where, ("0.0.0.0", 0), duplicate=duplicate) as relay:
        stage = relays.Stage(relay, clients)
        to: Address = ("127.0.0.1", relay.local_address[1])
        for number in range(2):
            await stage.send(number, b"first", to=to)
        codes: dict[int, int] = {}
        refusals.refuse_by_descriptor(monkeypatch, backend, codes)
        set_verdict(relay, where[1], codes, code)
        for number in range(2):
            await stage.send(number, b"1", b"22", b"333", to=to)
        told = relays.laws(relay)
        lost = 6 if duplicate else 3
        assert line_of(told, where[0]).dropped == {}
        assert line_of(told, where[1]).dropped == told.to_targets.dropped == {reason: lost}
        codes.clear()
        await stage.send(1, b"last", to=to)
        told = relays.laws(relay)
        for one, target in zip(told.targets, targets):
            assert one.datagrams_out == len(relays.waiting(target))
        check_equal(told)
    after = relays.laws(relay)
    check_equal(after)
    assert [one.dropped for one in after.targets] == [{}, {reason: lost}]


async def test_what_ended_sessions_had_counted_stays_with_their_target(
    udp: ends.MakeSocket,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
    mock_clock: trio.testing.MockClock,
) -> None:
    target, client = udp(), udp()
    where = ends.address_of(target)
    async with relays.running([target], idle_timeout=64.0) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"first")
        codes: dict[int, int] = {}
        refusals.refuse_by_descriptor(monkeypatch, backend, codes)
        set_verdict(relay, where, codes)
        await stage.send(0, b"lost")
        codes.clear()
        before = relays.laws(relay).targets
        mock_clock.jump(100.0)
        await relays.until(relay, lambda seen: seen.sessions_expired, mock_clock)
        after = relays.laws(relay).targets
        assert after == (attrs.evolve(before[0], sessions=0),)
        assert (after[0].datagrams_out, after[0].dropped) == (1, {"socket full": 1})


async def test_what_is_no_targets_is_in_none(udp: ends.MakeSocket) -> None:
    """Of who is turned away nobody looks which it would have been."""
    target, clients = udp(), [udp() for _ in range(3)]
    async with relays.running([target], max_sessions=1) as relay:
        stage = relays.Stage(relay, clients)
        await stage.send(0, b"x", b"y")
        await stage.send(0, b"z")
        await stage.send(1, b"x")
        relay.stop()
        await stage.send(2, b"x")
        told = relays.laws(relay)
        assert told.to_targets.dropped == {"table full": 1, "stopping": 1}
        assert [(one.datagrams_out, one.dropped) for one in told.targets] == [(3, {})]


@pytest.mark.parametrize("duplicate", [False, True])
async def test_a_target_that_is_taken_away_is_not_told_of_and_begins_anew(
    udp: ends.MakeSocket, duplicate: bool
) -> None:
    targets, client = [udp(), udp()], udp()
    one, other = (ends.address_of(target) for target in targets)
    async with relays.running([one], duplicate=duplicate) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"x", b"y")
        await relay.set_targets([other, one])
        told = relays.laws(relay)
        assert [line.address for line in told.targets] == list(relay.targets) == [other, one]
        assert line_of(told, one).datagrams_out == 2, "it stayed"
        await relay.set_targets([other])
        assert [line.address for line in relays.laws(relay).targets] == [other]
        await stage.send(0, b"z")
        await relay.set_targets([one])
        told = relays.laws(relay)
        assert [(line.address, line.datagrams_out) for line in told.targets] == [(one, 0)]
        assert told.to_targets.datagrams_out == 3, "all of them stay in the sums"
        assert told.sessions == told.targets[0].sessions == 0


@pytest.mark.parametrize("duplicate", [False, True])
async def test_who_sets_other_targets_for_ever_does_not_grow(
    udp: ends.MakeSocket, duplicate: bool
) -> None:
    client = udp()
    async with relays.running([("127.0.0.1", 9)], duplicate=duplicate) as relay:
        stage = relays.Stage(relay, [client])
        for port in range(20_000, 20_100):
            await relay.set_targets([("127.0.0.1", port), ("127.0.0.2", port)])
            await stage.send(0, b"x")
            assert len(relays.laws(relay).targets) == 2
        forwarding = relays.forwarding_of(relay)
        assert len(forwarding.accounts) == 2
        assert {id(up.account) for up in forwarding.upstreams()} <= {
            id(account) for account in forwarding.accounts.values()
        }
