# docs/examples/tunnel.py between two hosts: ping, iperf3, a path that loses, forgers, new keys
# under traffic, a peer that restarts, a link that goes away.

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests import ends

from . import netns, tunnels

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

pytestmark = [
    pytest.mark.own_network,
    pytest.mark.slow,
    tunnels.needs("ip", "ping"),
]
NEAR, FAR = "10.0.0.1", "10.0.0.2"  # outside the tunnel


@contextlib.contextmanager
def tunnel(key: Path, *options: str) -> Iterator[tuple[tunnels.Host, tunnels.Host]]:
    """Both programs run, and the tunnel carries."""
    with tunnels.two_hosts(key) as (near, far):
        near.start(key, FAR, tunnels.PORT, *options)
        far.start(key, NEAR, tunnels.PORT, *options)
        tunnels.wait_for(far.ip)
        yield near, far


def iperf3(server: tunnels.Host, *options: str, v6: bool = False) -> dict[str, Any]:
    """Run a server there and a client here, and return what the client says at its end."""
    command = ["iperf3", "--server", "--one-off", "--forceflush"]
    with server.place:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            while "listening" not in process.stdout.readline():
                assert process.poll() is None, "iperf3 ended"
            to = server.ip6 if v6 else server.ip
            command = ["iperf3", "--client", to, "--json", "--time", "1", *options]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
        finally:
            process.kill()
    report: dict[str, Any] = json.loads(done)
    assert "error" not in report, report["error"]
    end: dict[str, Any] = report["end"]
    return end


@tunnels.needs("iperf3")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_ping_and_iperf3_go_through(tmp_path: Path, end: signal.Signals) -> None:
    with tunnel(tmp_path / "key") as (near, far):
        for ip in (far.ip, far.ip6):
            tunnels.wait_for(ip)
            assert tunnels.ping(ip, 20)
        for v6 in (False, True):
            for options in ([], ["--reverse"]):
                assert iperf3(far, *options, v6=v6)["sum_received"]["bytes"] > 0
        rate = iperf3(far, "--udp", "--bitrate", "2M")["sum"]
        assert rate["packets"] > rate["lost_packets"]
        reports = near.end(end), far.end(end)
    for told in reports:
        assert told["keys"] == {"sessions": told["keys"]["sessions"]}  # nothing forged or replayed
        assert set(told["dropped"]) <= {"no session"}
        # Super-packets were cut and left as trains.
        assert told["sent"]["datagrams_sent"] > 2 * told["sent"]["trains_sent"]


@tunnels.needs("iperf3")
def test_neighbours_are_joined_before_they_are_written(tmp_path: Path) -> None:
    with tunnel(tmp_path / "key") as (_, far):
        before = far.frames_written()
        iperf3(far)
        frames = far.frames_written() - before
        received = far.end()["received"]["datagrams_received"]
    assert 2 * frames < received


@pytest.mark.needs_gso
def test_trains_of_udp_arrive_whole(tmp_path: Path) -> None:
    count, size = 20, 1000
    as_segments = (socket.IPPROTO_UDP, ends.UDP_SEGMENT, size.to_bytes(2, sys.byteorder))
    wanted = [bytes([n]) * (size if n < count - 1 else 7) for n in range(count)]
    with tunnel(tmp_path / "key") as (near, far):
        for v6 in (False, True):
            tunnels.wait_for(far.ip6 if v6 else far.ip)
            with tunnels.udp_socket(near, v6=v6) as one, tunnels.udp_socket(far, v6=v6) as other:
                for _ in range(10):
                    one.sendmsg([b"".join(wanted)], [as_segments], 0, other.getsockname())
                    assert [other.recv(2048) for _ in wanted] == wanted


def send_and_hear(source: tunnels.Host, sink: tunnels.Host, data: bytes) -> bytes:
    """Send through one TCP connection, and return what came out."""
    with sink.place:
        listener = socket.create_server((sink.ip, 0))
    heard = bytearray()

    def hear() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(ends.PATIENCE)
            while piece := connection.recv(1 << 16):
                heard.extend(piece)

    with listener:
        listener.settimeout(ends.PATIENCE)
        thread = threading.Thread(target=hear)
        thread.start()
        with source.place:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with sock:
            sock.settimeout(ends.PATIENCE)
            sock.connect(listener.getsockname())
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            thread.join(ends.PATIENCE)
    return bytes(heard)


@tunnels.needs("nft", "ethtool")
@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
def test_tcp_gets_through_a_path_that_loses(tmp_path: Path, seed: int, back: bool) -> None:
    data = random.Random(seed).randbytes(1_000_000)
    with tunnel(tmp_path / "key") as (near, far):
        source, sink = (far, near) if back else (near, far)
        for host, device in ((near, "va"), (far, "vb")):
            with host.place:
                # Trains go over the cable as one: only single datagrams are lost one by one.
                netns.attempt(f"ethtool -K {device} tx-udp-segmentation off")
                rule = f"udp dport {tunnels.PORT} numgen random mod 100 < 3 counter drop"
                netns.nft("filter hook input", rule)
        lost = 0
        while lost < 20:
            heard = send_and_hear(source, sink, data)
            assert hashlib.sha256(heard).digest() == hashlib.sha256(data).digest()
            with sink.place:
                (counted,) = re.findall(r"counter packets (\d+)", netns.run("nft list ruleset"))
            lost = int(counted)


