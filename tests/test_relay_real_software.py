# `snaptun-trio relay` between programs that nobody here wrote: dnsperf before a DNS server, and
# iperf3's UDP test. Their own reports say what was lost.

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from . import ends
from .real_software import SERVER, dnsmasq, dnsperf, free_port, needs, started
from .relaying import flat

if TYPE_CHECKING:
    from collections.abc import Iterator

QUERIES, CLIENTS = 20_000, 50
RELAY = "127.0.0.2"
LIMITS = Path("/proc/sys/net/core")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's"),
]


class Relay:
    """The command, and what it says at its end."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self.port = port

    def end(self) -> dict[str, Any]:
        self._process.send_signal(signal.SIGTERM)
        out, _ = self._process.communicate(timeout=ends.PATIENCE)
        assert self._process.returncode == 0
        last = flat(json.loads(out.splitlines()[-1]))
        assert last["final"]
        return last


@contextlib.contextmanager
def relay(port: int, target: int) -> Iterator[Relay]:
    command = [sys.executable, "-P", "-m", "snaptun_trio", "relay", "--json", "--interval", "60"]
    command += [f"{RELAY}:{port}", f"{SERVER}:{target}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())["head"]
            bound = re.search(r":(\d+) to", told)
            assert bound is not None
            yield Relay(process, int(bound[1]))
        finally:
            process.kill()


def nothing_lost_in(told: dict[str, Any]) -> None:
    for direction in ("to_targets", "to_clients"):
        assert told[f"{direction}.datagrams_in"] == told[f"{direction}.datagrams_out"] > 0
        assert told[f"{direction}.buffers_dropped_by_kernel"] == 0
    assert not any(count for name, count in told.items() if ".dropped." in name)


@needs("dnsperf", "dnsmasq")
def test_dnsperf_loses_nothing_to_a_dns_server_behind_a_relay(tmp_path: Path) -> None:
    with dnsmasq() as port, relay(0, port) as running:
        dnsperf(RELAY, running.port, tmp_path, queries=QUERIES, clients=CLIENTS)
        told = running.end()
    nothing_lost_in(told)
    assert told["to_clients.datagrams_out"] == QUERIES
    assert told["sessions_created"] == CLIENTS


@contextlib.contextmanager
def tcp_beside(port: int) -> Iterator[None]:
    """Pass iperf3's control connection on, which is TCP, from the relay's address to the server."""

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65_536):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                inside, _ = listener.accept()
                outside = stack.enter_context(socket.create_connection((SERVER, port)))
                stack.enter_context(inside)
                for pair in ((inside, outside), (outside, inside)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    with contextlib.ExitStack() as stack, socket.create_server((RELAY, port)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@needs("iperf3")
@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
def test_iperf3_loses_nothing_through_a_relay(back: bool) -> None:
    # As much as the sockets' buffers hold even if nobody reads for the whole second.
    most = [int((LIMITS / f"{way}mem_max").read_text(encoding="ascii")) for way in "rw"]
    window = min(4 << 20, *most)
    packets = min(400, window // 2304)  # what a datagram of 1200 bytes is charged with
    port = free_port(SERVER, socket.SOCK_STREAM, socket.SOCK_DGRAM)
    server = ["iperf3", "--server", "--bind", SERVER, "--port", str(port)]
    with started(server, SERVER, port), tcp_beside(port), relay(port, port) as running:
        command = ["iperf3", "--udp", "--json", "--client", RELAY, "--port", str(port)]
        command += ["--length", "1200", "--bitrate", f"{packets * 1200 * 8}", "--time", "1"]
        command += ["--window", str(window), *(["--reverse"] if back else [])]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        told = running.end()
    summary = json.loads(report)["end"]["sum"]
    assert summary["lost_packets"] == 0
    direction = "to_clients" if back else "to_targets"
    assert told[f"{direction}.datagrams_out"] >= summary["packets"] > 0
    nothing_lost_in(told)
