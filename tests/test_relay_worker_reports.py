# What a worker of a `UdpRelay` is told and says, at a bad moment too: orders that come early, and
# reports that nobody reads, or that come last.

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
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
from snaptun_trio._kernel._sockets import SocketOptions
from snaptun_trio._lines import LineReader
from snaptun_trio._relay_settings import RelaySettings
from snaptun_trio._relay_sums import decoded, encoded, nothing

from . import ends, relays
from .relaying import ENVIRONMENT, running
from .test_relay_in_workers import HERE, asked_by, counted

if TYPE_CHECKING:
    import socket

    from snaptun_trio import Address

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="for Linux's /proc")


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


def test_why_it_cannot_begin_is_its_last_report() -> None:
    with ends.bound_socket() as ours:
        done = run_worker(ours, [("255.255.255.255", 9)], b"")
    error = decoded(done.stdout.splitlines()[-1])
    assert isinstance(error, OSError)
    assert error.errno == errno.EACCES, "nobody has asked for broadcasts"
    assert (done.returncode, done.stderr) == (1, b"")


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
    settings = RelaySettings(
        duplicate=False,
        max_sessions=None,
        session_rate=1,
        idle_timeout=1.0,
        grace=1.0,
        options=SocketOptions(False, 1, 1, False),
    )
    workers = _relay_workers.RelayWorkers([], [], settings)
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
