# `probe`: what this machine can do, each thing found by trying it on real sockets, and never by
# looking at a version. A probe is a row of a table: what it is, how it is tried, and what to do if
# it is not so. One that fails in a way of its own is no failure of the others.

from __future__ import annotations

import functools
import itertools
import os
import select
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from .. import (
    PacketBatch,
    PacketTrain,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
    backend,
    open_udp_socket,
)
from . import _screen
from ._arguments import add_command
from ._path import LOOPBACK, open_end

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from .. import ReceiverStatistics, SenderStatistics
    from ._arguments import Commands
    from ._child import Facts

    Exchanged: TypeAlias = tuple[SenderStatistics, ReceiverStatistics, list[PacketTrain[Any]]]

UDP_SEGMENT = 103  # of include/uapi/linux/udp.h
MIB4 = 4 << 20  # what `open_udp_socket` asks for
WITHIN_SECONDS = 2.0  # on loopback everything is there at once
SEVERAL = tuple(range(100, 116))  # different sizes: they cannot become one train


def exchange(
    sizes: tuple[int, ...] = (100,), *, train: int = 1, host: str = LOOPBACK, option: str = ""
) -> Exchanged:
    """Send a train for each of these sizes, in one batch, to a receiver with this option."""

    async def run() -> Exchanged:
        options = {option: True} if option else {}
        with await open_udp_socket((host, 0)) as here, await open_udp_socket((host, 0)) as there:
            receiver, sender = UdpBatchReceiver(there, None, **options), UdpBatchSender(here)
            ecn, to = 2 if option == "ecn" else None, there.getsockname()
            batch = [PacketTrain(bytes(size * train), size, to, ecn=ecn) for size in sizes]
            await sender.send(PacketBatch(batch))
            trains: list[PacketTrain[Any]] = []
            with trio.fail_after(WITHIN_SECONDS):
                while True:
                    trains += (await receiver.receive()).detach().trains
                    if sum(map(len, trains)) >= train * len(sizes):
                        break
            return sender.statistics(), receiver.statistics(), trains

    return trio.run(run)


def works(attempt: Callable[[], object]) -> bool:
    """Whether it gives something true, and neither the system nor the library refuses it."""
    try:
        return bool(attempt())
    except (OSError, ValueError, SendBatchError, trio.TooSlowError):
        return False


def told(option: str, field: str) -> Callable[[], bool]:
    """Whether a receiver with this option is told it of a datagram."""
    return lambda: works(lambda: getattr(exchange(option=option)[2][0], field))


def dual_stack() -> bool:
    """Whether a socket of IPv6 hears IPv4."""
    with trio.run(open_udp_socket, ("::", 0)) as there, open_end() as udp:
        udp.sendto(b"x", (LOOPBACK, there.getsockname()[1]))
        return bool(select.select([there.fileno()], [], [], WITHIN_SECONDS)[0])


def send_train(udp: socket.socket, length: int) -> bool:
    """Send a train of so many bytes, a datagram for each, to the socket itself."""
    one_byte_each = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 1))]
    message = [bytes(length)], one_byte_each, 0, udp.getsockname()
    return works(lambda: udp.sendmsg(*message))


def longest_train() -> int:
    """The most datagrams that the kernel cuts one message into."""
    with open_end() as udp:
        return next(n for n in itertools.count(1) if not send_train(udp, n + 1))


def train_arrives_whole() -> bool:
    """Whether what the kernel could have cut comes in one piece."""
    with open_end() as udp:
        receiver = UdpBatchReceiver(udp)
        # Not the library's sender, in which cutting may be switched off.
        return send_train(udp, 8) and len(receiver.receive_nowait().trains[0]) == 8


def granted(option: int) -> int:
    """The bytes of buffer that a socket of the library's gets."""
    with trio.run(open_udp_socket, (LOOPBACK, 0)) as udp:
        # Linux says twice what it grants.
        return udp.getsockopt(socket.SOL_SOCKET, option) // (2 if sys.platform == "linux" else 1)


def drops_are_told() -> bool:
    """Whether the kernel counts what does not fit into a receive buffer."""
    with open_end() as udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        receiver = UdpBatchReceiver(udp)
        for _ in range(100):
            udp.sendto(bytes(1000), udp.getsockname())
        return bool(receiver.statistics().buffers_dropped_by_kernel)


def shared_port() -> bool:
    """Whether two sockets can have one port."""
    with trio.run(shareable := functools.partial(open_udp_socket, reuse_port=True)) as one:
        with trio.run(shareable, one.getsockname()[:2]):
            return True


