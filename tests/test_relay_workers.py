# What becomes of a relay's clients when one of its workers is killed, and of what it has counted.

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from snaptun_trio import RelayFlow, RelayStatistics, RelayTarget
from snaptun_trio._lines import LineReader
from snaptun_trio._relay_sums import after_the_end, decoded, encoded, nothing, summed

from . import ends
from .relaying import ENVIRONMENT, ask, at, check_sums, freeze, open_relay, receive

if TYPE_CHECKING:
    from snaptun_trio import Address

    from .ends import MakeSocket

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="for Linux's /proc")

WORKER = "snaptun_trio._relay_worker"
CLIENTS, ROUNDS = 32, 20  # that all clients hash to one of two workers happens once in 2**31 times


@pytest.mark.core
def test_a_worker_that_is_killed_is_replaced_and_nobody_elses_clients_notice(
    udp: MakeSocket,
) -> None:
    target = udp()
    where = at(ends.address_of(target))
    sources: dict[bytes, Counter[Address]] = {}
    with open_relay(where, "--workers", "2") as relay, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(relay.client()) for _ in range(CLIENTS)]
        for number, client in enumerate(clients):
            sources[b"%d" % number] = Counter([ask(client, target, b"%d" % number)])
        victim, _ = relay.workers()
        for each in range(ROUNDS):
            if each == ROUNDS // 2:
                os.kill(victim, signal.SIGKILL)
            for number, client in enumerate(clients):
                client.send(b"%d" % number)
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet, source = target.recvfrom(100)
                    sources[packet][source] += 1
        _, _, news = relay.news().partition(" ")  # after the time
        assert news in {
            f"worker {number} is replaced: ended by SIGKILL; what it counted since its last report "
            "is in no sum\n"
            for number in (1, 2)
        }
        for number, client in enumerate(clients):
            client.send(b"last of %d" % number)
        waited_for = {b"last of %d" % number for number in range(CLIENTS)}
        while waited_for:
            packet, source = receive(target)
            waited_for.discard(packet)
            sources[packet.removeprefix(b"last of ")][source] += 1
        for number, client in enumerate(clients):
            ask(client, target, b"%d" % number)
        undisturbed = [counted for counted in sources.values() if len(counted) == 1]
        assert 0 < len(undisturbed) < CLIENTS
        assert [*map(Counter.total, undisturbed)] == [1 + ROUNDS + 1] * len(undisturbed)
        code, out, err = relay.end()
    assert (code, err) == (0, "")
    assert "1 workers replaced" in out


@pytest.mark.core
def test_what_comes_while_there_is_no_worker_waits(udp: MakeSocket) -> None:
    target = udp()
    where = at(ends.address_of(target))
    with open_relay(where, "--json", "--interval", "0.01") as relay, relay.client() as client:
        ask(client, target)
        relay.read_until(lambda facts: facts["to_clients.datagrams_out"] == 1)
        said = relay.read_json()
        for times in range(1, 5):
            (worker,) = relay.workers()
            freeze(worker)  # it reads nothing any more
            client.send(b"%d" % times)
            os.kill(worker, signal.SIGKILL)
            assert receive(target)[0] == b"%d" % times
            while (facts := next(said))["to_targets.datagrams_out"] <= times:
                pass
            assert facts["worker_restarts"] == times
            check_sums(facts)
        code, out, _ = relay.end()
    assert code == 0
    assert '"worker_restarts": 4' in out.splitlines()[-1]


def test_a_worker_that_is_told_to_end_by_somebody_else_goes_on(udp: MakeSocket) -> None:
    target = udp()
    with open_relay(at(ends.address_of(target))) as relay, relay.client() as client:
        (worker,) = relay.workers()
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker, number)
        ask(client, target)
        assert relay.workers() == [worker]
        assert relay.end()[0] == 0


def counted(**changes: Any) -> RelayStatistics:  # noqa: ANN401
    return attrs.evolve(nothing(), **changes)


def flow(**changes: Any) -> RelayFlow:  # noqa: ANN401
    return attrs.evolve(nothing().to_targets, **changes)


