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

from ._relay_totals import DIRECTIONS

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from prometheus_client import Metric

    from ._arguments import HostPort
    from ._relay_totals import RelayTotals

FLOWS = ("datagrams_in", "datagrams_out", "bytes_in", "bytes_out", "receive_calls", "send_calls")
MORE_FLOWS = ("trains_out", "buffers_dropped_by_kernel")
SESSIONS = ("sessions_created", "sessions_expired", "sessions_evicted", "sessions_shed")
GAUGES = ("datagrams_per_syscall", "workers", "sessions_active")
MOST_THREADS = 20  # of the whole process: each request has one


def family(name: str, numbers: dict[tuple[str, ...], float], *labels: str) -> Metric:
    """A metric with its numbers, by what its labels say."""
    kind = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
    made = kind(f"snaptun_trio_{name}", name.replace("_", " "), labels=labels)
    for values, number in numbers.items():
        made.add_metric(values, number)
    return made


class RelayCollector(Collector):
    """The totals, as metrics."""

    def __init__(self, totals: RelayTotals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        """All of them, of one moment."""
        totals, sums = self._totals, self._totals.sums
        for name in (*FLOWS, *MORE_FLOWS):
            yield family(name, {(way,): sums[f"{way}.{name}"] for way in DIRECTIONS}, "direction")
        dropped = [name for name in sums if ".dropped." in name]
        by_reason = {tuple(name.split(".dropped.")): float(sums[name]) for name in dropped}
        yield family("dropped", by_reason, "direction", "reason")
        each: dict[tuple[str, ...], float] = {}
        for way in DIRECTIONS:
            calls = sums[f"{way}.receive_calls"] + sums[f"{way}.send_calls"]
            datagrams = sums[f"{way}.datagrams_in"] + sums[f"{way}.datagrams_out"]
            each[way,] = datagrams / max(calls, 1)
        yield family("datagrams_per_syscall", each, "direction")
        plain = {name: sums[name] for name in (*SESSIONS, "cpu_seconds")}
        plain |= {"workers": len(totals.reports), "worker_restarts": totals.restarts}
        for name, number in {**plain, "sessions_active": sums["sessions"]}.items():
            yield family(name, {(): number})


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
            raise OSError(error.errno, f"{error.strerror}: --metrics {host}:{where[1]}") from None

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
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object, **__: object) -> None:
        pass


@contextmanager
def open_metrics(where: HostPort, totals: RelayTotals) -> Generator[str, None, None]:
    """Serve them until the block ends; gives the address."""
    with _Server(where, totals) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        host, port = server.socket.getsockname()[:2]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
        server.shutdown()
