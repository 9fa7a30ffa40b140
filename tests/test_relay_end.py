# How a relay begins and how it ends: once, and whatever happens nothing is left open.

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from snaptun_trio import UdpRelay
from snaptun_trio._kernel._interface import SocketIO

from . import ends, relays
from .faults.cancelling import Canceller

if TYPE_CHECKING:
    from collections.abc import Callable

    from snaptun_trio._kernel._fan import Fan


pytestmark = pytest.mark.usefixtures("backend")

HERE = ("127.0.0.1", 0)


def closed_relay(relay: UdpRelay) -> None:
    """Whatever was open is closed, and every datagram has an end."""
    told = relays.laws(relay)
    assert told.sessions == 0
    assert told.to_targets.datagrams_waiting == told.to_clients.datagrams_waiting == 0


# -- the beginning


async def test_before_it_has_begun_there_is_nothing_to_be_told(udp: ends.MakeSocket) -> None:
    relay = UdpRelay(HERE, [ends.address_of(udp())])
    told = relays.laws(relay)
    assert told.sessions_created == told.to_targets.datagrams_in == 0
    assert told.to_targets.dropped == told.to_clients.asynchronous_errors == {}
    assert relay.targets == ()
    assert repr(relay) == "<UdpRelay not begun: 1 targets>"
    with pytest.raises(RuntimeError, match="not begun"):
        relay.local_address  # noqa: B018


async def test_it_runs_once_only(udp: ends.MakeSocket) -> None:
    async with relays.running([udp()]) as relay:
        with pytest.raises(RuntimeError, match="only once"):
            await relay.run()
        assert repr(relay) == f"<UdpRelay on {relay.local_address}: 1 targets>"
    with relays.same_descriptors(), pytest.raises(RuntimeError, match="only once"):
        await relay.run()


async def test_it_can_be_sent_to_when_start_returns(udp: ends.MakeSocket) -> None:
    target = udp()
    relay = UdpRelay(HERE, [ends.address_of(target)])
    async with trio.open_nursery() as nursery:
        assert await nursery.start(relay.run) is relay
        udp().sendto(b"x", relay.local_address)
        assert await relays.payloads(target, 1) == [b"x"]
        nursery.cancel_scope.cancel()
    assert relay.local_address[1] > 0


