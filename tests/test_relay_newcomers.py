# Who comes new to a relay while there is no room, no socket, or no way; or while very many come.

from __future__ import annotations

import errno
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import _openings, _relay_sessions
from snaptun_trio._kernel import _sockets

from . import ends, relays

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from snaptun_trio import Address, UdpRelay
    from snaptun_trio._kernel._sockets import SocketOptions

pytestmark = pytest.mark.usefixtures("backend")


async def test_a_target_without_a_way_keeps_no_client_of_the_others_waiting(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers could choose to come again and again for a target that cannot be reached."""
    targets = [udp(), udp()]
    lost = ends.address_of(targets[0])
    refuse(monkeypatch, lambda to: errno.ENETUNREACH if to == lost else 0, begun := [])
    clients = [udp(f"127.0.0.{number}") for number in range(1, 40)]
    async with relays.running(targets, ("0.0.0.0", 0)) as relay:
        begun.append(True)
        stage = relays.Stage(relay, clients)
        here: Address = ("127.0.0.1", relay.local_address[1])
        for number in range(len(clients)):
            await stage.send(number, b"x", to=here)
        told = relays.laws(relay)
        assert set(told.to_targets.dropped) == {"no socket"}
        assert told.sessions == len(relays.waiting(targets[1])) > 0
        assert told.sessions + told.to_targets.dropped["no socket"] == len(clients)
        assert [one.dropped for one in told.targets] == [told.to_targets.dropped, {}]
        assert [one.sessions for one in told.targets] == [0, told.sessions]


async def test_without_a_socket_newcomers_are_shed_for_that_reason_for_a_while(
    udp: ends.MakeSocket,
    monkeypatch: pytest.MonkeyPatch,
    mock_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And those that are there go on. To try for each newcomer would cost all of them dearly."""
    target, clients = udp(), [udp() for _ in range(10)]
    tries = refuse(monkeypatch, lambda to: errno.EMFILE, begun := [])
    async with relays.running([target]) as relay:
        stage = relays.Stage(relay, clients)
        await stage.send(0, b"x")
        begun.append(True)
        for number in range(1, 9):
            await stage.send(number, b"x")
        await stage.send(0, b"y")
        told = relays.laws(relay)
        assert told.to_targets.dropped == {"no socket": 8}
        assert told.sessions_shed == 8
        assert told.targets[0].dropped == {}, "the system has none for anybody"
        assert len(tries) == 1
        assert await relays.payloads(target, 2) == [b"x", b"y"]
        begun.clear()
        mock_clock.jump(_openings._PAUSE * 1.01)
        await stage.send(9, b"z")
        assert await relays.payloads(target, 1) == [b"z"]
    assert len(caplog.records) == 1
    assert "no session could be opened" in caplog.text


async def test_a_socket_that_cannot_be_waited_for_is_closed_again(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, client = udp(), udp()
    async with relays.running([target]) as relay:
        forwarding = relays.forwarding_of(relay)

        def add(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no room")

        with relays.same_descriptors():
            with monkeypatch.context() as patch:
                patch.setattr(forwarding._poller, "add", add)
                await relays.Stage(relay, [client]).send(0, b"x")
            told = relays.laws(relay)
        assert (told.sessions, told.sessions_created) == (0, 0)
        assert told.to_targets.dropped == {"no socket": 1}


def refuse(
    monkeypatch: pytest.MonkeyPatch, verdict: Callable[[Address], int], begun: list[bool]
) -> list[Address]:
    """Let sockets to some targets fail, once it has begun. Returns whom it failed for."""
    real = _sockets.open_connected
    failed: list[Address] = []

    def open_connected(to: Address, options: SocketOptions) -> socket.socket:
        if begun and (code := verdict(to)):
            failed.append(to)
            raise OSError(code, "refused")
        return real(to, options)

    monkeypatch.setattr("snaptun_trio._upstream.open_connected", open_connected)
    return failed


async def test_clients_that_come_all_at_once_are_let_in_as_far_as_that_does_no_harm(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(_openings, "_AT_ONCE", 3)
    target, clients = udp(), [udp() for _ in range(10)]
    async with relays.running([target], session_rate=2) as relay:
        mock_clock.jump(100.0)
        stage = relays.Stage(relay, clients)
        for number in range(5):
            await stage.send(number, b"%d" % number)
        told = relays.laws(relay)
        assert (told.sessions, told.sessions_shed) == (3, 2)
        assert told.to_targets.dropped == {"too many at once": 2}
        mock_clock.jump(0.51)
        for number in range(5, 10):
            await stage.send(number, b"%d" % number)
        assert await relays.payloads(target, 4) == [b"0", b"1", b"2", b"5"]


async def test_others_have_their_turn_while_many_come_at_once(udp: ends.MakeSocket) -> None:
    """At most so many are opened between two turns."""
    count, most = 200, _relay_sessions._OPENED_A_TURN
    target, clients = udp(), [udp() for _ in range(count)]
    seen: list[int] = []

    async def watch(relay: UdpRelay) -> None:
        while True:
            seen.append(relays.laws(relay).sessions_created)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery, relays.running([target]) as relay:
        nursery.start_soon(watch, relay)
        for client in clients:
            client.sendto(b"x", relay.local_address)
        await relays.until(relay, lambda told: told.sessions == count)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    steps = [after - before for before, after in pairwise(seen)]
    assert max(steps) <= 2 * most, "its turn may come first in one round and last in the next"
