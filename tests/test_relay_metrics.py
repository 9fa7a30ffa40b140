# What `snaptun-trio relay --metrics` tells Prometheus.

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from snaptun_trio._cli import _metrics
from snaptun_trio._cli._relay_totals import RelayTotals

from . import ends
from .relaying import ask, at, get, open_relay, status_of, where_of

if TYPE_CHECKING:
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
        assert page["cpu_seconds_total",] > 0
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


def test_drops_have_their_reason() -> None:
    totals = RelayTotals(1)
    totals.take(1, {"to_targets.dropped.socket full": 3, "to_clients.dropped.EMSGSIZE": 1})
    with _metrics.open_metrics(("127.0.0.1", 0), totals) as told:
        page = page_of(where_of(told))
    assert page["dropped_total", "to_targets", "socket full"] == 3
    assert page["dropped_total", "to_clients", "EMSGSIZE"] == 1


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
        code, out, err = relay.end()
    assert (code, err) == (0, ""), "no datagram is lost by it"
    assert "to targets: 1 asynchronous errors, ECONNREFUSED" in out.splitlines()


def test_it_is_ready_while_all_workers_relay() -> None:
    totals = RelayTotals(1)
    with _metrics.open_metrics((None, 0), totals) as told:
        where = where_of(told)
        assert (status_of(where, "/ready"), status_of(where, "/live")) == (503, 200)
        totals.take(1, {})
        assert status_of(where, "/ready") == 200
        totals.stopping = True
        assert (status_of(where, "/ready"), status_of(where, "/live")) == (503, 200)


def test_slow_clients_are_given_up_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_metrics._Request, "timeout", 0.01)
    with (
        _metrics.open_metrics(("127.0.0.1", 0), RelayTotals(1)) as told,
        contextlib.ExitStack() as stack,
    ):
        where = where_of(told)
        for _ in range(2 * _metrics.MOST_THREADS):
            slow = stack.enter_context(socket.create_connection(where, ends.PATIENCE))
            slow.sendall(b"GET /met")
            with contextlib.suppress(ConnectionResetError):
                assert slow.recv(100) == b""
        assert status_of(where, "/live") == 200
