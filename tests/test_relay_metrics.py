# What `snaptun-trio relay --metrics` tells Prometheus.

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from snaptun_trio import RelayStatistics, RelayTarget, __version__, backend
from snaptun_trio._cli import _metrics
from snaptun_trio._relay_sums import nothing

from . import ends
from .relaying import ask, at, get, open_relay, status_of, where_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .ends import MakeSocket

Page = dict[tuple[str, ...], float]
CLIENTS = 32


def page_of(where: tuple[str, int]) -> Page:
    """Every number of the page, by name and labels."""
    status, text = get(where, "/metrics")
    assert status == 200
    return {
        (sample.name.removeprefix("snaptun_trio_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def counters(page: Page) -> Page:
    return {key: number for key, number in page.items() if key[0].endswith("_total")}


@pytest.mark.core
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="for Linux's /proc")
def test_the_page_sums_over_workers_and_no_counter_falls(udp: MakeSocket) -> None:
    target = udp()
    options = ("--workers", "2", "--metrics", "127.0.0.1:0", "--interval", "0.01")
    with (
        open_relay(at(ends.address_of(target)), *options) as relay,
        contextlib.ExitStack() as stack,
    ):
        where = relay.metrics
        assert status_of(where, "/live") == 200
        assert status_of(where, "/ready") == 200
        assert status_of(where, "/nonsense") == 404
        clients = [stack.enter_context(relay.client()) for _ in range(CLIENTS)]
        for client in clients:
            ask(client, target)
        while (page := page_of(where))["datagrams_out_total", "to_clients"] < CLIENTS:
            pass
        for direction, size in (("to_targets", 5), ("to_clients", 8)):
            assert page["datagrams_in_total", direction] == CLIENTS
            assert page["bytes_in_total", direction] == size * CLIENTS
            assert page["bytes_out_total", direction] == size * CLIENTS
            assert page["buffers_dropped_by_kernel_total", direction] == 0
            assert page["datagrams_per_syscall", direction] >= 1
        assert page["sessions_active",] == page["sessions_created_total",] == CLIENTS
        assert (page["workers",], page["worker_restarts_total",]) == (2, 0)
        assert page["worker_cpu_seconds_total",] > 0
        for name in ("expired", "evicted", "shed"):
            assert page[f"sessions_{name}_total",] == 0
        os.kill(relay.workers()[0], signal.SIGKILL)
        done = False
        while not done:
            before, page = page, page_of(where)
            for key, number in counters(before).items():
                assert page[key] >= number, key
            done = page["worker_restarts_total",] == 1 and page["workers",] == 2
        assert page["sessions_created_total",] == CLIENTS
        assert page["sessions_active",] < CLIENTS
        assert status_of(where, "/ready") == 200
        assert relay.end()[0] == 0
    with pytest.raises(ConnectionRefusedError):
        get(where, "/live")


@contextlib.contextmanager
def served(
    statistics: RelayStatistics, ready: Callable[[], bool] = lambda: True
) -> Iterator[tuple[str, int]]:
    """These statistics at an address of this machine."""
    with _metrics.open_metrics(("127.0.0.1", 0), lambda: statistics, ready) as told:
        yield where_of(told)


async def test_drops_have_their_reason_and_their_target() -> None:
    target = RelayTarget(
        address=("::1", 53, 0, 0),
        sessions=2,
        datagrams_out=7,
        dropped={"socket full": 3},
        asynchronous_errors={"ECONNREFUSED": 4},
    )
    flow = attrs.evolve(nothing().to_targets, dropped={"socket full": 3, "EMSGSIZE": 1})
    with served(attrs.evolve(nothing(), to_targets=flow, targets=(target,))) as where:
        page = await trio.to_thread.run_sync(page_of, where)
    assert page["dropped_total", "to_targets", "socket full"] == 3
    assert page["dropped_total", "to_targets", "EMSGSIZE"] == 1
    assert page["dropped_total", "to_clients", "socket full"] == 0, "there before the first one"
    assert page["target_sessions_active", "[::1]:53"] == 2
    assert page["target_datagrams_out_total", "[::1]:53"] == 7
    assert page["target_dropped_total", "socket full", "[::1]:53"] == 3
    assert page["target_asynchronous_errors_total", "ECONNREFUSED", "[::1]:53"] == 4
    assert page["build_info", backend, __version__] == 1


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="for Linux's /proc")
def test_what_sockets_told_of_earlier_datagrams_is_there_by_errno(udp: MakeSocket) -> None:
    nobody = ends.deafen(udp())
    options = ("--metrics", "127.0.0.1:0", "--interval", "0.01")
    with open_relay(at(nobody), *options) as relay, relay.client() as client:
        client.send(b"is anybody there?")
        key = ("asynchronous_errors_total", "to_targets", "ECONNREFUSED")
        while key not in (page := page_of(relay.metrics)):
            pass
        assert page[key] == 1
        assert (
            'asynchronous_errors_total{direction="to_targets",errno="ECONNREFUSED"} 1'
            in (get(relay.metrics, "/metrics")[1])
        )
        first = relay.news()
        client.send(b"is really nobody there?")
        while page_of(relay.metrics)[key] < 2:
            pass
        code, out, err = relay.end()
    assert first.endswith(" to targets: 1 asynchronous errors, ECONNREFUSED\n")
    assert (code, err) == (0, ""), "no datagram is lost by it, and it is said once"
    assert "to targets: 2 asynchronous errors, ECONNREFUSED" in out.splitlines()


async def test_it_is_ready_while_all_workers_relay() -> None:
    ready = [False, True, False]
    with served(nothing(), lambda: ready[0]) as where:
        for code in (503, 200, 503):
            assert await trio.to_thread.run_sync(status_of, where, "/ready") == code
            assert await trio.to_thread.run_sync(status_of, where, "/live") == 200
            del ready[0]
            ready.append(False)


async def test_who_asks_for_the_head_gets_no_body() -> None:
    def head(where: tuple[str, int], path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*where, timeout=ends.PATIENCE)
        with contextlib.closing(connection):
            connection.request("HEAD", path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    with served(nothing(), lambda: False) as where:
        for path, status in (("/metrics", 200), ("/ready", 503), ("/nonsense", 404)):
            assert await trio.to_thread.run_sync(head, where, path) == (status, b"")


async def test_slow_clients_are_given_up_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_metrics._Request, "timeout", 0.01)
    with served(nothing()) as where, contextlib.ExitStack() as stack:
        for _ in range(2 * _metrics.MOST_THREADS):
            slow = stack.enter_context(socket.create_connection(where, ends.PATIENCE))
            slow.sendall(b"GET /met")
            with contextlib.suppress(ConnectionResetError):
                assert slow.recv(100) == b""
        assert await trio.to_thread.run_sync(status_of, where, "/live") == 200
