# What Prometheus is told of a relay, over HTTP in threads of its own: /metrics, /live and /ready.

import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

import attrs
import trio
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from .. import RelayStatistics, __version__, backend
from ._relay_view import DIRECTIONS
from ._terminal import HostPort, written

GAUGES = ("build_info", "workers", "sessions", "datagrams_waiting", "datagrams_per_syscall")
# There before anything was dropped, so that the first drop is an increase.
REASONS = ("table full", "too many at once", "no socket", "socket full", "stopping", "closed")
MOST_THREADS = 20  # of the whole process: each request has one

Ask = Callable[[], RelayStatistics]


class RelayCollector(Collector):
    """The statistics, as metrics by their names, labelled with a direction or a target."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}

    def collect(self) -> Iterable[Metric]:
        """All of them, of one moment."""
        now, self._families = self._ask(), {}
        self._add("build_info", 1, version=__version__, backend=backend)
        self._add_all("", now)
        for way in DIRECTIONS:
            flow = getattr(now, way)
            for reason in (one for one in REASONS if one not in flow.dropped):
                self._add("dropped", 0, direction=way, reason=reason)
            self._add_all("", flow, direction=way)
            calls = flow.receive_calls + flow.send_calls
            each = (flow.datagrams_in + flow.datagrams_out) / max(calls, 1)
            self._add("datagrams_per_syscall", each, direction=way)
        for target in now.targets:
            self._add_all("target_", target, target=written(*target.address))
        return self._families.values()

    def _add_all(self, before: str, counts: attrs.AttrsInstance, **labels: str) -> None:
        for name, value in attrs.asdict(counts, recurse=False).items():
            if isinstance(value, int | float):
                self._add(before + name, value, **labels)
            elif isinstance(value, Mapping):
                what = "errno" if name == "asynchronous_errors" else "reason"
                for reason, count in value.items():
                    self._add(before + name, count, **labels, **{what: reason})

    def _add(self, name: str, number: float, **labels: str) -> None:
        if name not in self._families:
            kind = GaugeMetricFamily if name.endswith(GAUGES) else CounterMetricFamily
            text = name + "_active" * name.endswith("sessions")
            self._families[name] = kind(f"snaptun_trio_{text}", text, labels=[*labels])
        self._families[name].add_metric([*labels.values()], number)


class _Server(ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

    def __init__(self, where: HostPort, ask: Ask, ready: Callable[[], bool]) -> None:
        self.ready, self.registry = ready, CollectorRegistry()
        self.registry.register(RelayCollector(ask))
        host = where[0] or ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")
        try:
            found = socket.getaddrinfo(host, where[1], type=socket.SOCK_STREAM)
            self.address_family, *_, address = found[0]
            super().__init__((str(address[0]), where[1]), _Request)
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"--metrics {written(*where)}") from None

    def verify_request(self, request: object, client_address: object) -> bool:
        return threading.active_count() < MOST_THREADS

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # who asked has gone, or the relay has


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0  # for each read and write

    def do_GET(self) -> None:
        server, code, page = self.server, 404, b""
        if self.path == "/metrics":
            code, page = 200, generate_latest(server.registry)
        elif self.path in ("/live", "/ready"):
            code = 200 if self.path == "/live" or server.ready() else 503
        self.send_response(code)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page or b"%d\n" % code)

    do_HEAD = do_GET

    def log_message(self, *_: object, **__: object) -> None:
        pass


@contextmanager
def open_metrics(where: HostPort | None, ask: Ask, ready: Callable[[], bool]) -> Iterator[str]:
    """Serve them until the block ends, if there is an address; gives what to say of it. Both
    functions are called in this trio program."""
    if where is None:
        yield ""
        return
    here = partial(trio.from_thread.run_sync, trio_token=trio.lowlevel.current_trio_token())
    with _Server(where, partial(here, ask), partial(here, ready)) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f", metrics on http://{written(*server.socket.getsockname())}/metrics"
        server.shutdown()
