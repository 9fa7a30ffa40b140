# A relay whose targets die, cannot be reached, or are too slow: F52 of the fault matrix.
#
# Whatever becomes of one target, the sessions of the others do not notice: all theirs arrives, once
# and in order, and so do the answers. What is lost to the sick one is counted, with the reason.

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio._rendezvous import choose

from .. import ends, relays
from . import netns, own_process, sockets

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from snaptun_trio import Address, UdpRelay

pytestmark = pytest.mark.usefixtures("backend")


def clients_of(target: Address, targets: list[Address], count: int) -> list[str]:
    """So many loopback hosts whose target this is."""
    hosts = (f"127.0.{number // 250}.{1 + number % 250}" for number in range(10_000))
    mine = [host for host in hosts if choose((host, 1), targets) == target]
    return mine[:count]


class Client:
    """One that asks, and is answered with what it asked."""

    def __init__(self, host: str, relay: UdpRelay) -> None:
        self.sock = sockets.udp(host)
        self.to: Address = ("127.0.0.1", relay.local_address[1])
        self.asked: list[bytes] = []
        self.answered: list[bytes] = []

    def ask(self, count: int = 1) -> None:
        for _ in range(count):
            self.asked.append(b"%d of %s" % (len(self.asked), self.sock.getsockname()[0].encode()))
            self.sock.sendto(self.asked[-1], self.to)

    async def hear(self) -> None:
        """Until all is answered, once and in order."""
        missing = len(self.asked) - len(self.answered)
        self.answered += [packet for packet, _ in await relays.receive(self.sock, missing)]
        assert self.answered == self.asked


async def echo(target: socket.socket) -> None:
    """A target that answers, but not who asks once only: those have gone, and somebody else's
    relay on every address may have their port by now."""
    while True:
        await trio.lowlevel.wait_readable(target)
        for packet, address in relays.waiting(target):
            if packet != b"once":
                target.sendto(packet, address)


@contextlib.contextmanager
def clients(hosts: list[str], relay: UdpRelay) -> Iterator[list[Client]]:
    made = [Client(host, relay) for host in hosts]
    try:
        yield made
    finally:
        for client in made:
            client.sock.close()


def echo_in_a_process(target: socket.socket) -> int:
    """The same, as a program of its own, until it is killed."""
    child = own_process.fork()
    if child == 0:
        target.setblocking(True)
        parent = os.getppid()
        target.settimeout(1.0)
        while os.getppid() == parent:
            try:
                target.sendto(*target.recvfrom(65_535))
            except OSError:
                continue
        os._exit(0)
    target.close()
    return child


async def ask_in_turns(live: list[Client], sick: list[Client], turns: int = 10) -> None:
    for _ in range(turns):
        for client in (*live, *sick):
            client.ask(3)
        for client in live:
            await client.hear()


@pytest.mark.own_process
async def test_f52_a_target_whose_process_is_gone_and_comes_back() -> None:
    with sockets.udp() as alive:
        dying = sockets.udp()
        where = [ends.address_of(alive), ends.address_of(dying)]
        child = echo_in_a_process(dying)
        async with trio.open_nursery() as nursery, relays.running(where, ("0.0.0.0", 0)) as relay:
            nursery.start_soon(echo, alive)
            with (
                clients(clients_of(where[0], where, 20), relay) as live,
                clients(clients_of(where[1], where, 20), relay) as sick,
            ):
                await ask_in_turns(live, sick)
                for client in sick:
                    await client.hear()
                own_process.kill(child)
                await ask_in_turns(live, sick)
                told = await relays.until(
                    relay, lambda seen: seen.to_targets.asynchronous_errors.get("ECONNREFUSED")
                )
                assert set(told.to_targets.dropped) <= {"ECONNREFUSED"}
                assert told.sessions == told.sessions_created == 40
                with sockets.udp(port=where[1][1]) as again:
                    nursery.start_soon(echo, again)
                    for client in sick:
                        client.asked.clear()
                        client.answered.clear()
                        relays.waiting(client.sock)
                    await ask_in_turns(live, sick, 3)
                    for client in sick:
                        await client.hear()
                    told = relays.laws(relay)
                    assert told.sessions_created == 40
                    assert told.to_targets.datagrams_in == 20 * 3 * (10 + 10 + 3) * 2
                    nursery.cancel_scope.cancel()


