# Newcomers that are too many for a relay, or for the system: F52 of the fault matrix.
#
# A flood from thousands of addresses, no descriptor left, no port left: those that have a session
# go on and lose nothing but what the kernel says it dropped; newcomers are turned away, and counted
# with the reason; nothing grows; and when there is room again they are let in.

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
import trio

from .. import ends, groups, relays
from . import limits, netns, sockets
from .test_f52_relay import Client, clients, echo
from .test_floods import LONGEST_GAP

if TYPE_CHECKING:
    from snaptun_trio import UdpRelay

pytestmark = pytest.mark.usefixtures("backend")

LIVE = [f"127.200.0.{number}" for number in range(1, 51)]


def stranger(number: int) -> str:
    return f"127.{number // 62_500 % 100 + 1}.{number // 250 % 250}.{1 + number % 250}"


async def ask_and_hear(live: list[Client], relay: UdpRelay) -> None:
    """All of them, and nothing is lost that the kernel did not drop."""
    before = relays.laws(relay).to_targets.buffers_dropped_by_kernel
    for client in live:
        client.ask(2)
    for client in live:
        await client.hear()
    assert relays.laws(relay).to_targets.buffers_dropped_by_kernel == before


async def flood(count: int, rounds: int) -> None:
    """Strangers who send once each, so many at a time; the live ones ask in between."""
    most = 400
    with sockets.udp() as target:
        where = [ends.address_of(target)]
        async with (
            trio.open_nursery() as nursery,
            relays.running(where, ("0.0.0.0", 0), max_sessions=most) as relay,
        ):
            nursery.start_soon(echo, target)
            with clients(LIVE, relay) as live:
                await ask_and_hear(live, relay)
                sent = at = 0
                memory = 0
                descriptors = len(limits.open_descriptors())
                while at < count:
                    for _ in range(rounds):
                        with sockets.udp(stranger(at), send_buffer=4096) as sock:
                            sock.sendto(b"once", live[0].to)
                        at, sent = at + 1, sent + 1
                    await ask_and_hear(live, relay)
                    assert len(limits.open_descriptors()) <= descriptors + most
                    if at * 3 >= count and not memory:
                        gc.collect()
                        memory = limits.resident_bytes()
                gc.collect()
                grown = limits.resident_bytes() - memory
                asked = sum(len(client.asked) for client in live)
                told = await relays.until(
                    relay,
                    lambda seen: (
                        seen.to_targets.datagrams_in == asked + sent
                        and not seen.to_targets.datagrams_waiting
                    ),
                )
                assert told.to_targets.buffers_dropped_by_kernel == 0
                assert set(told.to_targets.dropped) <= {"too many at once"}
                shed = told.to_targets.dropped.get("too many at once", 0)
                assert told.sessions_shed == shed
                assert told.sessions_created == 50 + sent - shed
                assert told.sessions <= most
                assert told.sessions_evicted == told.sessions_created - told.sessions
                if "ASAN_OPTIONS" not in os.environ:
                    assert grown < 4_000_000 + 100 * count, f"{grown} bytes more"
            nursery.cancel_scope.cancel()


@pytest.mark.own_process
async def test_f52_thousands_of_strangers_beside_clients_that_go_on() -> None:
    await flood(3000, 250)


@pytest.mark.slow
@pytest.mark.own_process
async def test_f52_sixty_thousand_strangers_beside_clients_that_go_on() -> None:
    await flood(60_000, 250)


@pytest.mark.own_process
async def test_f52_two_thousand_newcomers_at_once_keep_no_other_task_waiting() -> None:
    """A wait that is our doing comes each time; the best of a few counts, as in `test_floods`."""
    limits.skip_under_a_sanitizer()
    limits.leave_out_of_garbage_collection()
    count = 2000
    with groups.room_for(3 * count), sockets.udp() as target:
        strangers = [sockets.udp(stranger(n), send_buffer=4096) for n in range(count)]
        where = [ends.address_of(target)]
        longest = []
        for _ in range(5):
            gap = limits.Gap()
            async with (
                trio.open_nursery() as nursery,
                relays.running(where, ("0.0.0.0", 0), max_sessions=count) as relay,
            ):
                nursery.start_soon(gap.watch)
                await gap.next_turn()
                for sock in strangers:
                    sock.sendto(b"x", ("127.0.0.1", relay.local_address[1]))
                gap.longest = 0.0
                gap.turns = 0
                await relays.until(
                    relay,
                    lambda seen: (
                        seen.to_targets.datagrams_in + seen.to_targets.buffers_dropped_by_kernel
                        == count
                    ),
                )
                await gap.next_turn()
                nursery.cancel_scope.cancel()
            told = relays.laws(relay)
            assert min(1024, told.to_targets.datagrams_in) <= told.sessions_created <= count
            longest.append(gap.longest)
            if gap.longest < LONGEST_GAP:
                break
        else:
            raise AssertionError(f"the longest gaps were {longest} seconds")
        for sock in strangers:
            sock.close()


