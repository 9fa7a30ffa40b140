# Two hosts with docs/examples/tunnel.py between them, for the tests that run it: two namespaces, a
# tun device in each, the program in each. What it says is read from its report.

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from tests import ends
from tests.examples import EXAMPLES

from . import netns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

PORT = 5000  # of both ends: nobody else is in these namespaces
MTU = 1420
KEY = bytes(range(32))


@attrs.define
class Host:
    """One end: where it is, its addresses inside the tunnel, and its program while it runs."""

    place: AbstractContextManager[object]
    ip: str
    ip6: str
    process: subprocess.Popen[str] | None = None

    def make_tun(self) -> None:
        with self.place:
            netns.run("ip tuntap add dev tun0 mode tun vnet_hdr")
            netns.run(f"ip link set dev tun0 mtu {MTU} up")
            netns.run(f"ip address add {self.ip}/24 dev tun0")
            netns.run(f"ip address add {self.ip6}/64 dev tun0 nodad")

    def start(self, key: Path, peer: str, peer_port: int = PORT, *options: str) -> None:
        command = [sys.executable, str(EXAMPLES / "tunnel.py"), "--key", str(key), *options]
        command += ["tun0", str(PORT), peer, str(peer_port)]
        pipe = subprocess.PIPE
        with self.place:
            self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
        assert self.line() == f"tun0 on port {PORT}\n"

    def line(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(f"the tunnel ended: {self.process.communicate()[1]}")
        return line

    def report(self) -> dict[str, Any]:
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)
        told: dict[str, Any] = json.loads(self.line())
        return told

    def end(self, number: signal.Signals = signal.SIGTERM) -> dict[str, Any]:
        """An end in order, and the last report."""
        assert self.process is not None
        self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=ends.PATIENCE)
        assert (self.process.returncode, errors) == (0, "")
        self.process = None
        told: dict[str, Any] = json.loads(out)
        return told

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def frames_written(self) -> int:
        """How often the program wrote to the device."""
        with self.place:
            (link,) = json.loads(netns.run("ip -s -j link show tun0"))
        return int(link["stats64"]["rx"]["packets"])


def needs(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@contextlib.contextmanager
def two_hosts(key: Path) -> Iterator[tuple[Host, Host]]:
    """Hosts that reach each other as 10.0.0.1 and 10.0.0.2; no program runs yet."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"/dev/net/tun cannot be opened: {error.strerror}")
    key.write_text(KEY.hex(), encoding="ascii")
    far = netns.Namespace()
    netns.veth(far)
    near_host = Host(nullcontext(), "10.9.0.1", "fd00::1")
    far_host = Host(far, "10.9.0.2", "fd00::2")
    try:
        for host in (near_host, far_host):
            host.make_tun()
        yield near_host, far_host
    finally:
        near_host.kill()
        far_host.kill()


def ping(host: str, count: int = 1) -> bool:
    """From the near host, so often; whether each was answered.

    One by one: of several, the last would only be waited for as long as the others took.
    """
    command = ["ping", "-n", "-c", "1", "-W", "20", host]
    return all(
        subprocess.run(command, capture_output=True, check=False).returncode == 0
        for _ in range(count)
    )


def wait_for(host: str) -> None:
    """Until the tunnel carries."""
    for _ in range(int(ends.PATIENCE) * 2):
        command = ["ping", "-n", "-c", "1", "-W", "0.5", host]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return
    pytest.fail("no ping is ever answered through the tunnel")


def udp_socket(host: Host, ip: str | None = None, *, v6: bool = False) -> socket.socket:
    with host.place:
        sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((ip or (host.ip6 if v6 else host.ip), 0))
        sock.settimeout(ends.PATIENCE)
        return sock


def ping_once(host: str) -> bool:
    """Whether one ping is answered at once."""
    command = ["ping", "-n", "-c", "1", "-W", "0.3", host]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