def descriptors() -> int:
    """How many files and sockets a process may have open."""
    import resource  # not on every system

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def namespaces() -> bool:
    """Whether a user without rights can make a network of its own, as some of the tests do."""
    command = ["unshare", "--user", "--map-root-user", "--net", "true"]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def in_one_call(which: int, calls: str) -> Callable[[], bool]:
    """Whether several datagrams go with one call. The portable backend only counts so."""
    return lambda: backend == "linux" and getattr(exchange(SEVERAL)[which], calls) == 1


BATCH = "see below which backend it is, and why; the portable one makes a call for each"
TRAIN = "not all systems and devices can, and SNAPTUN_TRIO_GSO=0 and _GRO=0 switch it off"
TELL = "this system cannot report it, and a receiver that is to raises ValueError"
BUFFER = f"sysctl -w net.core.rmem_max={MIB4} net.core.wmem_max={MIB4}"
SPACES = "sysctl -w user.max_net_namespaces=1000 kernel.apparmor_restrict_unprivileged_userns=0"
IPV6 = "sysctl -w net.ipv6.conf.all.disable_ipv6=0"
# What it is, how it is tried, what to do if it is not so or too little, and what is enough.
PROBES: tuple[tuple[str, Callable[[], int], str, int], ...] = (
    ("IPv4", lambda: works(exchange), "ip link set lo up", 1),
    ("IPv6", lambda: works(lambda: exchange(host="::1")), IPV6, 1),
    ("IPv4 on a socket of IPv6", lambda: works(dual_stack), IPV6, 1),
    ("several datagrams sent in one call", in_one_call(0, "send_calls"), BATCH, 1),
    ("several datagrams received in one call", in_one_call(1, "receive_calls"), BATCH, 1),
    ("trains cut by the kernel (GSO)", lambda: exchange(train=8)[0].trains_sent == 1, TRAIN, 1),
    ("datagrams in the longest train", longest_train, TRAIN, 64),
    ("trains received whole (GRO)", train_arrives_whole, TRAIN, 1),
    ("receive buffer, bytes of 4 MiB", lambda: granted(socket.SO_RCVBUF), BUFFER, MIB4),
    ("send buffer, bytes of 4 MiB", lambda: granted(socket.SO_SNDBUF), BUFFER, MIB4),
    ("drops told", drops_are_told, "what the kernel drops cannot be counted on this system", 1),
    ("ECN bits received", told("ecn", "ecn"), TELL, 1),
    ("time stamps of the kernel", told("timestamps", "timestamp_ns"), TELL, 1),
    ("where a datagram arrived", told("packet_info", "local_address"), TELL, 1),
    ("one port for several processes", lambda: works(shared_port), "give each its own port", 1),
    ("open files and sockets", descriptors, "ulimit -n 65536, or LimitNOFILE= of systemd", 4096),
    ("network namespaces without root", namespaces, SPACES, 1),
)


def add_parser(commands: Commands) -> None:
    """Add the command."""
    add_command(
        commands,
        "probe",
        run,
        "what this machine can do for UDP, found by trying it",
        "Tries on real sockets of the loopback interface what the library can use, and says what "
        "to do about each thing that is missing. The exit code is 0 whatever it finds.",
        "--json",
    )


def run(options: argparse.Namespace) -> int:
    """Try everything and show what came of it."""
    switches = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("SNAPTUN_TRIO_"))
    findings = [attempt(*probe) for probe in PROBES]
    headings = ("what", "found", "what to do")
    table = _screen.make_table(*headings, left=headings)
    words = {True: "yes", False: "no", None: "?"}
    for what, found, advice in (finding.values() for finding in findings):
        said = f"{found}" if type(found) is int else words[found]
        table.add_row(what, said, advice, style="yellow" if advice else "")
    facts = {"environment": switches, "findings": findings}
    notes = [f"Environment: {', '.join(switches) or 'no SNAPTUN_TRIO_* is set'}."]
    _screen.report(options.json, facts, table, notes)
    return 0


def attempt(what: str, find: Callable[[], int], advice: str, enough: int) -> Facts:
    """Try one thing; `None` is found where that fails in a way of its own."""
    try:
        found: int | None = (number := find())
        advice = advice if number < enough else ""
    except Exception as error:  # whatever it is, the others are still of use
        why = " ".join(str(error).split()) or type(error).__name__
        found, advice = None, f"could not be tried: {why}"
    return {"what": what, "found": found, "advice": advice}
