# A relay with ``duplicate``: every target gets everything, and no answer goes anywhere.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from snaptun_trio import UdpRelay
from snaptun_trio._relay_copies import RelayCopies

from . import ends, groups, refusals, relays

if TYPE_CHECKING:
    from collections.abc import Callable

    from snaptun_trio import Address

pytestmark = pytest.mark.usefixtures("backend", "poller")


@pytest.fixture(params=groups.POLLERS)
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with each poller: whatever relay begins from here on uses it."""
    name: str = request.param
    relays.use_poller(monkeypatch, name)
    return name


@pytest.mark.core
@pytest.mark.parametrize("local", ["127.0.0.1", "0.0.0.0"])
async def test_every_target_gets_everything_in_order(udp: ends.MakeSocket, local: str) -> None:
    targets, clients = [udp() for _ in range(3)], [udp() for _ in range(3)]
    async with relays.running(targets, (local, 0), duplicate=True) as relay:
        stage = relays.Stage(relay, clients)
        to: Address = ("127.0.0.1", relay.local_address[1])
        for number in range(3):
            await stage.send(number, b"", b"%d" % number, bytes(60_000), b"ab", b"cd", to=to)
        expected = [
            packet
            for number in range(3)
            for packet in (b"", b"%d" % number, bytes(60_000), b"ab", b"cd")
        ]
        for target in targets:
            assert await relays.payloads(target, 15) == expected
        told = relays.laws(relay)
        assert told.to_targets.datagrams_in == 15
        assert told.to_targets.datagrams_added == 30
        assert told.to_targets.datagrams_out == 45
        assert told.to_targets.bytes_out == 3 * told.to_targets.bytes_in
        assert (told.sessions, told.sessions_created) == (0, 0)


async def test_one_target_adds_nothing(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    async with relays.running([target], duplicate=True) as relay:
        await relays.Stage(relay, [client]).send(0, b"x")
        assert await relays.payloads(target, 1) == [b"x"]
        assert relays.laws(relay).to_targets.datagrams_added == 0


async def test_answers_are_dropped_and_counted(udp: ends.MakeSocket) -> None:
    targets, client = [udp(), udp()], udp()
    async with relays.running(targets, duplicate=True) as relay:
        await relays.Stage(relay, [client]).send(0, b"x")
        for target in targets:
            ((_, address),) = await relays.receive(target, 1)
            for _ in range(5):
                target.sendto(b"answer", address)
        told = await relays.until(relay, lambda seen: seen.to_clients.datagrams_in == 10)
        assert told.to_clients.dropped == {"answer": 10}
        assert told.to_clients.bytes_in == 60
        assert relays.waiting(client) == []


async def test_a_target_where_nobody_listens_hurts_no_other(udp: ends.MakeSocket) -> None:
    targets, client = [udp() for _ in range(3)], udp()
    dead = ends.deafen(targets[1])
    async with relays.running([targets[0], dead, targets[2]], duplicate=True) as relay:
        stage = relays.Stage(relay, [client])
        for number in range(30):
            await stage.send(0, b"%d" % number, b"again")
        for target in (targets[0], targets[2]):
            got = await relays.payloads(target, 60)
            assert got[::2] == [b"%d" % number for number in range(30)]
        told = await relays.until(
            relay, lambda seen: seen.to_targets.asynchronous_errors.get("ECONNREFUSED")
        )
        assert set(told.to_targets.asynchronous_errors) == {"ECONNREFUSED"}
        lost = told.to_targets.dropped.get("ECONNREFUSED", 0)
        assert set(told.to_targets.dropped) <= {"ECONNREFUSED"}
        assert told.to_targets.datagrams_out == 180 - lost


@pytest.mark.parametrize(
    ("code", "reason"), [(errno.EAGAIN, "socket full"), (errno.EPERM, "EPERM")]
)
async def test_a_target_that_nothing_can_be_sent_to_hurts_no_other(
    udp: ends.MakeSocket, code: int, reason: str
) -> None:
    targets, client = [udp() for _ in range(3)], udp()
    async with relays.running(targets, duplicate=True) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"first")
        block(relay, ends.address_of(targets[1]), code)
        await stage.send(0, b"1", b"22", b"333")
        for target in (targets[0], targets[2]):
            assert await relays.payloads(target, 4) == [b"first", b"1", b"22", b"333"]
        assert relays.laws(relay).to_targets.dropped == {reason: 3}
        block(relay, ends.address_of(targets[1]), 0)
        await stage.send(0, b"last")
        assert await relays.payloads(targets[1], 2) == [b"first", b"last"]


def block(relay: UdpRelay, target: Address, code: int) -> None:
    """Let the sockets to a target take nothing from here on, or all again."""
    for upstream in relays.forwarding_of(relay).upstreams():
        if upstream.target == target:
            _set_verdict(upstream.io.sock.fileno(), code)


_set_verdict: Callable[[int, int], None]


@pytest.fixture(autouse=True)
def verdicts(backend: str, monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """What sends on a descriptor are refused with, by the system call as each backend makes it."""
    global _set_verdict
    codes: dict[int, int] = {}
    _set_verdict = codes.__setitem__
    refusals.refuse_by_descriptor(monkeypatch, backend, codes)
    return codes


async def test_other_targets_from_now_on(udp: ends.MakeSocket) -> None:
    targets, client = [udp() for _ in range(3)], udp()
    async with relays.running(targets[:2], duplicate=True) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"one")
        kept = {one.target: one for one in relays.forwarding_of(relay).upstreams()}
        with relays.same_descriptors():
            await relay.set_targets([ends.address_of(one) for one in targets[1:]])
        await stage.send(0, b"two")
        assert await relays.payloads(targets[0], 1) == [b"one"]
        assert await relays.payloads(targets[1], 2) == [b"one", b"two"]
        assert await relays.payloads(targets[2], 1) == [b"two"]
        now = {one.target: one for one in relays.forwarding_of(relay).upstreams()}
        same = ends.address_of(targets[1])
        assert now[same] is kept[same]
        told = relays.laws(relay)
        assert told.to_targets.datagrams_out == 4
        assert told.sessions_moved == 0


async def test_where_one_of_the_new_targets_has_no_socket_nothing_has_changed(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets, client = [udp() for _ in range(4)], udp()
    where = [ends.address_of(target) for target in targets]
    async with relays.running(targets[:1], duplicate=True) as relay:
        stage = relays.Stage(relay, [client])
        forwarding = relays.forwarding_of(relay)
        assert isinstance(forwarding, RelayCopies)
        real = forwarding._poller.add
        added: list[object] = []

        def add(io: object, key: object) -> object:
            added.append(io)
            if len(added) == 2:
                raise OSError(errno.ENOSPC, "no room")
            return real(io, key)  # type: ignore[arg-type]

        monkeypatch.setattr(forwarding._poller, "add", add)
        with relays.same_descriptors(), pytest.raises(OSError, match="no room"):
            await relay.set_targets(where[1:])
        assert relay.targets == (where[0],)
        await stage.send(0, b"x")
        assert await relays.payloads(targets[0], 1) == [b"x"]
        assert all(relays.waiting(target) == [] for target in targets[1:])


async def test_a_relay_that_cannot_have_all_its_sockets_does_not_begin(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def enable(io: object) -> None:
        calls.append(io)
        if len(calls) == 3:  # the clients', and the second target's
            raise OSError(errno.ENOBUFS, "not now")

    monkeypatch.setattr("snaptun_trio._kernel._interface.SocketIO.enable_gro", enable)
    targets = [udp(), udp()]
    where = [ends.address_of(target) for target in targets]
    relay = UdpRelay(("127.0.0.1", 0), where, duplicate=True)
    with relays.same_descriptors(), pytest.raises(OSError, match="not now"):
        await relay.run()


async def test_what_targets_answer_may_end_no_relay(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even an error of a socket as a whole: it is counted."""
    from .test_relay_sessions import fail_next

    target, client = udp(), udp()
    async with relays.running([target], duplicate=True) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"x")
        ((_, address),) = await relays.receive(target, 1)
        forwarding = relays.forwarding_of(relay)
        assert isinstance(forwarding, RelayCopies)
        fail_next(monkeypatch, forwarding._fan, errno.EIO)
        target.sendto(b"answer", address)
        told = await relays.until(relay, lambda seen: seen.to_clients.datagrams_in)
        assert told.to_targets.asynchronous_errors == {"EIO": 1}
        await stage.send(0, b"y")
        assert await relays.payloads(target, 1) == [b"y"]
