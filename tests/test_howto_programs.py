# The programs of the how-to pages run, over loopback, and do what their pages say.

from __future__ import annotations

import logging
import os
import re
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from snaptun_trio import PacketBatch, UdpBatchReceiver, UdpChannel, open_udp_channel, serve_udp
from snaptun_trio.testing import memory_channel_pair

from . import ends, relaying
from .examples import example, first_line, program

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from snaptun_trio import Address, UdpServer

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="this is Linux's")


def ask(host: str, port: str, question: bytes) -> bytes:
    """Asks from a connected socket, which takes an answer from nowhere else."""
    with ends.bound_socket(host if ":" in host else "127.0.0.1") as sock:
        sock.connect((host, int(port)))
        sock.send(question)
        ends.wait_until_readable(sock)
        return sock.recv(65_535)


@pytest.mark.parametrize(
    "name",
    [
        "howto/before_trio",
        "howto/after_trio",
        "howto/before_asyncio",
        "howto/after_asyncio",
        "howto/after_rust",
    ],
)
def test_a_program_and_what_it_was_before_answer_alike(name: str) -> None:
    with program(name, "0") as server:
        port = first_line(server, r"answering on port (\d+)\n")[1]
        assert [ask("::1", port, word) for word in (b"one", b"x" * 1200)] == [
            b"ONE",
            b"X" * 1200,
        ]


@LINUX
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1"])
def test_a_loop_of_its_own_answers_from_the_address_that_was_asked(host: str) -> None:
    with program("howto/own_loop", "0") as server:
        port = first_line(server, r"answering on port (\d+)\n")[1]
        assert ask(host, port, b"hello") == b"HELLO"


def by_functions(*arguments: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return program("howto/relay_functions", *arguments)


def by_tasks(*arguments: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return program("howto/protocol_relay", *arguments)


@pytest.mark.parametrize("start", [by_functions, by_tasks])
def test_a_relay_with_a_protocol_relays_what_is_data(
    udp: ends.MakeSocket, start: Callable[..., AbstractContextManager[subprocess.Popen[str]]]
) -> None:
    target = udp()
    host, its_port = target.getsockname()
    with start("0", host, str(its_port)) as relay:
        port = int(first_line(relay, r"relaying on port (\d+)\n")[1])
        clients = [udp(), udp()]
        for number, client in enumerate(clients):
            client.connect(("127.0.0.1", port))
            client.send(b"Dhello from %d" % number)
        sessions = dict(relaying.receive(target) for _ in clients)
        assert sorted(sessions) == [b"hello from 0", b"hello from 1"]
        for packet, session in sessions.items():
            target.sendto(packet.upper(), session)
        for number, client in enumerate(clients):
            assert relaying.receive(client)[0] == b"DHELLO FROM %d" % number
        # Some things the target never sees.
        clients[0].send(b"Xwhat is this?")
        clients[0].send(b"Pare you there?")
        assert relaying.receive(clients[0])[0] == b"Pare you there?"
        # The other one goes, and is a new client when it comes back. What comes before its session
        # has ended is the old one's, or nobody's.
        clients[1].send(b"B")
        old, session = sessions[b"hello from 1"], sessions[b"hello from 1"]
        for _ in range(1000):
            clients[1].send(b"Dback again")
            if select.select([target], [], [], 0.1)[0]:
                packet, session = relaying.receive(target)
                assert packet == b"back again"
                if session != old:
                    break
        assert session not in sessions.values()
        # A target that is not there ends nothing.
        ends.deafen(target)
        for _ in range(3):
            clients[0].send(b"Danybody?")
        clients[0].send(b"Pstill there?")
        assert relaying.receive(clients[0])[0] == b"Pstill there?"


@pytest.mark.parametrize("start", [by_functions, by_tasks])
def test_a_client_talks_through_a_relay_with_a_protocol(
    start: Callable[..., AbstractContextManager[subprocess.Popen[str]]],
) -> None:
    with program("echo_server", "0") as server:
        target = first_line(server, r"echoing on port (\d+)\n")[1]
        with start("0", "127.0.0.1", target) as relay:
            port = first_line(relay, r"relaying on port (\d+)\n")[1]
            with program("howto/relay_client", "127.0.0.1", port, "hello") as client:
                out, err = client.communicate(timeout=ends.PATIENCE)
    assert (out, err) == ("Pare you there?\nDhello\n", "")


def flaky(answered: list[bytes]) -> Any:  # noqa: ANN401
    """A server to which the first datagram of each question is lost, and which says all twice."""

    async def serve(channel: UdpChannel) -> None:
        asked: set[bytes] = set()
        async for batch in channel:
            for packet, _ in batch:
                if packet in asked:
                    answered.append(packet)
                    for _ in range(2):
                        await channel.send_packet(packet.upper())
                asked.add(packet)

    return serve


async def test_many_tasks_ask_on_one_socket_and_ask_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = example("howto/ask_many")
    near, far = memory_channel_pair()
    answered: list[bytes] = []
    heard: dict[int, bytes] = {}

    async def one(number: int) -> None:
        # The number in front may be anything; upper() must leave it as it is.
        heard[number] = await asker.ask(b"question %d" % number)

    monkeypatch.setattr(asking.secrets, "token_bytes", numbers())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flaky(answered), far)
        asker = asking.Asker(near)
        nursery.start_soon(asker.listen)
        async with trio.open_nursery() as tasks:
            for number in range(20):
                tasks.start_soon(one, number)
        nursery.cancel_scope.cancel()
    assert heard == {number: b"QUESTION %d" % number for number in range(20)}
    assert len(answered) == 20  # each was asked twice, and no more
    assert trio.current_time() < 2 * asking.FIRST_PATIENCE


def numbers() -> Any:  # noqa: ANN401
    counted = iter(range(10_000))
    return lambda size: str(next(counted)).zfill(size).encode()


async def test_nobody_answers_and_each_task_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asking = example("howto/ask_many")
    near, far = memory_channel_pair()
    async with trio.open_nursery() as nursery:
        asker = asking.Asker(near)
        nursery.start_soon(asker.listen)
        with pytest.raises(trio.TooSlowError):
            await asker.ask(b"question")
        nursery.cancel_scope.cancel()
    assert far.statistics().datagrams_waiting == asking.TRIES


def test_the_asker_is_a_program() -> None:
    with program("echo_server", "0") as server:
        port = first_line(server, r"echoing on port (\d+)\n")[1]
        with program("howto/ask_many", "127.0.0.1", port, "one", "two", "three") as client:
            out, err = client.communicate(timeout=ends.PATIENCE)
    assert (sorted(out.split()), err) == (["one", "three", "two"], "")


async def test_what_tasks_send_in_one_turn_leaves_together(linux_backend: None) -> None:
    """As the page on many tasks says."""
    with ends.bound_socket() as server:
        async with await open_udp_channel(*ends.address_of(server)[:2]) as channel:
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(channel.send_packet, b"%d" % number)
    counted = channel.statistics()
    assert counted.datagrams_sent == 50
    assert counted.sender is not None
    assert counted.sender.send_calls == 1


@LINUX
@pytest.mark.slow
def test_what_comes_while_a_worker_is_gone_waits_for_the_next() -> None:
    with program("howto/supervisor", "0", "2") as supervisor:
        port = first_line(supervisor, r"listening on port (\d+)\n")[1]
        clients = [ends.bound_socket("127.0.0.1") for _ in range(20)]

        def answers() -> list[int]:
            for client in clients:
                client.send(b"who?")
            found: list[int] = []
            for client in clients:
                ends.wait_until_readable(client)
                found.append(int(client.recv(100).partition(b":")[0]))
            return found

        try:
            for client in clients:
                client.connect(("127.0.0.1", int(port)))
            first = answers()
            workers = set(first)
            assert workers <= set(relaying.children_of(supervisor.pid))
            victim = first[0]
            gone = os.pidfd_open(victim)
            os.kill(victim, signal.SIGKILL)
            assert select.select([gone], [], [], ends.PATIENCE)[0]
            os.close(gone)
            then = answers()  # asked at once, and answered by whoever comes
            assert victim not in then
            for before, after in zip(first, then):
                assert before in (after, victim)  # nobody else's peers move
            supervisor.send_signal(signal.SIGTERM)
            _, err = supervisor.communicate(timeout=ends.PATIENCE)
        finally:
            for client in clients:
                client.close()
    assert supervisor.returncode == 0
    assert f"a worker ended with exit code {-signal.SIGKILL}" in err


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", None), ("150000 100000", 1), ("50000 100000", 1), ("10000000 100000", None)],
)
def test_the_quota_of_a_container_says_how_many_workers(
    tmp_path: Path, limit: str, expected: int | None
) -> None:
    cpus = example("howto/cpus").cpus
    (tmp_path / "cpu.max").write_text(f"{limit}\n", encoding="ascii")
    there = cpus(tmp_path / "no cgroup")
    assert cpus(tmp_path) == (there if expected is None else expected)
    with program("howto/cpus") as process:
        assert int(process.communicate(timeout=ends.PATIENCE)[0]) >= 1