@pytest.mark.own_network
@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit"])
async def test_f52_a_target_that_there_is_no_way_to_any_more(kind: str) -> None:
    """Its clients' datagrams are refused, and its newcomers; those of the other come and go."""
    netns.run("ip address add 10.9.0.1/32 dev lo")
    with sockets.udp() as alive, sockets.udp("10.9.0.1") as lost:
        where = [ends.address_of(alive), ends.address_of(lost)]
        async with trio.open_nursery() as nursery, relays.running(where, ("0.0.0.0", 0)) as relay:
            nursery.start_soon(echo, alive)
            nursery.start_soon(echo, lost)
            mine, others = (clients_of(one, where, 20) for one in where)
            with (
                clients(mine[:10], relay) as live,
                clients(others[:10], relay) as sick,
            ):
                await ask_in_turns(live, sick, 2)
                for client in sick:
                    await client.hear()
                netns.run("ip address del 10.9.0.1/32 dev lo")
                netns.run(f"ip route add {kind} 10.9.0.1/32")
                before = relays.laws(relay)
                assert before.to_targets.dropped == {}
                await ask_in_turns(live, sick, 5)
                with clients(mine[10:], relay) as new, clients(others[10:], relay) as shed:
                    await ask_in_turns([*live, *new], shed, 2)
                    told = relays.laws(relay)
                    assert told.sessions_created == 30
                    assert told.to_targets.dropped["no socket"] == 10 * 3 * 2
                    refused = sum(told.to_targets.dropped.values()) - 60
                    assert refused == 10 * 3 * 5
                netns.run(f"ip route del {kind} 10.9.0.1/32")
                netns.run("ip address add 10.9.0.1/32 dev lo")
                for client in sick:
                    client.asked.clear()
                    client.answered.clear()
                await ask_in_turns(live, sick, 2)
                for client in sick:
                    await client.hear()
            nursery.cancel_scope.cancel()


@pytest.mark.own_network
async def test_f52_a_slow_target_drops_its_own_and_delays_no_other() -> None:
    """Behind a link of 4 Mbit/s: what its sessions' sockets do not take is dropped, by session."""
    far = netns.Namespace()
    netns.veth(far)
    netns.slow_link("4mbit", device="va")
    with far:
        slow = sockets.udp("10.0.0.2")
    with slow, sockets.udp() as fast:
        where = [ends.address_of(fast), ends.address_of(slow)]
        async with (
            trio.open_nursery() as nursery,
            relays.running(where, ("0.0.0.0", 0), send_buffer=8192) as relay,
        ):
            nursery.start_soon(echo, fast)
            with (
                clients(clients_of(where[0], where, 5), relay) as live,
                clients(clients_of(where[1], where, 5), relay) as sick,
            ):
                total = 0
                for _ in range(20):
                    for client in sick:
                        for _ in range(20):
                            client.sock.sendto(bytes(1200), client.to)
                            total += 1
                    for client in live:
                        client.ask(3)
                    for client in live:
                        await client.hear()
                told = await relays.until(
                    relay,
                    lambda seen: (
                        seen.to_targets.datagrams_in == total + 5 * 3 * 20
                        and not seen.to_targets.datagrams_waiting
                    ),
                )
                assert set(told.to_targets.dropped) == {"socket full"}
                assert told.to_targets.buffers_dropped_by_kernel == 0
                went = told.to_targets.datagrams_out - 5 * 3 * 20
                assert 0 < went < total
                assert len(await relays.receive(slow, went)) == went, "it is late, and not lost"
            nursery.cancel_scope.cancel()
    far.delete()
