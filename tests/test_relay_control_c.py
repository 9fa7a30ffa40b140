# Control-C between any two bytecodes of a relay: F54 of the fault matrix. Its account adds up, what
# went is what was counted, and nothing is left open.

from __future__ import annotations

import random
import signal
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import UdpRelay
from snaptun_trio._groups import leaves_of

from . import ends, relays
from .test_control_c import Interrupter

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator

    from snaptun_trio import Address

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(
        sys.implementation.name != "cpython", reason="only CPython traces each bytecode"
    ),
]


def check(relay: UdpRelay, targets: list[socket.socket], clients: list[socket.socket]) -> None:
    told = relays.laws(relay)
    assert told.sessions == 0
    assert told.to_targets.datagrams_waiting == told.to_clients.datagrams_waiting == 0
    left = sum(len(relays.waiting(target)) for target in targets)
    assert left <= told.to_targets.datagrams_out
    for client in clients:
        relays.waiting(client)


def interrupters(stride: int) -> Iterator[Interrupter]:
    """One for each of so many bytecodes, until a run was not interrupted.

    Which of them it is depends on the run's seed, so many runs see all.
    """
    for number in range(random.randrange(stride), 100_000, stride):
        interrupter = Interrupter(number)
        yield interrupter
        if not interrupter.fired:
            break


def run_interrupted(main: Callable[[UdpRelay], Awaitable[None]], relay: UdpRelay) -> None:
    """Run it, and raise the interruption alone, which is all that there may be."""
    try:
        trio.run(main, relay)
    except BaseExceptionGroup as group:
        leaves = leaves_of(group)
        assert {type(leaf) for leaf in leaves} <= {KeyboardInterrupt, trio.Cancelled}
        raise leaves[0] from None


@pytest.mark.parametrize("stride", [pytest.param(11, marks=pytest.mark.slow), 61])
@pytest.mark.parametrize("duplicate", [False, True])
def test_f54_control_c_anywhere_in_a_relay_leaves_its_account_in_order(
    udp: ends.MakeSocket, duplicate: bool, stride: int
) -> None:
    targets, clients = [udp(), udp()], [udp() for _ in range(3)]
    where: list[Address] = [ends.address_of(target) for target in targets]

    async def main(relay: UdpRelay) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(relay.run)
            for client in clients:
                client.sendto(b"one", relay.local_address)
                client.sendto(b"two", relay.local_address)
            got = await relays.receive(targets[0], 6 if duplicate else 4)
            for packet, address in got:
                targets[0].sendto(packet, address)
            clients[0].sendto(b"three", relay.local_address)
            await relay.set_targets(where)
            relay.statistics()
            relay.stop()

    runs = 0
    for interrupter in interrupters(stride):
        runs += 1
        with relays.same_descriptors():
            relay = UdpRelay(("127.0.0.1", 0), where[:1], duplicate=duplicate, max_sessions=2)
            interrupter.run(run_interrupted, main, relay)
        check(relay, targets, clients)
    assert runs > 2, "some of it can be interrupted"


@pytest.mark.parametrize("turns", range(8))
def test_control_c_in_the_main_task_ends_a_relay_in_order(udp: ends.MakeSocket, turns: int) -> None:
    """The relay is the program's main task, and busy."""
    target, clients = udp(), [udp() for _ in range(60)]
    relay = UdpRelay(("127.0.0.1", 0), [ends.address_of(target)])

    async def interrupt() -> None:
        while relay._local_address is None:
            await trio.lowlevel.checkpoint()
        for client in clients:
            client.sendto(b"x", relay.local_address)
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        trio.lowlevel.spawn_system_task(interrupt)
        await relay.run()

    with relays.same_descriptors(), pytest.raises(KeyboardInterrupt):
        trio.run(main)
    told = relays.laws(relay)
    assert told.to_targets.datagrams_in == 60
    assert len(relays.waiting(target)) == told.to_targets.datagrams_out
