# Network namespaces without root: where a fault may be thrown without anybody else noticing.
#
# `enter_new_network` puts the calling process (a child that will not come back, see
# `own_process`) into a user and a network namespace of its own, in which it may do what root may:
# make devices, routes, queues and rules. `Namespace` makes further ones beside it. A socket or a
# device belongs to the namespace in which it was made, for ever; so one process with one trio run
# can hold both ends of a path that leads through two namespaces:
#
#     with Namespace() as far: ...            # moves the thread there, and back
#
# What the machine cannot do is skipped with the reason. This file knows nothing of the package.

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .own_process import fork

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

# include/uapi/linux/sched.h
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000

# What the commands print when the kernel lacks a part, or forbids it.
_MISSING = ("not supported", "not permitted", "No such file", "Unknown", "not found")

_libc = ctypes.CDLL(None, use_errno=True)

# /proc/self is the process; a namespace belongs to a thread.
_THIS_THREADS_NETWORK = "/proc/thread-self/ns/net"


def _checked(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def enter_new_network() -> None:
    """Move this process into a new user namespace and a new network, with loopback up."""
    user, group = os.getuid(), os.getgid()
    _checked(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNET), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    run("ip link set lo up")


@functools.cache
def why_no_network() -> str | None:
    """Why this machine gives no network of our own, or `None` if it does."""
    if shutil.which("ip") is None:
        return "the command ip (iproute2) is not installed"
    if not hasattr(_libc, "unshare"):
        return "network namespaces are Linux's"
    child = fork()
    if child == 0:
        code = 0
        try:
            enter_new_network()
        except OSError as error:
            code = error.errno or 255
        except BaseException:
            code = 255
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return None
    reason = os.strerror(code) if 0 < code < 255 else "the set-up failed"
    return f"no user and network namespace can be made here: {reason}"


def run(command: str, *, stdin: str | None = None) -> str:
    """Run one of the system's network commands; skip the test if it is not installed.

    A command that fails is an error of the test. Where the kernel may lack a part, use `attempt`.
    """
    done = _run(command, stdin)
    if done.returncode != 0:
        raise RuntimeError(f"{command!r} failed: {done.stderr.strip()}")
    return done.stdout


def attempt(command: str, *, stdin: str | None = None) -> str:
    """Run a command that needs an optional part of the kernel; skip the test if it is missing."""
    done = _run(command, stdin)
    if done.returncode != 0 and any(sign in done.stderr for sign in _MISSING):
        pytest.skip(f"this kernel cannot {command!r}: {done.stderr.strip()}")
    if done.returncode != 0:
        raise RuntimeError(f"{command!r} failed: {done.stderr.strip()}")
    return done.stdout


def _run(command: str, stdin: str | None) -> subprocess.CompletedProcess[str]:
    words = command.split()
    program = shutil.which(words[0])
    if program is None:
        pytest.skip(f"the command {words[0]} is not installed")
    # What the tests run under, a sanitizer say, finds faults in the system's programs as well.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run(
        [program, *words[1:]],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def nft(chain: str, rule: str) -> None:
    """Add an nftables rule to a table of its own, ``inet faults`` or ``netdev faults``.

    ``chain`` is where the kernel asks it, such as ``filter hook input``.
    """
    family = "netdev" if "device" in chain else "inet"
    attempt(
        "nft -f -",
        stdin=f"table {family} faults {{\n chain here {{\n"
        f"  type {chain} priority 0;\n  {rule};\n }}\n}}\n",
    )


def sysctl(name: str, value: object) -> None:
    """Set a ``net.`` sysctl of the current namespace."""
    Path("/proc/sys", *name.split(".")).write_text(f"{value}\n")


def wait_for_ipv6(device: str, ip: str) -> None:
    """Wait until an IPv6 address can be reached: the kernel enters it a little later."""
    for _ in range(10_000):
        if ip in run(f"ip -6 route show table local dev {device}"):
            return
    raise RuntimeError(f"{ip} does not come into use on {device}")


def slow_link(rate: str, *, burst: int = 2000, device: str = "lo") -> None:
    """Let a device send only so fast (``rate`` in tc's words); it keeps what it cannot send yet.

    The process stays on one processor from here on: the queue's timer runs where it was set, and
    datagrams of two processors would overtake each other on loopback.
    """
    attempt(f"tc qdisc replace dev {device} root tbf rate {rate} burst {burst} limit 100000000")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class Namespace:
    """One more network namespace; as a context manager, the thread stands inside it."""

    def __init__(self) -> None:
        self._outside: list[int] = []
        here = os.open(_THIS_THREADS_NETWORK, os.O_RDONLY)
        try:
            _checked(_libc.unshare(CLONE_NEWNET), "unshare")
            self._fd = os.open(_THIS_THREADS_NETWORK, os.O_RDONLY)
            try:
                run("ip link set lo up")
            finally:
                _checked(_libc.setns(here, CLONE_NEWNET), "setns")
        finally:
            os.close(here)

    @property
    def path(self) -> str:
        """What ``ip link set ... netns`` takes for this namespace."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def __enter__(self) -> Self:
        self._outside.append(os.open(_THIS_THREADS_NETWORK, os.O_RDONLY))
        _checked(_libc.setns(self._fd, CLONE_NEWNET), "setns")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        outside = self._outside.pop()
        _checked(_libc.setns(outside, CLONE_NEWNET), "setns")
        os.close(outside)

    def delete(self) -> None:
        """Let go of the namespace. It ends with the last socket and device that is in it."""
        os.close(self._fd)


def veth(
    far: Namespace,
    *,
    near: str = "va",
    far_end: str = "vb",
    near_ip: str = "10.0.0.1",
    far_ip: str = "10.0.0.2",
) -> None:
    """Join the current namespace and ``far`` with a cable, a /24 on it.

    Nothing may be sent by the devices themselves, so the neighbours are entered by hand.
    """
    near_mac, far_mac = "02:00:00:00:00:01", "02:00:00:00:00:02"
    run(
        f"ip link add {near} address {near_mac} type veth "
        f"peer name {far_end} address {far_mac} netns {far.path}"
    )
    _set_up_end(near, near_ip, far_ip, far_mac)
    with far:
        _set_up_end(far_end, far_ip, near_ip, near_mac)
        wait_for_carrier(far_end)
    wait_for_carrier(near)


def _set_up_end(name: str, ip: str, peer_ip: str, peer_mac: str) -> None:
    sysctl(f"net.ipv6.conf.{name}.disable_ipv6", 1)
    run(f"ip address add {ip}/24 dev {name}")
    run(f"ip link set {name} up")
    run(f"ip neighbour replace {peer_ip} lladdr {peer_mac} dev {name}")


def wait_for_carrier(name: str) -> None:
    """Wait until the device may send: the kernel notices a cable's other end a little later."""
    for _ in range(10_000):
        if "state UP" in run(f"ip link show {name}"):
            return
    raise RuntimeError(f"{name} has no carrier")
