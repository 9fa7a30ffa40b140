# What Prometheus is told of a relay, over HTTP in threads of its own: /metrics, /live and /ready.
# It reads the totals, and must not know what else there is.

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ._arguments import written
from ._relay_totals import DIRECTIONS

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from prometheus_client import Metric

    from ._arguments import HostPort
    from ._relay_totals import RelayTotals

GAUGES = ("workers", "sessions_active", "datagrams_waiting", "datagrams_per_syscall")
MOST_THREADS = 20  # of the whole process: each request has one


class RelayCollector(Collector):
    """The totals, as metrics: "to_clients.dropped.EPERM" is ``dropped`` with two labels."""

    def __init__(self, totals: RelayTotals) -> None:
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        """All of them, of one moment."""
        totals, sums = self._totals, self._totals.sums
        numbers: dict[str, float] = {**sums, "workers": len(totals.reports)}
        numbers["worker_restarts"] = totals.restarts
        numbers["sessions_active"] = numbers.pop("sessions", 0)
        for way in DIRECTIONS:
            calls = sums[f"{way}.receive_calls"] + sums[f"{way}.send_calls"]
            datagrams = sums[f"{way}.datagrams_in"] + sums[f"{way}.datagrams_out"]
            numbers[f"{way}.datagrams_per_syscall"] = datagrams / max(calls, 1)
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for key, number in numbers.items():
            labels = key.split(".")
            name = labels.pop(len(labels) > 1)
            kind = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
            what = "errno" if name == "asynchronous_errors" else "reason"
            names = ("direction", what)[: len(labels)]
            family = kind(f"snaptun_trio_{name}", name.replace("_", " "), labels=names)
            families.setdefault(name, family).add_metric(labels, number)
        return families.values()


class _Server(ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

    def __init__(self, where: HostPort, totals: RelayTotals) -> None:
        self.totals, self.registry = totals, CollectorRegistry()
        self.registry.register(RelayCollector(totals))
        host = where[0] or ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")
        try:
            found = socket.getaddrinfo(host, where[1], type=socket.SOCK_STREAM)
            self.address_family, *_, address = found[0]
            super().__init__((str(address[0]), where[1]), _Request)
        except OSError as error:
            raise OSError(
                error.errno, f"{error.strerror}: --metrics {written((host, where[1]))}"
            ) from None

    def verify_request(self, request: object, client_address: object) -> bool:
        return threading.active_count() < MOST_THREADS

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # who asked has gone


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0  # for each read and write

    def do_GET(self) -> None:
        ready = self.server.totals.ready
        code = {"/metrics": 200, "/live": 200, "/ready": 200 if ready else 503}.get(self.path, 404)
        self.send_response(code)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.end_headers()
        page = generate_latest(self.server.registry) if self.path == "/metrics" else b"%d\n" % code
        self.wfile.write(page)

    def log_message(self, *_: object, **__: object) -> None:
        pass


@contextmanager
def open_metrics(where: HostPort | None, totals: RelayTotals) -> Generator[str, None, None]:
    """Serve them until the block ends, if there is an address; gives what to say of it."""
    if where is None:
        yield ""
        return
    with _Server(where, totals) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f", metrics on http://{written(server.socket.getsockname())}/metrics"
        server.shutdown()
