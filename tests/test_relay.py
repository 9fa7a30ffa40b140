# UdpRelay: what clients send reaches their target, and what that answers reaches them.
#
# With each backend and each poller. Every datagram is accounted for, and whoever looks at the
# account at any moment finds that it adds up.

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio

from . import ends, groups, relays

if TYPE_CHECKING:
    from snaptun_trio import Address, UdpRelay

pytestmark = pytest.mark.usefixtures("backend", "poller")


@pytest.fixture(params=groups.POLLERS)
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with each poller: whatever relay begins from here on uses it."""
    name: str = request.param
    relays.use_poller(monkeypatch, name)
    return name


@pytest.mark.core
async def test_each_client_has_a_session_of_its_own(udp: ends.MakeSocket) -> None:
    target, clients = udp(), [udp() for _ in range(5)]
    async with relays.running([target]) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(5):
            await stage.send(number, b"question %d" % number, b"again %d" % number)
        seen = await relays.receive(target, 10)
        addresses: dict[bytes, set[Address]] = {}
        for packet, address in seen:
            addresses.setdefault(packet[-1:], set()).add(address)
        assert sorted(packet for packet, _ in seen) == sorted(
            word % number for number in range(5) for word in (b"question %d", b"again %d")
        )
        assert all(len(one) == 1 for one in addresses.values())
        assert len(set.union(*addresses.values())) == 5
        for packet, address in seen:
            target.sendto(b"answer to " + packet, address)
        for number, client in enumerate(clients):
            answers = await relays.receive(client, 2)
            assert answers == [
                (b"answer to question %d" % number, relay.local_address),
                (b"answer to again %d" % number, relay.local_address),
            ]
        told = relays.laws(relay)
        assert (told.sessions, told.sessions_created) == (5, 5)
        assert told.to_targets.datagrams_out == told.to_clients.datagrams_out == 10
        assert told.to_targets.bytes_in == told.to_targets.bytes_out
        assert (
            told.to_clients.bytes_in
            == told.to_clients.bytes_out
            == sum(len(b"answer to " + packet) for packet, _ in seen)
        )
        assert told.to_clients.receive_calls >= 1
        assert 1 <= told.to_targets.send_calls <= told.to_targets.trains_out <= 10
    assert relays.laws(relay).sessions_closed == 5


async def test_calls_and_trains_are_counted_both_ways(udp: ends.MakeSocket) -> None:
    target, clients = udp(), [udp(), udp()]
    async with relays.running([target]) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(2):
            await stage.send(number, b"%d" % number)
        for number, (_, address) in enumerate(await relays.receive(target, 2)):
            target.sendto(b"answer", address)
            assert await relays.payloads(clients[number], 1) == [b"answer"]
        told = relays.laws(relay)
        for flow in (told.to_targets, told.to_clients):
            assert (flow.receive_calls, flow.trains_in) == (2, 2)
            assert (flow.send_calls, flow.trains_out) == (2, 2)
            assert (flow.datagrams_in, flow.datagrams_out) == (2, 2)


@pytest.mark.needs_gso
@pytest.mark.needs_gro
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_whole_trains_go_both_ways(udp: ends.MakeSocket, host: str) -> None:
    packets = ends.numbered(500, 1200) + ends.numbered(1, 700, start=500)
    with ends.make_pair(udp(host), target := udp(host)) as there:
        async with relays.running([target], (host, 0)) as relay:
            there.sender.send_nowait(ends.batch_of(packets, relay.local_address))
            with trio.fail_after(ends.PATIENCE):
                got: list[bytes] = []
                source: Address | None = None
                while len(got) < len(packets):
                    batch = await there.receiver.receive()
                    got += [packet for packet, _ in batch]
                    (source,) = batch.by_address()
            assert got == packets
            assert source is not None
            with ends.make_pair(target, there.sender.socket) as back:  # type: ignore[arg-type]
                back.sender.send_nowait(ends.batch_of(packets, source))
                got = []
                with trio.fail_after(ends.PATIENCE):
                    while len(got) < len(packets):
                        got += [packet for packet, _ in await back.receiver.receive()]
            assert got == packets
            told = relays.laws(relay)
            for flow in (told.to_targets, told.to_clients):
                assert flow.datagrams_out == len(packets)
                assert flow.trains_in < 30
                assert flow.trains_out < 30


async def test_datagrams_of_every_size_pass_in_order(udp: ends.MakeSocket) -> None:
    sizes = [0, 1, 1, 65_507, 0, 1200, 1200, 1200, 1199, 1200, 65_507, 30_000, 2, 2, 2]
    packets = [bytes([number]) * size for number, size in enumerate(sizes)]
    target, client = udp(), udp()
    async with relays.running([target]) as relay:
        for packet in packets:
            client.sendto(packet, relay.local_address)
        got = await relays.receive(target, len(packets))
        assert [packet for packet, _ in got] == packets
        for packet in packets:
            target.sendto(packet, got[0][1])
        assert await relays.payloads(client, len(packets)) == packets


@pytest.mark.parametrize("first", ["127.0.0.1", "::1"])
async def test_targets_of_both_families_at_once(udp: ends.MakeSocket, first: str) -> None:
    """One fan has sockets of both then; trains are as long as both allow."""
    four, six = udp("127.0.0.1"), udp("::1")
    targets = [four, six] if first == "127.0.0.1" else [six, four]
    clients = [udp(f"127.0.0.{number}") for number in range(1, 30)]
    async with relays.running(targets, ("0.0.0.0", 0)) as relay:
        here: Address = ("127.0.0.1", relay.local_address[1])
        stage = relays.Stage(relay, clients)
        for number in range(len(clients)):
            await stage.send(number, b"%d" % number, to=here)
        reached = {target: relays.waiting(target) for target in targets}
        assert sum(map(len, reached.values())) == len(clients)
        assert all(reached.values()), "some are each target's"
        for target, got in reached.items():
            for packet, address in got:
                target.sendto(b"for " + packet, address)
        for number, client in enumerate(clients):
            assert await relays.receive(client, 1) == [(b"for %d" % number, here)]


async def test_the_account_adds_up_at_every_turn(udp: ends.MakeSocket) -> None:
    """Another task looks at it whenever it can, while much goes both ways."""
    target, clients = udp(), [udp() for _ in range(100)]
    looks = 0

    async def look(relay: UdpRelay) -> None:
        nonlocal looks
        while True:
            relays.laws(relay)
            looks += 1
            await trio.lowlevel.checkpoint()

    async def echo() -> None:
        while True:
            await trio.lowlevel.wait_readable(target)
            for packet, address in relays.waiting(target):
                target.sendto(packet, address)

    async with trio.open_nursery() as nursery, relays.running([target]) as relay:
        nursery.start_soon(look, relay)
        nursery.start_soon(echo)
        for turn in range(20):
            for number, client in enumerate(clients):
                for at in range(5):
                    client.sendto(b"%d %d" % (number, 5 * turn + at), relay.local_address)
            await trio.lowlevel.checkpoint()
        for number, client in enumerate(clients):
            got = await relays.payloads(client, 100)
            assert got == [b"%d %d" % (number, at) for at in range(100)]
        assert looks > 20
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("nothing_copied")
async def test_answers_of_many_sessions_leave_together(udp: ends.MakeSocket) -> None:
    """More than one call of the compiled part reads: nobody's answer is mixed up with another's."""
    count = 300
    with groups.room_for(3 * count):
        target, clients = udp(), [udp() for _ in range(count)]
        async with relays.running([target], max_sessions=count) as relay:
            for number, client in enumerate(clients):
                client.sendto(b"%d" % number, relay.local_address)
            for packet, address in await relays.receive(target, count):
                for at in range(3):
                    target.sendto(packet + b" %d" % at, address)
            for number, client in enumerate(clients):
                got = await relays.payloads(client, 3)
                assert got == [b"%d %d" % (number, at) for at in range(3)]
            assert relays.laws(relay).to_clients.datagrams_out == 3 * count


async def test_a_target_where_nobody_listens_costs_nothing_but_its_own(
    udp: ends.MakeSocket,
) -> None:
    """And when somebody does again, the session is served as it is."""
    target, clients = udp(), [udp() for _ in range(3)]
    where = ends.address_of(target)
    async with relays.running([where]) as relay:
        stage = relays.Stage(relay, clients)
        await stage.send(0, b"first")
        target.close()
        for _ in range(5):
            await stage.send(0, b"into the void")
        told = await relays.until(
            relay, lambda seen: seen.to_targets.asynchronous_errors.get("ECONNREFUSED", 0) >= 1
        )
        assert told.sessions == 1
        assert told.to_targets.dropped == {}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.setblocking(False)
            again.bind(where)
            await stage.send(0, b"back")
            ((packet, address),) = await relays.receive(again, 1)
            assert packet == b"back"
            again.sendto(b"answer", address)
            assert await relays.payloads(clients[0], 1) == [b"answer"]
        assert relays.laws(relay).sessions_created == 1
