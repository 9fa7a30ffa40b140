# `probe`: what this machine can do, each thing found by trying it on real sockets, and never by
# looking at a version. A probe is a row of a table: what it is, how it is tried, and what to do if
# it is not so. One that fails in a way of its own is no failure of the others.

import itertools
import os
import socket
import struct
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import trio

from .. import (
    PacketBatch,
    PacketTrain,
    ReceiverStatistics,
    SendBatchError,
    SenderStatistics,
    UdpBatchReceiver,
    UdpBatchSender,
    backend,
    open_udp_socket,
)
from . import _terminal
from ._forwarders import LOOPBACK, open_end
from ._terminal import Commands, Facts, add_command

Exchanged: TypeAlias = tuple[SenderStatistics, ReceiverStatistics, PacketTrain[Any]]
UDP_SEGMENT = 103  # of include/uapi/linux/udp.h
MIB4 = 4 << 20  # what `open_udp_socket` asks for
WITHIN_SECONDS = 2.0  # on loopback everything is there at once
SEVERAL = tuple(range(100, 116))  # different sizes: they cannot become one train


def exchange(
    sizes: tuple[int, ...] = (100,), *, train: int = 1, host: str = LOOPBACK, **options: bool
) -> Exchanged:
    """Send a train for each of these sizes, in one batch, to a receiver with these options; what
    either counted, and the first train that came."""

    async def run() -> Exchanged:
        with await open_udp_socket((host, 0)) as here, await open_udp_socket((host, 0)) as there:
            receiver, sender = UdpBatchReceiver(there, None, **options), UdpBatchSender(here)
            ecn, to = 2 if "ecn" in options else None, there.getsockname()
            batch = [PacketTrain(bytes(size * train), size, to, ecn=ecn) for size in sizes]
            await sender.send(PacketBatch(batch))
            trains: list[PacketTrain[Any]] = []
            with trio.fail_after(WITHIN_SECONDS):  # noqa: ASYNC912  # nothing sent is there yet
                while sum(map(len, trains)) < train * len(sizes):
                    trains += (await receiver.receive()).detach().trains
            return sender.statistics(), receiver.statistics(), trains[0]

    return trio.run(run)


def batched(side: int, calls: str) -> bool:
    """Whether several datagrams go in one call. The portable backend only counts so."""
    return backend == "linux" and getattr(exchange(SEVERAL)[side], calls) == 1


def send_train(udp: socket.socket, length: int) -> bool:
    """Send a train of so many bytes, a datagram for each, to the socket itself."""
    one_byte_each = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 1))]
    try:
        return udp.sendmsg([bytes(length)], one_byte_each, 0, udp.getsockname()) == length
    except OSError:
        return False


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


def shared_port() -> bool:
    """Whether two sockets can have one port."""
    share = partial(open_udp_socket, reuse_port=True)
    with trio.run(share) as one, trio.run(share, one.getsockname()[:2]):
        return True


def descriptors() -> int:
    """How many files and sockets a process may have open."""
    import resource  # not on every system

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def namespaces() -> bool:
    """Whether a user without rights can make a network of its own, as some of the tests do."""
    command = ["unshare", "--user", "--map-root-user", "--net", "true"]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


BATCH = "see below which backend it is, and why; the portable one makes a call for each"
TRAIN = "not all systems and devices can, and SNAPTUN_TRIO_GSO=0 and _GRO=0 switch it off"
TELL = "this system cannot report it, and a receiver that is to raises ValueError"
BUFFER = f"sysctl -w net.core.rmem_max={MIB4} net.core.wmem_max={MIB4}"
DROPS = "what the kernel drops cannot be counted on this system"
SPACES = "sysctl -w user.max_net_namespaces=1000 kernel.apparmor_restrict_unprivileged_userns=0"
IPV6 = "sysctl -w net.ipv6.conf.all.disable_ipv6=0"
# What it is, how it is tried, what to do if it is not so or too little, and what is enough.
PROBES: tuple[tuple[str, Callable[[], object], str, int], ...] = (
    ("IPv4", exchange, "ip link set lo up", 1),
    ("IPv6", lambda: exchange(host="::1"), IPV6, 1),
    ("several datagrams sent in one call", lambda: batched(0, "send_calls"), BATCH, 1),
    ("several datagrams received in one call", lambda: batched(1, "receive_calls"), BATCH, 1),
    ("trains cut by the kernel (GSO)", lambda: exchange(train=8)[0].trains_sent == 1, TRAIN, 1),
    ("datagrams in the longest train", longest_train, TRAIN, 64),
    ("trains received whole (GRO)", train_arrives_whole, TRAIN, 1),
    ("receive buffer, of 4,194,304 bytes", lambda: granted(socket.SO_RCVBUF), BUFFER, MIB4),
    ("send buffer, of 4,194,304 bytes", lambda: granted(socket.SO_SNDBUF), BUFFER, MIB4),
    ("drops counted", lambda: exchange()[1].buffers_dropped_by_kernel is not None, DROPS, 1),
    ("ECN bits received", lambda: exchange(ecn=True)[2].ecn, TELL, 1),
    ("time stamps of the kernel", lambda: exchange(timestamps=True)[2].timestamp_ns, TELL, 1),
    ("the address it came to", lambda: exchange(packet_info=True)[2].local_address, TELL, 1),
    ("one port for several processes", shared_port, "give each its own port", 1),
    ("open files and sockets", descriptors, "ulimit -n 65536, or LimitNOFILE= of systemd", 4096),
    ("network namespaces without root", namespaces, SPACES, 1),
)


def add_parser(commands: Commands) -> None:
    """Add the command."""
    what = (
        "Tries on real sockets of the loopback interface what the library can use, and says what "
        "to do about each thing that is missing. The exit code is 0 whatever it finds."
    )
    summary = "what this machine can do for UDP, found by trying it"
    add_command(commands, "probe", run, summary, what, "--json")


def run(options: Namespace) -> int:
    """Try everything and show what came of it."""
    switches = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("SNAPTUN_TRIO_"))
    findings = [attempt(*probe) for probe in PROBES]
    table = _terminal.make_table(*findings[0], left=[*findings[0]])
    for what, found, advice in (finding.values() for finding in findings):
        said = f"{found:,}" if type(found) is int else {True: "yes", False: "no", None: "?"}[found]
        table.add_row(what, said, advice, style="yellow" if advice else "")
    facts = {"environment": switches, "findings": findings}
    notes = [f"Environment: {', '.join(switches) or 'no SNAPTUN_TRIO_* is set'}."]
    _terminal.report(options.json, facts, table, notes)
    return 0


def attempt(what: str, find: Callable[[], object], advice: str, enough: int) -> Facts:
    """Try one thing: `False` is found where the system or the library refuses it, `None` where that
    fails in a way of its own."""
    found: int | None = False
    try:
        number = find()
        found = number if enough > 1 and isinstance(number, int) else bool(number)
        advice = advice if found < enough else ""
    except (OSError, ValueError, SendBatchError, trio.TooSlowError):
        pass
    except Exception as error:  # whatever it is, the others are still of use
        found, advice = None, f"could not be tried: {_terminal.in_words(error)}"
    return {"what": what, "found": found, "advice": advice}
