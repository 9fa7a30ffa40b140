# What becomes of a relay's clients when one of its workers is killed, and of what it has counted.

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from snaptun_trio._cli._relay_totals import RelayTotals

from . import ends
from .relaying import ENVIRONMENT, ask, at, check_sums, freeze, open_relay, receive

if TYPE_CHECKING:
    from snaptun_trio import Address

    from .ends import MakeSocket

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="for Linux's /proc")

WORKER = "snaptun_trio._cli._relay_worker"
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
        assert relay.news() in {
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


def report(**counts: int) -> dict[str, int]:
    return {name.replace("__", "."): count for name, count in counts.items()}


def test_no_count_falls_when_a_worker_ends() -> None:
    totals = RelayTotals(2)
    assert not totals.ready
    totals.take(1, report(sessions=3, sessions_created=5, to_targets__datagrams_in=10))
    totals.take(2, report(sessions=1, sessions_created=1, to_targets__datagrams_waiting=4))
    assert totals.ready
    totals.take(1, report(sessions=2, sessions_created=6, to_targets__datagrams_in=11))
    before = totals.sums
    assert (before["sessions"], before["sessions_created"]) == (3, 7)
    totals.take(2, None)
    assert not totals.ready
    totals.take(2, None)  # it died before its first report
    after = totals.sums
    assert (after["sessions"], after["sessions_closed"], after["sessions_created"]) == (2, 1, 7)
    assert after["to_targets.datagrams_waiting"] == 0
    assert after["to_targets.dropped.closed"] == 4
    assert before["to_targets.datagrams_waiting"] == 4, "who looks keeps what was seen"


def test_a_worker_relays_though_nobody_reads_its_reports(udp: MakeSocket) -> None:
    target = udp()
    with ends.bound_socket() as ours, ends.bound_socket() as client:
        client.connect(ends.address_of(ours))
        options = {"idle_timeout": 60.0, "grace": 1.0, "interval": 0.001}
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
            process.stdin.write(b"\n")
            process.stdin.flush()
            with open(reports, "rb") as lines:
                *_, last = lines.read().strip().splitlines()
            assert json.loads(last)["to_clients.datagrams_out"] == 100
            assert process.wait() == 0