def target_of(port: int, **counts: Any) -> RelayTarget:  # noqa: ANN401
    rest = {"sessions": 0, "datagrams_out": 0, "dropped": {}, "asynchronous_errors": {}}
    return RelayTarget(address=("192.0.2.1", port), **{**rest, **counts})


def test_what_workers_counted_adds_up_field_by_field() -> None:
    one = counted(
        sessions=3,
        worker_seconds=1.5,
        to_targets=flow(datagrams_in=10, dropped={"closed": 1, "EPERM": 2}),
        targets=(target_of(1, sessions=2, dropped={"EPERM": 2}), target_of(2, sessions=1)),
    )
    other = counted(
        sessions=1,
        worker_seconds=2.0,
        to_targets=flow(datagrams_in=5, dropped={"closed": 4}),
        targets=(target_of(2, datagrams_out=7), target_of(3, datagrams_out=9)),
    )
    total = summed([one, other], [("192.0.2.1", 2), ("192.0.2.1", 1)])
    assert total == counted(
        sessions=4,
        worker_seconds=3.5,
        to_targets=flow(datagrams_in=15, dropped={"closed": 5, "EPERM": 2}),
        targets=(
            target_of(2, sessions=1, datagrams_out=7),
            target_of(1, sessions=2, dropped={"EPERM": 2}),
        ),
    ), "those that are no targets any more are left out"


def test_a_worker_that_ended_holds_nothing_and_keeps_its_counts() -> None:
    before = counted(
        sessions=2,
        sessions_created=5,
        sessions_expired=3,
        to_clients=flow(datagrams_in=9, datagrams_out=5, datagrams_waiting=4),
        targets=(target_of(1, sessions=2, datagrams_out=3),),
    )
    assert after_the_end(before) == counted(
        sessions_created=5,
        sessions_expired=3,
        sessions_closed=2,
        to_clients=flow(datagrams_in=9, datagrams_out=5, dropped={"closed": 4}),
        targets=(target_of(1, datagrams_out=3),),
    )


def test_a_report_is_a_line_and_means_what_it_meant() -> None:
    said = counted(
        sessions=1,
        worker_cpu_seconds=0.25,
        to_targets=flow(dropped={"socket full": 3}, asynchronous_errors={"ECONNREFUSED": 1}),
        targets=(attrs.evolve(target_of(1), address=("fe80::1", 53, 0, 2)),),
    )
    line = encoded(said)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decoded(line) == said
    error = decoded(encoded(OSError(errno.ENETUNREACH, "Network is unreachable: to\nit")))
    assert isinstance(error, OSError)
    assert error.args == (errno.ENETUNREACH, "Network is unreachable: to\nit")


async def test_lines_come_whole_however_they_arrive() -> None:
    sender, receiver = trio.testing.memory_stream_one_way_pair()
    reader = LineReader(receiver)
    await sender.send_all(b"one\ntwo\n\nth")
    assert [await reader.read() for _ in range(3)] == [b"one", b"two", b""]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.send_all, b"ree\nrest")
        assert await reader.read() == b"three"
    await sender.aclose()
    assert await reader.read() is None, "what is no line is nothing"


def test_a_worker_relays_though_nobody_reads_its_reports(udp: MakeSocket) -> None:
    target = udp()
    with ends.bound_socket() as ours, ends.bound_socket() as client:
        client.connect(ends.address_of(ours))
        options = {"idle_timeout": 60.0, "grace": 1.0}
        arguments = {"local": ours.fileno(), "targets": [ends.address_of(target)], **options}
        reports, theirs = os.pipe()
        os.set_blocking(theirs, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(theirs, b" " * 4095 + b"\n")
        with subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER, json.dumps(arguments)],
            env=ENVIRONMENT,
            pass_fds=[ours.fileno()],
            stdin=subprocess.PIPE,
            stdout=theirs,
        ) as process:
            os.close(theirs)
            assert process.stdin is not None
            for _ in range(100):
                ask(client, target)
            process.stdin.write(b"null\n")
            process.stdin.flush()
            with open(reports, "rb") as lines:
                *_, last = lines.read().strip().splitlines()
            assert json.loads(last)["to_clients"]["datagrams_out"] == 100
            assert process.wait() == 0