@pytest.mark.own_process
async def test_f52_strangers_find_no_room_where_all_are_established() -> None:
    with sockets.udp() as target:
        where = [ends.address_of(target)]
        async with (
            trio.open_nursery() as nursery,
            relays.running(where, ("0.0.0.0", 0), max_sessions=50) as relay,
        ):
            nursery.start_soon(echo, target)
            with clients(LIVE, relay) as live:
                await ask_and_hear(live, relay)
                for number in range(1000):
                    with sockets.udp(stranger(number), send_buffer=4096) as sock:
                        sock.sendto(b"once", live[0].to)
                    if number % 100 == 99:
                        await ask_and_hear(live, relay)
                told = await relays.until(relay, lambda seen: seen.sessions_shed == 1000)
                assert told.to_targets.dropped == {"table full": 1000}
                assert (told.sessions, told.sessions_evicted) == (50, 0)
            nursery.cancel_scope.cancel()


@pytest.mark.own_process
async def test_f52_without_descriptors_those_that_are_there_go_on() -> None:
    with sockets.udp() as target:
        where = [ends.address_of(target)]
        async with trio.open_nursery() as nursery, relays.running(where, ("0.0.0.0", 0)) as relay:
            nursery.start_soon(echo, target)
            with clients(LIVE[:20], relay) as live, clients(LIVE[20:40], relay) as newcomers:
                await ask_and_hear(live, relay)
                with limits.no_more_descriptors(5):
                    for client in newcomers:
                        client.ask()
                        await ask_and_hear(live, relay)
                    told = relays.laws(relay)
                    assert told.sessions == 25
                    assert told.to_targets.dropped == {"no socket": 15}
                for client in newcomers[:5]:
                    await client.hear()
                await let_in(newcomers[5:], relay)
                await ask_and_hear([*live, *newcomers[:5]], relay)
            nursery.cancel_scope.cancel()


async def let_in(newcomers: list[Client], relay: UdpRelay) -> None:
    """They ask until they are answered."""
    for client in newcomers:
        client.asked.clear()
        with trio.fail_after(ends.PATIENCE):
            while not relays.waiting(client.sock):
                client.sock.sendto(b"?", client.to)
                with trio.move_on_after(0.02):
                    await trio.lowlevel.wait_readable(client.sock)
    assert relays.laws(relay).sessions >= len(newcomers)


@pytest.mark.own_network
async def test_f52_without_ports_those_that_are_there_go_on() -> None:
    """Each session takes a port; when the range is used up there are no more, until some end."""
    with sockets.udp() as target:
        where = [ends.address_of(target)]
        async with trio.open_nursery() as nursery, relays.running(where, ("0.0.0.0", 0)) as relay:
            nursery.start_soon(echo, target)
            with clients(LIVE, relay) as live:
                netns.sysctl("net.ipv4.ip_local_port_range", "50000 50019")
                for client in live:
                    client.ask()
                    client.ask()
                told = await relays.until(relay, lambda seen: seen.to_targets.datagrams_in == 100)
                assert set(told.to_targets.dropped) == {"no socket"}
                assert 10 <= told.sessions <= 20
                there = [c for c in live if await is_there(c, relay)]
                assert len(there) == told.sessions
                netns.sysctl("net.ipv4.ip_local_port_range", "32768 60999")
                await let_in([client for client in live if client not in there], relay)
                assert relays.laws(relay).sessions == 50
            nursery.cancel_scope.cancel()


async def is_there(client: Client, relay: UdpRelay) -> bool:
    """Whether it has a session."""
    await trio.lowlevel.checkpoint()
    address = ends.address_of(client.sock)
    upstreams = relays.forwarding_of(relay).upstreams()
    return any(upstream.address == address for upstream in upstreams)
