# A `UdpRelay` whose work is done by processes: it begins, goes on and ends as one that does it by
# itself. What becomes of clients when a worker is killed is in `test_relay_workers.py`.

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

from snaptun_trio import UdpRelay, _relay_workers

from . import ends
from .relaying import ask, children_of, freeze, running

if TYPE_CHECKING:
    from snaptun_trio import RelayStatistics

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="for Linux's /proc")

HERE = ("127.0.0.1", 0)


def asked_by(client: socket.socket, relay: UdpRelay, target: socket.socket) -> Any:  # noqa: ANN401
    client.connect(relay.local_address)
    return ask(client, target)


async def counted(relay: UdpRelay, enough: Any) -> RelayStatistics:  # noqa: ANN401
    """The statistics, once they are as they should be."""
    with trio.fail_after(ends.PATIENCE):
        while not enough(seen := relay.statistics()):  # noqa: ASYNC110  # nobody sets an event
            await trio.sleep(0.01)
    return seen


@pytest.mark.core
async def test_it_relays_counts_and_ends(udp: ends.MakeSocket) -> None:
    target, clients = udp(), [udp() for _ in range(8)]
    relay = UdpRelay(HERE, [ends.address_of(target)], workers=2)
    assert relay.statistics().workers == 0
    before = children_of(os.getpid())
    async with trio.open_nursery() as nursery:
        assert await nursery.start(relay.run) is relay
        assert len(children_of(os.getpid())) == len(before) + 2
        assert relay.statistics().workers == 2
        for client in clients:
            await trio.to_thread.run_sync(asked_by, client, relay, target)
        seen = await counted(relay, lambda seen: seen.to_clients.datagrams_out == len(clients))
        assert (seen.sessions, seen.sessions_created) == (len(clients), len(clients))
        (one,) = seen.targets
        assert (one.address, one.datagrams_out) == (ends.address_of(target), len(clients))
        assert seen.worker_seconds > 0
        assert seen.worker_cpu_seconds > 0
        await relay.drain()
    assert children_of(os.getpid()) == before
    final = relay.statistics()
    assert (final.workers, final.sessions, final.sessions_closed) == (0, 0, len(clients))
    assert final.to_targets.datagrams_in == final.to_targets.datagrams_out == len(clients)
    with pytest.raises(RuntimeError, match="the relay does not run"):
        await relay.set_targets([("192.0.2.1", 53)])


async def test_other_targets_reach_all_workers_those_that_come_later_too(
    udp: ends.MakeSocket,
) -> None:
    first, second, client = udp(), udp(), udp()
    relay = UdpRelay(HERE, [ends.address_of(first)], workers=1)
    async with running(relay) as workers:
        await trio.to_thread.run_sync(asked_by, client, relay, first)
        await relay.set_targets([ends.address_of(second)])
        assert relay.targets == (ends.address_of(second),)
        await counted(relay, lambda seen: seen.sessions_moved == 1)
        await trio.to_thread.run_sync(asked_by, client, relay, second)
        seen = await counted(relay, lambda seen: seen.to_clients.datagrams_out == 2)
        assert [one.address for one in seen.targets] == [ends.address_of(second)]
        (worker,) = workers()
        os.kill(worker, signal.SIGKILL)
        await trio.to_thread.run_sync(asked_by, client, relay, second)
        await counted(relay, lambda seen: seen.worker_restarts == 1 and seen.workers == 1)
        await relay.drain()


async def test_a_worker_that_dies_is_logged(
    udp: ends.MakeSocket, caplog: pytest.LogCaptureFixture
) -> None:
    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=1)
    async with running(relay) as workers:
        (worker,) = workers()
        with caplog.at_level(logging.WARNING, "snaptun_trio"):
            os.kill(worker, signal.SIGKILL)
            await counted(relay, lambda seen: seen.worker_restarts == 1 and seen.workers == 1)
        await relay.drain()
    assert caplog.messages == [
        "worker 1 is replaced: ended by SIGKILL; what it counted since its last report is in no sum"
    ]


