# What goes wrong around the workers of a `UdpRelay`: one that cannot be started, or dies or stands
# still at a bad moment, and orders and reports that cross. Nothing that was counted is forgotten.

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from snaptun_trio import UdpRelay, _relay_worker, _relay_workers
from snaptun_trio._lines import LineReader
from snaptun_trio._relay_sums import encoded, nothing

from . import ends, relays
from .relaying import ENVIRONMENT, children_of, freeze
from .test_relay_in_workers import HERE, asked_by, counted

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from snaptun_trio import Address, RelayStatistics

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="for Linux's /proc")

LOST = "what it counted since its last report is in no sum"


@contextlib.asynccontextmanager
async def running(relay: UdpRelay) -> AsyncIterator[Callable[[], list[int]]]:
    """A relay that runs until the block ends; gives what tells of its workers' processes."""
    before = set(children_of(os.getpid()))
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        yield lambda: [pid for pid in children_of(os.getpid()) if pid not in before]
        nursery.cancel_scope.cancel()


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


# --- orders ---------------------------------------------------------------------------------------


def test_orders_may_come_before_it_has_begun(udp: ends.MakeSocket) -> None:
    targets = [ends.address_of(udp()) for _ in range(50)]  # which take it a while
    with ends.bound_socket() as ours:
        done = run_worker(ours, targets, json.dumps(targets[1:2]).encode() + b"\nnull\n")
    assert (done.returncode, done.stderr) == (0, b"")
    (line,) = json.loads(done.stdout.splitlines()[-1])["targets"]
    assert tuple(line["address"]) == targets[1]


def arguments_of(ours: socket.socket, targets: list[Address]) -> list[str]:
    options = {"idle_timeout": 60.0, "grace": 1.0}
    settings = json.dumps({"local": ours.fileno(), "targets": targets, **options})
    return [sys.executable, "-P", "-m", _relay_worker.__name__, settings]


def run_worker(
    ours: socket.socket, targets: list[Address], orders: bytes
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        arguments_of(ours, targets),
        input=orders,
        env=ENVIRONMENT,
        pass_fds=[ours.fileno()],
        capture_output=True,
        timeout=ends.PATIENCE,
        check=False,
    )


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


# --- reports --------------------------------------------------------------------------------------


async def test_what_a_cancelled_worker_reports_last_is_counted(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    relay = UdpRelay(HERE, [ends.address_of(target)], workers=1)
    async with running(relay):
        for _ in range(10):
            await trio.to_thread.run_sync(asked_by, client, relay, target)
    seen = relays.laws(relay)
    assert seen.to_targets.datagrams_out == seen.to_clients.datagrams_out == 10
    assert (seen.sessions, seen.sessions_closed) == (0, 1)


async def test_that_nobody_listened_for_long_makes_no_report_rare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    class Deaf(trio.abc.SendStream):
        async def send_all(self, data: object) -> None:
            nonlocal now
            await trio.lowlevel.checkpoint()
            now += 1000.0

        async def wait_send_all_might_not_block(self) -> None: ...

        async def aclose(self) -> None: ...

    relay = UdpRelay(HERE, [("192.0.2.1", 53)])
    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert await _relay_worker.report(relay, Deaf(), 0.0) == 0.0


def has_open(pid: int, inode: int) -> bool:
    """Whether a process has a socket open."""
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/{pid}/fd/{descriptor}") == f"socket:[{inode}]":
                return True
    return False


def test_half_a_report_does_not_spoil_the_last_one(udp: ends.MakeSocket) -> None:
    """Where nobody listens a long one stops in its middle."""
    targets: list[Address] = [("127.0.0.1", 20_000 + number) for number in range(100)]
    targets[0] = ends.address_of(target := udp())
    reports, theirs = os.pipe()
    os.set_blocking(theirs, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(theirs, b" " * 4095 + b"\n")
    os.read(reports, 4096)

    def held() -> int:
        return int(*struct.unpack("i", fcntl.ioctl(reports, termios.FIONREAD, bytes(4))))

    room = held() + 4096
    with (
        ends.bound_socket() as ours,
        subprocess.Popen(
            arguments_of(ours, targets),
            env=ENVIRONMENT,
            pass_fds=[ours.fileno()],
            stdin=subprocess.PIPE,
            stdout=theirs,
        ) as process,
    ):
        os.close(theirs)
        assert process.stdin is not None
        while held() < room and process.poll() is None:
            pass
        process.stdin.write(b"null\n")
        process.stdin.flush()
        while has_open(process.pid, os.fstat(ours.fileno()).st_ino):
            pass
        with open(reports, "rb") as lines:
            said = [json.loads(line) for line in lines if line.strip()]
        assert len(said) >= 2
        assert len(said[-1]["targets"]) == len(targets)
        assert process.wait() == 0
    assert target.fileno() >= 0


async def test_what_is_no_report_is_passed_over() -> None:
    """Such as what a program prints that an installation has Python run first."""
    sender, receiver = trio.testing.memory_stream_one_way_pair()
    workers = _relay_workers.RelayWorkers([], [], {})
    worker = _relay_workers._Worker()
    said = attrs.evolve(nothing(), sessions_created=7)
    await sender.send_all(b'hello\n\n7\nnull\n"errno"\n{}\n[]\n' + encoded(said) + b'{"half')
    await sender.aclose()
    await workers._listen(worker, LineReader(receiver))
    assert (worker.last, worker.error) == (said, None)


async def test_control_c_interrupts_none_who_looks_after_a_worker(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, bool] = {}

    def watch(where: Any, name: str) -> None:  # noqa: ANN401
        real = getattr(where, name)

        def watched(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            seen[name] = trio.lowlevel.currently_ki_protected()
            return real(*arguments, **options)

        monkeypatch.setattr(where, name, watched)

    relay = UdpRelay(HERE, [ends.address_of(udp())], workers=1)
    watch(trio.lowlevel, "open_process")
    watch(_relay_workers, "decoded")
    async with running(relay):
        watch(json, "dumps")  # of an order
        await relay.set_targets([ends.address_of(udp())])
        await counted(relay, lambda _: "dumps" in seen)
        relay.stop()
        await relay.drain()
    assert seen == {"open_process": True, "decoded": True, "dumps": True}
