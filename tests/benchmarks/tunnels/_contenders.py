# The two tunnels: how each is started at both ends of a path, and told of its peer.
#
# Both make their own TUN devices and get the same MTU and the same addresses.

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import __version__ as cryptography_version
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.examples import EXAMPLES

from ...faults import netns
from .._sittings import CannotError
from ..relays._running import clock_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

OURS, WIREGUARD = "tunnel.py", "wireguard-go"
PORT, MTU = 5000, 1420
UAPI = Path("/var/run/wireguard")
PATIENCE, STEP = 20.0, 0.05


@dataclass(frozen=True)
class End:
    """One end of the path."""

    name: str
    place: AbstractContextManager[object]
    outside: str
    inside: str


@dataclass
class Running:
    """A tunnel that runs: the process of the near end and that of the far one."""

    near: int
    far: int

    def cpu_ns(self) -> tuple[int, int]:
        """What each has used so far, all threads."""
        return clock_ns(self.near), clock_ns(self.far)


def why_no_wireguard() -> str | None:
    """Why wireguard-go cannot be measured here, or `None`."""
    if shutil.which(WIREGUARD) is None:
        return "it is not installed"
    try:
        UAPI.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        return f"{UAPI} cannot be made: {error.strerror}"
    return None if os.access(UAPI, os.W_OK) else f"{UAPI} cannot be written to"


def versions() -> dict[str, str]:
    """Of what is measured."""
    found = {"cryptography": cryptography_version}
    if shutil.which(WIREGUARD):
        said = subprocess.run([WIREGUARD, "--version"], capture_output=True, text=True, check=False)
        if version := re.search(r"v(\d\S*)", said.stdout):
            found[WIREGUARD] = version[1]
    return found


def configure(end: End, device: str) -> None:
    """The same for both tunnels."""
    with end.place:
        netns.run(f"ip link set dev {device} mtu {MTU} up")
        netns.run(f"ip address add {end.inside}/24 dev {device}")


@contextmanager
def _started(end: End, command: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("wb") as file, end.place:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(
    is_so: Callable[[], bool], process: subprocess.Popen[bytes], what: str, output: Path
) -> None:
    """Wait for something that the program does; raises `CannotError` if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        if process.poll() is not None or time.monotonic() > deadline:
            printed = output.read_text(encoding="utf-8", errors="replace").split("\n")
            said = [line for line in printed if line.strip()]
            raise CannotError(": ".join([f"{what} failed", *said[-1:]]))
        time.sleep(STEP)


@contextmanager
def ours(near: End, far: End, directory: Path) -> Iterator[Running]:
    """The program of the documentation."""
    key = directory / "key"
    key.write_text(os.urandom(32).hex(), encoding="ascii")
    processes = []
    with ExitStack() as stack:
        for end, peer in ((near, far), (far, near)):
            output = directory / f"{end.name}-output"
            command = [sys.executable, str(EXAMPLES / "tunnel.py"), "--key", str(key), "tun0"]
            command += [str(PORT), peer.outside, str(PORT)]
            process = stack.enter_context(_started(end, command, output))
            until(lambda file=output: b"on port" in file.read_bytes(), process, "start", output)  # type: ignore[misc]
            configure(end, "tun0")
            processes.append(process.pid)
        yield Running(*processes)


@contextmanager
def wireguard(near: End, far: End, directory: Path) -> Iterator[Running]:
    """wireguard-go, told what it has to know through its socket."""
    keys = {near: X25519PrivateKey.generate(), far: X25519PrivateKey.generate()}
    processes = []
    with ExitStack() as stack:
        for end, peer in ((near, far), (far, near)):
            output = directory / f"{end.name}-output"
            device = f"wg{os.getpid() % 100_000}{end.name}"
            uapi = UAPI / f"{device}.sock"
            command = [WIREGUARD, "--foreground", device]
            process = stack.enter_context(_started(end, command, output))
            until(uapi.exists, process, "start", output)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(PATIENCE)
                sock.connect(str(uapi))
                sock.sendall(
                    f"set=1\nprivate_key={keys[end].private_bytes_raw().hex()}\n"
                    f"listen_port={PORT}\n"
                    f"public_key={keys[peer].public_key().public_bytes_raw().hex()}\n"
                    f"endpoint={peer.outside}:{PORT}\nallowed_ip=0.0.0.0/0\n\n".encode()
                )
                if not (answer := sock.recv(4096)).startswith(b"errno=0\n"):
                    raise CannotError(f"it refuses its configuration: {answer!r}")
            configure(end, device)
            processes.append(process.pid)
        yield Running(*processes)


CONTENDERS = {OURS: ours, WIREGUARD: wireguard}