async def test_stopped_before_it_begins_it_begins_and_ends(udp: ends.MakeSocket) -> None:
    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=2)
    before = children_of(os.getpid())
    relay.stop()
    with trio.fail_after(ends.PATIENCE):
        await relay.run()
    assert children_of(os.getpid()) == before
    assert relay.statistics().worker_restarts == 0


@pytest.mark.parametrize("frozen", [False, True])
async def test_cancelled_it_leaves_nobody_behind(udp: ends.MakeSocket, frozen: bool) -> None:
    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=2)
    before = set(children_of(os.getpid()))
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        if frozen:  # it does not even notice that its orders have ended
            freeze(min(set(children_of(os.getpid())) - before))
        nursery.cancel_scope.cancel()
    assert set(children_of(os.getpid())) == before
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:  # the port is free
        again.bind(relay.local_address)


async def test_workers_that_do_not_end_are_killed_in_the_end(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_relay_workers, "_END_WITHIN", 0.1)
    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=1, grace=0.0)
    before = children_of(os.getpid())
    async with running(relay) as workers:
        (worker,) = workers()
        freeze(worker)
        with trio.fail_after(ends.PATIENCE):
            await relay.drain()
    assert children_of(os.getpid()) == before
    assert caplog.messages == ["not all workers of a relay ended in time: the others were killed"]


async def test_one_that_is_silent_is_not_counted_among_those_that_relay(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=1)
    async with running(relay) as workers:
        (worker,) = workers()
        freeze(worker)
        monkeypatch.setattr(_relay_workers, "_SILENT_AFTER", 0.2)
        await counted(relay, lambda seen: seen.workers == 0)
        os.kill(worker, signal.SIGCONT)
        monkeypatch.setattr(_relay_workers, "_SILENT_AFTER", ends.PATIENCE)
        await counted(relay, lambda seen: seen.workers == 1)
        await relay.drain()


async def test_what_a_worker_cannot_do_is_told_as_it_would_be_without(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNAPTUN_TRIO_BACKEND", "nonsense")  # which no worker survives
    before = children_of(os.getpid())
    with pytest.raises(OSError, match=r"^a worker of the relay ended with 1$"):
        await UdpRelay(HERE, [ends.address_of(udp())], workers=2).run()
    assert children_of(os.getpid()) == before


async def test_an_address_that_is_in_use_is_told(udp: ends.MakeSocket) -> None:
    taken = ends.address_of(udp())
    with pytest.raises(OSError, match="in use") as told:
        await UdpRelay(taken, [ends.address_of(udp())], workers=2).run()
    assert told.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("workers", "error"), [(-1, ValueError), (2000, ValueError), ("2", TypeError)]
)
def test_a_number_of_workers_that_is_none(workers: Any, error: type[Exception]) -> None:  # noqa: ANN401
    with pytest.raises(error, match="workers"):
        UdpRelay(HERE, [("192.0.2.1", 53)], workers=workers)


def test_several_workers_need_an_address_and_one_does_not(udp: ends.MakeSocket) -> None:
    sock = udp()
    for local in (sock, sock.fileno()):
        with pytest.raises(ValueError, match="workers: each needs a socket of its own"):
            UdpRelay(local, [("192.0.2.1", 53)], workers=2)
        UdpRelay(local, [("192.0.2.1", 53)], workers=1)


def test_there_are_none_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match="workers: a socket cannot be handed to a process"):
        UdpRelay(HERE, [("192.0.2.1", 53)], workers=1)


async def test_a_socket_that_is_given_is_the_workers(udp: ends.MakeSocket) -> None:
    target, client, ours = udp(), udp(), ends.bound_socket()
    relay = UdpRelay(ours, [ends.address_of(target)], workers=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        await trio.to_thread.run_sync(asked_by, client, relay, target)
        relay.stop()
    assert ours.fileno() < 0, "closed at the end"