async def test_names_are_resolved_and_the_first_address_with_a_way_is_taken(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, client = udp(), udp()
    port = ends.address_of(target)[1]
    asked: list[object] = []

    async def getaddrinfo(host: str, number: int, **_: object) -> list[Any]:
        await trio.lowlevel.checkpoint()
        asked.append((host, number))
        hosts = ["255.255.255.255", "127.0.0.1", "127.0.0.2"] if host == "two" else ["127.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (one, number)) for one in hosts]

    monkeypatch.setattr("trio.socket.getaddrinfo", getaddrinfo)
    async with relays.running([("two", port), ("one", port), ("two", 9)]) as relay:
        assert relay.targets == (("127.0.0.1", port), ("127.0.0.1", 9)), "each once"
        assert ("two", port) in asked
        await relay.set_targets([("one", port)])
        udp_client = relays.Stage(relay, [client])
        await udp_client.send(0, b"x")
        assert await relays.payloads(target, 1) == [b"x"]


def no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENETUNREACH, "no way")

    monkeypatch.setattr("snaptun_trio._relay.open_connected", refuse)


def no_fan(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Fan:
        raise OSError(errno.ENOMEM, "no fan")

    for kind in (SocketIO, *SocketIO.__subclasses__()):
        monkeypatch.setattr(kind, "fan", staticmethod(refuse))


def no_poller(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, "no poller")

    monkeypatch.setattr("snaptun_trio._relay_front.open_poller", refuse)


@pytest.mark.parametrize("why", [no_way, no_fan, no_poller])
@pytest.mark.parametrize("duplicate", [False, True])
@pytest.mark.parametrize("given", [False, True])
async def test_where_it_cannot_begin_nothing_is_left_open(
    udp: ends.MakeSocket,
    monkeypatch: pytest.MonkeyPatch,
    why: Callable[[pytest.MonkeyPatch], None],
    duplicate: bool,
    given: bool,
) -> None:
    target = udp()
    with relays.same_descriptors():
        local: Any = ends.bound_socket() if given else HERE
        relay = UdpRelay(local, [ends.address_of(target)], duplicate=duplicate)
        why(monkeypatch)
        with pytest.raises(OSError, match=r"no (way|fan|poller)"):
            await relay.run()
        if given:
            assert local.fileno() == -1
        closed_relay(relay)
    with pytest.raises(RuntimeError, match="only once"):
        await relay.run()


async def test_an_address_that_is_taken_is_told_and_nothing_is_left_open(
    udp: ends.MakeSocket,
) -> None:
    taken, target = udp(), udp()
    relay = UdpRelay(ends.address_of(taken), [ends.address_of(target)])
    with relays.same_descriptors(), pytest.raises(OSError, match="in use"):
        await relay.run()


async def test_a_name_that_is_not_known_is_told(udp: ends.MakeSocket) -> None:
    relay = UdpRelay(HERE, [("name.invalid", 9)])
    with relays.same_descriptors(), pytest.raises(socket.gaierror, match="targets="):
        await relay.run()


@pytest.mark.parametrize("what", ["descriptor", "plain", "trio"])
async def test_a_socket_that_is_given_is_closed_at_the_end(udp: ends.MakeSocket, what: str) -> None:
    target, client = udp(), udp()
    with relays.same_descriptors():
        sock = ends.bound_socket()
        local: Any = sock
        if what == "descriptor":
            local = sock.detach()
        elif what == "trio":
            local = trio.socket.from_stdlib_socket(sock)
        async with relays.running([target], local) as relay:
            await relays.Stage(relay, [client]).send(0, b"x")
            assert await relays.payloads(target, 1) == [b"x"]


async def test_ports_can_be_shared(udp: ends.MakeSocket) -> None:
    if not hasattr(socket, "SO_REUSEPORT"):
        pytest.skip("this system has no SO_REUSEPORT")
    target = udp()
    async with relays.running([target], reuse_port=True) as relay:
        async with relays.running([target], relay.local_address, reuse_port=True) as other:
            assert other.local_address == relay.local_address
        for upstream in relays.forwarding_of(relay).upstreams():
            pytest.fail(f"nobody sent anything: {upstream}")


# -- the end


async def test_stop_lets_sessions_go_on_until_nothing_comes_and_turns_newcomers_away(
    udp: ends.MakeSocket, mock_clock: trio.testing.MockClock
) -> None:
    target, clients = udp(), [udp(), udp()]
    relay = UdpRelay(HERE, [ends.address_of(target)], grace=10.0)
    ended = trio.Event()

    async def run(*, task_status: trio.TaskStatus[UdpRelay]) -> None:
        await relay.run(task_status=task_status)
        ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        stage = relays.Stage(relay, clients)
        await stage.send(0, b"before")
        relay.stop()
        relay.stop()
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.09)
            await stage.send(0, b"still")
            await stage.send(1, b"newcomer")
        assert not ended.is_set()
        assert relays.laws(relay).to_targets.dropped == {"stopping": 20}
        came = relays.waiting(target)
        assert came[-1][0] == b"still"
        for _ in range(3):  # the answer may be on its way
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.11)
        assert not ended.is_set()
        target.sendto(b"here", came[-1][1])
        assert await relays.payloads(clients[0], 1) == [b"here"]
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.11)
        await ended.wait()
    assert relays.laws(relay).sessions_closed == 1


@pytest.mark.parametrize("grace", [0.0, 1.0])
async def test_stop_waits_no_longer_than_its_grace(
    udp: ends.MakeSocket, mock_clock: trio.testing.MockClock, grace: float
) -> None:
    target, client = udp(), udp()
    async with trio.open_nursery() as nursery:
        relay = UdpRelay(HERE, [ends.address_of(target)], grace=grace)
        await nursery.start(relay.run)
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"x")
        relay.stop()
        for _ in range(round(grace / 0.05)):
            assert not relay._end.is_set()
            await stage.send(0, b"x")
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.05)
        mock_clock.jump(0.001)
    closed_relay(relay)


async def test_a_relay_that_was_stopped_before_it_began_ends_at_once(
    udp: ends.MakeSocket, autojump_clock: trio.testing.MockClock
) -> None:
    relay = UdpRelay(HERE, [ends.address_of(udp())])
    relay.stop()
    await relay.run()
    closed_relay(relay)


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_what_the_kernel_has_received_by_then_is_sent(udp: ends.MakeSocket, how: str) -> None:
    target, clients = udp(), [udp(), udp()]
    async with trio.open_nursery() as nursery:
        relay = UdpRelay(HERE, [ends.address_of(target)], grace=0.0)
        await nursery.start(relay.run)
        stage = relays.Stage(relay, clients)
        await stage.send(0, b"first")
        ((_, address),) = await relays.receive(target, 1)
        for number in range(300):
            clients[0].sendto(b"%d" % number, relay.local_address)
            target.sendto(b"answer %d" % number, address)
        clients[1].sendto(b"newcomer", relay.local_address)
        relay.stop() if how == "stop" else nursery.cancel_scope.cancel()
    closed_relay(relay)
    assert [packet for packet, _ in relays.waiting(target)] == [b"%d" % n for n in range(300)]
    answers = [packet for packet, _ in relays.waiting(clients[0])]
    assert answers == [b"answer %d" % n for n in range(300)]
    assert relays.laws(relay).to_targets.dropped == {"stopping": 1}