async def test_what_a_server_loses_is_logged_and_where(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    watching = example("howto/watch")

    async def never(channel: UdpChannel) -> None:
        await trio.sleep_forever()

    def serve(*, task_status: trio.TaskStatus[UdpServer]) -> Any:  # noqa: ANN401
        return serve_udp(never, 0, host="127.0.0.1", peer_queue=3, task_status=task_status)

    async with trio.open_nursery() as nursery:
        server: UdpServer = await nursery.start(serve)
        with ends.bound_socket() as client:
            client.connect(server.local_address)
            for _ in range(10):
                client.send(b"hello")
            while server.statistics().datagrams_received < 10:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(watching.watch, server)
            await trio.sleep(11)  # by the test's clock
            assert caplog.records == []  # it was before the watch began
            for _ in range(4):
                client.send(b"hello")
            while server.statistics().datagrams_received < 14:
                await trio.lowlevel.checkpoint()
            await trio.sleep(10)
        nursery.cancel_scope.cancel()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "4 datagrams dropped, their handlers are too slow"


async def test_a_polling_socket_receives(linux_backend: None) -> None:
    polling = example("howto/busy_poll")
    try:
        sock = await polling.open_polling_socket(("127.0.0.1", 0), 50)
    except OSError as error:
        pytest.skip(f"SO_BUSY_POLL: {error}")
    with sock, ends.bound_socket() as client:
        assert sock.getsockopt(socket.SOL_SOCKET, polling.SO_BUSY_POLL) == 50
        client.sendto(b"hello", sock.getsockname())
        batch: PacketBatch[Address] = await UdpBatchReceiver(sock).receive()
        assert batch.packets() == [(b"hello", ends.address_of(client))]


@LINUX
def test_what_the_system_grants_is_said() -> None:
    with ends.bound_socket() as server:
        with program("howto/sizes", *map(str, ends.address_of(server))) as process:
            out, err = process.communicate(timeout=ends.PATIENCE)
    assert err == ""
    found = [int(number) for number in re.findall(r"(\d+) bytes", out)]
    assert len(found) == 3, out
    assert 1200 < found[0] <= 65_507
    assert re.search(r"GRO: \w+ GSO: \w+\n", out)
