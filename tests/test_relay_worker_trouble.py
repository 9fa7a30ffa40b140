# What goes wrong around the workers of a `UdpRelay`: one that cannot be started, or dies or stands
# still at a bad moment, and orders that cross. Nothing that was counted is forgotten.

from __future__ import annotations

import errno
import logging
import math
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from snaptun_trio import UdpRelay, _relay_workers

from . import ends, relays
from .relaying import freeze, running
from .test_relay_in_workers import HERE, asked_by, counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from snaptun_trio import Address, RelayStatistics

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="for Linux's /proc")

LOST = "what it counted since its last report is in no sum"


async def replaced(relay: UdpRelay, times: int = 1) -> None:
    """Wait until so many were, and all are there."""
    await counted(relay, lambda seen: seen.worker_restarts >= times and seen.workers == 1)


# --- none can be started --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("can't start new thread"),
    ],
    ids=["no process", "no descriptor", "no thread"],
)
async def test_one_that_cannot_be_replaced_at_once_is_replaced_later(
    udp: ends.MakeSocket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """And the others are not ended because of it."""
    target, client = udp(), udp()
    relay = UdpRelay(HERE, [ends.address_of(target)], workers=1)
    async with running(relay) as workers:
        with monkeypatch.context() as patch:
            failed = trio.Event()

            async def open_process(*_: object, **__: object) -> None:
                await trio.lowlevel.checkpoint()
                failed.set()
                raise error

            patch.setattr(trio.lowlevel, "open_process", open_process)
            os.kill(workers()[0], signal.SIGKILL)
            await failed.wait()
        await replaced(relay, 2)
        await trio.to_thread.run_sync(asked_by, client, relay, target)
    said = error.strerror if isinstance(error, OSError) else str(error)
    assert caplog.messages[:2] == [
        f"worker 1 is replaced: ended by SIGKILL; {LOST}",
        f"worker 1 is replaced: {said}; {LOST}",
    ]


async def test_that_none_can_be_started_at_first_is_told(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/does/not/exist")
    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=2)
    with relays.same_descriptors(), pytest.raises(FileNotFoundError, match="/does/not/exist"):
        await relay.run()


async def test_a_socket_that_its_owner_has_closed_is_no_other_workers(
    udp: ends.MakeSocket,
) -> None:
    ours = ends.bound_socket()
    relay = UdpRelay(ours, [ends.address_of(udp())], workers=1)
    with pytest.RaisesGroup(trio.ClosedResourceError):
        async with running(relay) as workers:
            ours.close()
            os.kill(workers()[0], signal.SIGKILL)
            await trio.sleep_forever()


async def test_a_socket_may_be_where_others_have_their_standard_input(
    udp: ends.MakeSocket,
) -> None:
    """As inetd hands it over."""
    target, client = udp(), udp()
    standard_input = os.dup(0)
    try:
        with ends.bound_socket() as sock:
            os.dup2(sock.fileno(), 0)
        relay = UdpRelay(0, [ends.address_of(target)], workers=1)
        async with running(relay):
            await trio.to_thread.run_sync(asked_by, client, relay, target)
    finally:
        os.dup2(standard_input, 0)
        os.close(standard_input)


async def test_a_worker_finds_what_this_process_finds_in_its_directory(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where a program is started with ``-c``, or typed, that is the empty path."""
    found: list[str] = []

    async def open_process(*_: object, env: dict[str, str], **__: object) -> None:
        await trio.lowlevel.checkpoint()
        found.extend(env["PYTHONPATH"].split(os.pathsep))
        raise FileNotFoundError(errno.ENOENT, "none")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/elsewhere"])
    monkeypatch.setattr(trio.lowlevel, "open_process", open_process)
    with pytest.raises(FileNotFoundError):
        await UdpRelay(HERE, [ends.address_of(udp())], workers=1).run()
    assert found == [str(tmp_path), "/elsewhere"]


# --- one dies, or stands still --------------------------------------------------------------------


async def test_each_has_a_socket_of_its_own(udp: ends.MakeSocket) -> None:
    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=3)
    async with running(relay) as workers:
        assert len(workers()) == relay.statistics().workers == 3


async def test_what_a_terminal_sends_is_not_for_workers(udp: ends.MakeSocket) -> None:
    """Ctrl-C while they begin, and Ctrl-Z."""
    async with running(UdpRelay(HERE, [ends.address_of(udp())], workers=2)) as workers:
        assert [os.getpgid(pid) for pid in workers()] == workers()


async def test_a_worker_may_have_as_many_descriptors_as_it_ever_may(
    udp: ends.MakeSocket,
) -> None:
    """However few this program takes for itself."""
    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1000), hard))
    try:
        async with running(relay) as workers:
            assert resource.prlimit(workers()[0], resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_one_may_die_of_a_signal_without_a_name(
    udp: ends.MakeSocket, caplog: pytest.LogCaptureFixture
) -> None:
    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=1)
    number = signal.SIGRTMIN + 3
    async with running(relay) as workers:
        os.kill(workers()[0], number)
        await replaced(relay)
    assert caplog.messages == [f"worker 1 is replaced: ended by signal {number}; {LOST}"]


async def test_one_that_dies_while_it_should_end_is_logged(
    udp: ends.MakeSocket, caplog: pytest.LogCaptureFixture
) -> None:
    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=1)
    with caplog.at_level(logging.WARNING, "snaptun_trio"):
        async with running(relay) as workers:
            freeze(workers()[0])
            relay.stop()
            os.kill(workers()[0], signal.SIGKILL)
            await relay.drain()
    assert caplog.messages == [f"worker 1 is gone: ended by SIGKILL; {LOST}"]
    assert relay.statistics().worker_restarts == 0


async def test_one_that_stands_still_before_it_has_begun_does_not_hold_up_the_end(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_relay_workers, "_END_WITHIN", 0.1)
    monkeypatch.setattr(_relay_workers, "_CANCELLED_WITHIN", 0.1)
    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=1, grace=0.0)
    real = trio.lowlevel.open_process

    async def open_process(*arguments: Any, **options: Any) -> trio.Process:  # noqa: ANN401
        process = await real(*arguments, **options)
        freeze(process.pid)
        relay.stop()
        return process

    monkeypatch.setattr(trio.lowlevel, "open_process", open_process)
    with trio.fail_after(ends.PATIENCE):
        await relay.run()


def came(seen: RelayStatistics) -> int:
    """Datagrams of which something is known; without GRO each has a buffer."""
    return seen.to_targets.datagrams_in + seen.to_targets.buffers_dropped_by_kernel


async def test_what_the_kernel_drops_while_there_is_no_worker_is_counted_once(
    udp: ends.MakeSocket,
) -> None:
    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=1, receive_buffer=20_000)
    client = udp()
    async with running(relay) as workers:
        client.connect(relay.local_address)
        for times in range(1, 3):
            freeze(workers()[0])
            for _ in range(300):
                client.send(b"x")
            os.kill(workers()[0], signal.SIGKILL)
            await replaced(relay, times)
            await counted(relay, lambda seen: came(seen) % 300 == 0 < came(seen))
    flow = relay.statistics().to_targets
    assert flow.buffers_dropped_by_kernel > 0
    assert came(relay.statistics()) == 600


async def test_what_the_kernel_had_dropped_before_is_not_the_relays() -> None:
    ours = ends.bound_socket(receive_buffer=20_000)
    with ends.bound_socket() as client:
        for _ in range(300):
            client.sendto(b"x", ends.address_of(ours))
    relay = UdpRelay(ours, [("127.0.0.1", 9)], workers=1)
    async with running(relay):
        await counted(relay, lambda seen: seen.to_targets.datagrams_in > 0)
    assert came(relay.statistics()) == relay.statistics().to_targets.datagrams_in < 300


def test_one_that_dies_again_and_again_is_started_less_and_less_often() -> None:
    pauses = [0.0]
    while len(pauses) < 10:
        pauses.append(_relay_workers._next_pause(pauses[-1], lived=0.5))
    assert 0.0 < pauses[1] < pauses[2] < pauses[6] < pauses[8] == pauses[9] == 10.0
    assert _relay_workers._next_pause(pauses[-1], lived=60.0) == 0.0


async def test_the_end_does_not_wait_for_the_next_one_to_start(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_relay_workers, "_next_pause", lambda *_, **__: math.inf)
    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=1)
    async with running(relay) as workers:
        os.kill(workers()[0], signal.SIGKILL)
        await counted(relay, lambda seen: seen.worker_restarts == 1)
        assert workers() == []
        with trio.fail_after(ends.PATIENCE):
            await relay.drain()


# --- orders ---------------------------------------------------------------------------------------


async def test_the_laws_hold_while_workers_have_not_heard_of_other_targets(
    udp: ends.MakeSocket,
) -> None:
    first, second, client = udp(), udp(), udp()
    relay = UdpRelay(HERE, [ends.address_of(first)], workers=1)
    async with running(relay) as workers:
        await trio.to_thread.run_sync(asked_by, client, relay, first)
        await counted(relay, lambda seen: seen.sessions == 1)
        freeze(workers()[0])
        await relay.set_targets([ends.address_of(second)])
        assert relays.laws(relay).sessions == 1
        os.kill(workers()[0], signal.SIGCONT)
        await counted(relay, lambda seen: seen.sessions_moved == 1)
        assert [one.address for one in relays.laws(relay).targets] == [ends.address_of(second)]


async def test_a_target_that_comes_back_begins_anew_after_a_death_too(
    udp: ends.MakeSocket,
) -> None:
    first, second, client = udp(), udp(), udp()
    one, other = ends.address_of(first), ends.address_of(second)
    relay = UdpRelay(HERE, [one], workers=1)

    def is_told_of(target: Address) -> Callable[[Any], bool]:
        return lambda seen: [each.address for each in seen.targets] == [target]

    async with running(relay) as workers:
        await trio.to_thread.run_sync(asked_by, client, relay, first)
        await counted(relay, lambda seen: seen.to_clients.datagrams_out == 1)
        os.kill(workers()[0], signal.SIGKILL)
        await replaced(relay)
        assert relays.laws(relay).targets[0].datagrams_out == 1
        await relay.set_targets([other])
        await counted(relay, is_told_of(other))
        await relay.set_targets([one])
        await counted(relay, is_told_of(one))
        seen = relays.laws(relay)
        assert (seen.targets[0].datagrams_out, seen.to_targets.datagrams_out) == (0, 1)
