# Several processes on one port, as docs/workers.rst and its example have it: peers stay with their
# worker, and what becomes of them when one comes or goes; and a socket that is handed down.

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from . import ends

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKER = Path(__file__).parent.parent / "docs" / "examples" / "worker.py"
PEERS = 64  # that all of them hash to one of two workers happens once in 2**63 times

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="how flows are spread is Linux's")


@contextlib.contextmanager
def worker(port: int) -> Iterator[subprocess.Popen[str]]:
    """A worker that listens."""
    command = [sys.executable, "-P", str(WORKER), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"listening on {port}\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def port() -> Iterator[int]:
    """A port of nobody else's. What keeps it are no workers: each hears one peer only."""
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as keeper,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        for sock in (keeper, other):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        keeper.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        keeper.bind(("::", 0))
        port = keeper.getsockname()[1]
        # Before the first one is connected: from then on it keeps the port on ::1 only.
        other.bind(("0.0.0.0", port))
        other.connect(("127.0.0.1", 9))
        keeper.connect(("::1", 9))
        yield port


@pytest.fixture
def peers(port: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(ends.bound_socket()) for _ in range(PEERS)]
        for peer in made:
            peer.connect(("127.0.0.1", port))
        yield made


def who_answers(peers: list[socket.socket]) -> list[int]:
    """The process that answers each peer."""
    found = []
    for number, peer in enumerate(peers):
        peer.send(b"question %d" % number)
        (reply,) = ends.read_plainly(peer, 1)
        pid, _, packet = reply.partition(b": ")
        assert packet == b"question %d" % number
        found.append(int(pid))
    return found


@pytest.mark.core
def test_workers_share_a_port_and_peers_stay_with_theirs(
    port: int, peers: list[socket.socket]
) -> None:
    with worker(port) as one:
        assert set(who_answers(peers)) == {one.pid}
        with worker(port) as two:
            before = who_answers(peers)
            assert set(before) == {one.pid, two.pid}, "a worker that comes takes over some peers"
            assert who_answers(peers) == before, "and then each keeps its own"
            two.send_signal(signal.SIGTERM)
            assert two.wait(ends.PATIENCE) == 0
            after = who_answers(peers)
            assert set(after) == {one.pid}, "the peers of one that went are answered by the others"
        with worker(port) as third:
            os.kill(one.pid, signal.SIGKILL)
            one.wait(ends.PATIENCE)
            assert set(who_answers(peers)) == {third.pid}


def test_what_waits_at_a_worker_that_goes_is_lost(port: int, peers: list[socket.socket]) -> None:
    """As docs/workers.rst says: the kernel hands it to nobody else, and counts it nowhere."""
    with worker(port) as one, worker(port) as two:
        found = who_answers(peers)
        of_two = peers[found.index(two.pid)]
        os.kill(two.pid, signal.SIGSTOP)
        of_two.send(b"waits")
        os.kill(two.pid, signal.SIGKILL)
        two.wait(ends.PATIENCE)
        of_two.send(b"comes later")
        assert ends.read_plainly(of_two, 1) == [b"%d: comes later" % one.pid]


def test_a_port_is_not_shared_with_one_that_does_not_ask_for_it(port: int) -> None:
    with worker(port), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(OSError, match="in use"):
            sock.bind(("127.0.0.1", port))


@pytest.mark.core
def test_a_process_serves_on_a_socket_that_it_inherited(backend: str) -> None:
    """As systemd does it: bound by somebody else, number 3, LISTEN_FDS=1."""
    program = """if True:
        import os, trio, snaptun_trio
        async def main():
            assert os.environ["LISTEN_FDS"] == "1"
            sock = await snaptun_trio.open_udp_socket(3)
            with sock, snaptun_trio.UdpBatchReceiver(sock) as receiver:
                for packet, address in await receiver.receive():
                    await sock.sendto(packet.upper(), address)
        trio.run(main)
    """
    with ends.bound_socket() as sock, ends.bound_socket() as client:
        client.sendto(b"before it runs", sock.getsockname())
        command = 'exec 3<&0 0</dev/null; exec "$0" -P -c "$1"'
        done = subprocess.run(
            ["sh", "-c", command, sys.executable, program],
            stdin=sock.fileno(),
            env={**os.environ, "LISTEN_FDS": "1"},
            timeout=ends.PATIENCE,
            check=False,
        )
        assert done.returncode == 0
        assert ends.read_plainly(client, 1) == [b"BEFORE IT RUNS"]