class Middle:
    """Somebody on the path, who carries everything and may do more."""

    def __init__(self, near: tunnels.Host, far: tunnels.Host) -> None:
        self.sockets = [
            tunnels.udp_socket(near, ip="127.0.0.1"),
            tunnels.udp_socket(far, ip="127.0.0.1"),
        ]
        self.ports = [sock.getsockname()[1] for sock in self.sockets]
        self.carried: list[bytes] = []
        """What went from the near host to the far one."""
        self._stop, self._stopping = socket.socketpair()
        self._thread = threading.Thread(target=self._carry)

    def _carry(self) -> None:
        one, other = self.sockets
        while True:
            ready, _, _ = select.select([one, other, self._stopping], [], [])
            if self._stopping in ready:
                return
            for sock in ready:
                with contextlib.suppress(ConnectionRefusedError):
                    message = sock.recv(65_536)
                    if sock is one:
                        self.carried.append(message)
                    self.say(message, there=sock is one)

    def say(self, message: bytes, *, there: bool = True) -> None:
        sock = self.sockets[1 if there else 0]
        sock.sendto(message, ("127.0.0.1", tunnels.PORT))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.close()
        self._thread.join()
        for sock in (*self.sockets, self._stopping):
            sock.close()


def test_replayed_and_forged_datagrams_are_dropped_and_counted(tmp_path: Path) -> None:
    key = tmp_path / "key"
    with tunnels.two_hosts(key) as (near, far), Middle(near, far) as middle:
        near.start(key, "127.0.0.1", middle.ports[0])
        far.start(key, "127.0.0.1", middle.ports[1])
        tunnels.wait_for(far.ip)
        assert tunnels.ping(far.ip, 50)
        before = far.report()["keys"]
        frames = far.frames_written()
        replayed = [message for message in middle.carried if message[0] == 3][-40:]
        assert len(replayed) == 40
        forged = [message[:-1] + bytes([message[-1] ^ 1]) for message in replayed]
        forged = [m[:8] + (1 << 40 | n).to_bytes(8, "big") + m[16:] for n, m in enumerate(forged)]
        unknown = [b"", b"\3", b"\3" + bytes(100), b"\7" * 64]
        hellos = [b"\1" * 56, b"\2" * 60, b"\1"]
        for message in [*replayed, *forged, *unknown, *hellos]:
            middle.say(message)
        expected = {
            "replayed": before.get("replayed", 0) + len(replayed),
            "forged": before.get("forged", 0) + len(forged) + len(hellos),
            "unknown": before.get("unknown", 0) + len(unknown),
        }
        counted: dict[str, int] = {}
        deadline = time.monotonic() + ends.PATIENCE
        while counted != expected and time.monotonic() < deadline:
            counted = {name: far.report()["keys"].get(name, 0) for name in expected}
        assert counted == expected
        assert far.frames_written() - frames < len(replayed)  # what hosts say by themselves aside
        assert tunnels.ping(far.ip, 5)
        near.end()
        far.end()


def test_new_keys_come_under_traffic_and_nothing_is_lost(tmp_path: Path) -> None:
    in_flight, length = 32, 1000
    with tunnel(tmp_path / "key", "--rekey-seconds", "1") as (near, far):
        before = near.report()["keys"]["sessions"]
        sent = 0
        with tunnels.udp_socket(near) as one, tunnels.udp_socket(far) as other:
            address = other.getsockname()
            while near.report()["keys"]["sessions"] < before + 3:
                for _ in range(20):
                    wanted = {n.to_bytes(4, "big") * (length // 4) for n in range(sent, sent + 32)}
                    sent += in_flight
                    for packet in wanted:
                        one.sendto(packet, address)
                    for _ in range(in_flight):
                        other.sendto(*other.recvfrom(2048))
                    # A lost one would be waited for in vain.
                    assert {one.recv(2048) for _ in range(in_flight)} == wanted
        reports = near.end(), far.end()
    for told in reports:
        assert set(told["keys"]) == {"sessions"}
        assert told["keys"]["sessions"] >= 3
        assert set(told["dropped"]) <= {"no session"}  # before the first


@pytest.mark.parametrize("which", [0, 1], ids=["near", "far"])
def test_peer_that_restarts_is_heard_again(tmp_path: Path, which: int) -> None:
    key = tmp_path / "key"
    with tunnel(key) as hosts:
        peers = [FAR, NEAR]
        for way in (signal.SIGKILL, signal.SIGTERM):
            restarted = hosts[which]
            if way is signal.SIGKILL:
                restarted.kill()
            else:
                restarted.end(way)
            assert not tunnels.ping_once(hosts[1].ip)  # the port is closed: ECONNREFUSED
            restarted.start(key, peers[which])
            tunnels.wait_for(hosts[1].ip)
        assert tunnels.ping(hosts[1].ip, 10)
        told = hosts[1 - which].end()
        assert told["keys"]["sessions"] >= 3


def test_path_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    with tunnel(tmp_path / "key") as (near, far):
        netns.run("ip link set va down")
        for _ in range(3):
            assert not tunnels.ping_once(far.ip)
        netns.run("ip link set va up")
        netns.run("ip neighbour replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev va")
        tunnels.wait_for(far.ip)
        netns.run("ip link set tun0 down")
        with far.place:
            assert not tunnels.ping_once(near.ip)
        netns.run("ip link set tun0 up")
        tunnels.wait_for(far.ip)
        told = near.end()
    assert "Network is unreachable" in told["dropped"]
    assert any(reason.startswith("tun: ") for reason in told["dropped"])


def test_wrong_key_is_heard_by_nobody(tmp_path: Path) -> None:
    key, other = tmp_path / "key", tmp_path / "other"
    with tunnels.two_hosts(key) as (near, far):
        other.write_text(bytes(32).hex(), encoding="ascii")
        near.start(key, FAR)
        far.start(other, NEAR)
        while near.report()["keys"].get("forged", 0) < 2:
            assert not tunnels.ping_once(far.ip)
        told = near.end()
    assert "sessions" not in told["keys"]
    assert told["dropped"]["no session"] > 0