@pytest.mark.parametrize("duplicate", [False, True])
async def test_cancelled_at_any_moment_it_adds_up_and_leaves_nothing_open(
    udp: ends.MakeSocket, duplicate: bool
) -> None:
    """At each place of `run` itself; and while other tasks of it are anywhere."""
    targets, clients = [udp(), udp()], [udp() for _ in range(40)]
    where = [ends.address_of(target) for target in targets]
    found = 0
    for checkpoint in range(1, 60):
        for target in targets:
            relays.waiting(target)
        with relays.same_descriptors(), Canceller() as canceller:
            relay = UdpRelay(HERE, where, duplicate=duplicate)

            async def feed(relay: UdpRelay, turns: int) -> None:
                while relay._local_address is None:
                    await trio.lowlevel.checkpoint()
                for _ in range(turns):
                    for client in clients:
                        client.sendto(b"x", relay.local_address)
                    relays.laws(relay)
                    await trio.lowlevel.checkpoint()
                relay.stop()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed, relay, checkpoint % 5)
                cancelled, reached = await canceller.cancel_at(checkpoint, relay.run)
                nursery.cancel_scope.cancel()
            closed_relay(relay)
            told = relays.laws(relay)
        came = sum(len(relays.waiting(target)) for target in targets)
        assert came == told.to_targets.datagrams_out
        found = max(found, reached)
        if not cancelled:
            break
    assert found >= 3


@pytest.mark.parametrize("duplicate", [False, True])
async def test_where_its_owner_closes_the_clients_socket_it_ends(
    udp: ends.MakeSocket, duplicate: bool
) -> None:
    """With answers under way, which nobody can be sent any more."""
    target, client = udp(), udp()
    with relays.same_descriptors():
        sock = trio.socket.from_stdlib_socket(ends.bound_socket())
        relay = UdpRelay(sock, [ends.address_of(target)], duplicate=duplicate)
        with pytest.RaisesGroup(trio.ClosedResourceError):
            async with trio.open_nursery() as nursery:
                await nursery.start(relay.run)
                stage = relays.Stage(relay, [client])
                await stage.send(0, b"x")
                ((_, address),) = await relays.receive(target, 1)
                target.sendto(b"answer", address)
                sock.close()
        closed_relay(relay)
        told = relays.laws(relay)
        assert told.to_clients.dropped == {"answer" if duplicate else "closed": 1} or (
            duplicate and not told.to_clients.datagrams_in
        )


async def test_an_error_of_the_clients_socket_ends_it(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, client = udp(), udp()
    relay = UdpRelay(HERE, [ends.address_of(target)])

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    with relays.same_descriptors(), pytest.RaisesGroup(pytest.RaisesExc(OSError, match="broken")):
        async with trio.open_nursery() as nursery:
            await nursery.start(relay.run)
            await relays.Stage(relay, [client]).send(0, b"x")
            monkeypatch.setattr(relays.front_of(relay).receiver._io, "receive", fail)
            client.sendto(b"y", relay.local_address)
    closed_relay(relay)


@pytest.mark.parametrize("place", ["sends", "lets go", "opens"])
async def test_an_error_of_the_programs_ends_it_and_the_account_adds_up(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """No memory, say, or a descriptor that somebody else closed."""
    target, clients = udp(), [udp() for _ in range(5)]
    relay = UdpRelay(HERE, [ends.address_of(target)], max_sessions=3)
    calls: list[int] = []

    def fail(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: Any, **more: Any) -> object:  # noqa: ANN401
            calls.append(1)
            if len(calls) == 2:
                raise MemoryError
            return real(*arguments, **more)

        return call

    name = {
        "sends": "snaptun_trio._relay_sessions.send_each",
        "lets go": "snaptun_trio._relay_sessions.RelaySessions._let_go",
        "opens": "snaptun_trio._relay_sessions.RelaySession",
    }[place]
    with relays.same_descriptors(), pytest.RaisesGroup(MemoryError):
        async with trio.open_nursery() as nursery:
            await nursery.start(relay.run)
            real = _lookup(name)
            with monkeypatch.context() as patch:
                patch.setattr(name, fail(real))
                for client in clients:
                    client.sendto(b"x", relay.local_address)
                await trio.sleep_forever()
    closed_relay(relay)
    assert len(relays.waiting(target)) == relays.laws(relay).to_targets.datagrams_out


def _lookup(name: str) -> Any:  # noqa: ANN401
    import importlib

    parts = name.split(".")
    found: Any = importlib.import_module(".".join(parts[:2]))
    for part in parts[2:]:
        found = getattr(found, part)
    return found
