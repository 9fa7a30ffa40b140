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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ._relay_totals import DIRECTIONS

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from prometheus_client import Metric

    from ._arguments import HostPort
    from ._relay_totals import RelayTotals

PREFIX = "snaptun_trio_"
FLOWS = {
    "datagrams_in": "Datagrams received.",
    "datagrams_out": "Datagrams that the kernel took.",
    "bytes_in": "Payload bytes received.",
    "bytes_out": "Payload bytes that the kernel took.",
    "receive_calls": "System calls that brought something.",
    "send_calls": "System calls that sent something.",
    "trains_out": "Messages that the kernel took; with GSO one has many datagrams.",
    "buffers_dropped_by_kernel": "Buffers, not datagrams, that a full receive queue dropped.",
}
SESSIONS = {
    "sessions_created": "Sessions begun.",
    "sessions_expired": "Sessions that ended because they were silent.",
    "sessions_evicted": "Sessions that made room for new ones.",
    "sessions_shed": "Times that a new client was turned away.",
    "cpu_seconds": "CPU time of all workers.",
}
MOST_THREADS = 20  # of the whole process: each request has one


class RelayCollector(Collector):
    """The totals, as metrics."""

    def __init__(self, totals: RelayTotals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        """All of them, of one moment."""
        totals, sums = self._totals, self._totals.sums
        labels = ("direction",)
        for name, text in FLOWS.items():
            counter = CounterMetricFamily(PREFIX + name, text, labels=labels)
            for way in DIRECTIONS:
                counter.add_metric([way], sums[way][name])
            yield counter
        text = "Datagrams received and not sent."
        dropped = CounterMetricFamily(PREFIX + "dropped", text, labels=(*labels, "reason"))
        text = "Datagrams received or sent by a system call, since the beginning."
        each = GaugeMetricFamily(PREFIX + "datagrams_per_syscall", text, labels=labels)
        for way in DIRECTIONS:
            flow = sums[way]
            for reason, count in flow["dropped"].items():
                dropped.add_metric([way, reason], count)
            calls = max(flow["receive_calls"] + flow["send_calls"], 1)
            each.add_metric([way], (flow["datagrams_in"] + flow["datagrams_out"]) / calls)
        yield from (dropped, each)
        for name, text in SESSIONS.items():
            yield CounterMetricFamily(PREFIX + name, text, sums[name])
        text = "Workers that were replaced."
        yield CounterMetricFamily(PREFIX + "worker_restarts", text, totals.restarts)
        yield GaugeMetricFamily(PREFIX + "workers", "Workers that relay.", totals.running)
        yield GaugeMetricFamily(PREFIX + "sessions_active", "Sessions now.", sums["sessions"])


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
            text = f"{error.strerror}: --metrics {host}, port {where[1]}"
            raise OSError(error.errno, text) from None

    def verify_request(self, request: object, client_address: object) -> bool:
        return threading.active_count() < MOST_THREADS

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # who asked has gone


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0  # for each read and write

    def do_GET(self) -> None:
        code, text = 200, b"ok\n"
        if self.path == "/metrics":
            text = generate_latest(self.server.registry)
        elif self.path == "/ready" and not self.server.totals.ready:
            code, text = 503, b"not ready\n"
        elif self.path not in ("/live", "/ready"):
            code, text = 404, b"here are /metrics, /live and /ready\n"
        self.send_response(code)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object, **__: object) -> None:
        pass


@contextmanager
def open_metrics(where: HostPort | None, totals: RelayTotals) -> Generator[str, None, None]:
    """Serve them until the block ends; gives what to say of it."""
    if where is None:
        yield ""
        return
    with _Server(where, totals) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        host, port = server.socket.getsockname()[:2]
        yield f", metrics on http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
        server.shutdown()
