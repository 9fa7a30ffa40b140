# The cookbook's programs: a collector of syslog, a fan-out for statsd, a recorder of RTP. They run
# over loopback, beside software that nobody here wrote. The DNS forwarder has a file of its own.

from __future__ import annotations

import contextlib
import errno
import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from snaptun_trio import UdpBatchReceiver, UdpBatchSender
from snaptun_trio.testing import ScriptedSocket

from . import ends
from .examples import Lines, example, port_in, program
from .real_software import SERVER, needs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from snaptun_trio import Address

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of that")


class Collector:
    """The collector, and somebody who sends to it."""

    def __init__(self, process: subprocess.Popen[str], sock: socket.socket) -> None:
        self.process = process
        self.errors, self.lines = Lines(process.stderr), Lines(process.stdout)
        self.port = port_in(self.errors.next())
        self._sock = sock
        sock.connect((SERVER, self.port))
        self.sent = 0
        self.seen: list[str] = []

    def send(self, message: str) -> None:
        self._sock.send(message.encode())
        self.sent += 1

    def settle(self) -> None:
        """Until all that was sent was received, or dropped: for that a last message has to come."""
        while True:
            fence = f"<13>1 - - fence {self.sent} - - "
            self.send(fence)
            with contextlib.suppress(queue.Empty):
                while not self.seen or self.seen[-1] != f"{SERVER} {fence}":
                    self.seen.append(self.lines.next(patience=1.0))
                return

    def end(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        *_, last = self.errors.rest()
        assert self.process.wait(ends.PATIENCE) == 0
        return last


@contextlib.contextmanager
def collector(sock: socket.socket) -> Iterator[Collector]:
    with program("syslog_collector", SERVER, "0") as process:
        yield Collector(process, sock)


def test_collector_prints_messages_and_lets_nobody_forge_one(
    backend: str, udp: ends.MakeSocket
) -> None:
    good = [
        "<34>1 2003-10-11T22:14:15.003Z host su - ID47 - no \u00e4\u00f6",
        "<13>1 - - - - - - a line\n192.0.2.1 <0>1 - - - - - - and a forged one\n",
        "<0>1 - - - - - -",
    ]
    with collector(udp()) as running:
        for message in (
            good[0],
            "<13>Oct 11 22:14:15 host su: the older format",
            "",
            *good[1:],
        ):
            running.send(message)
        running.settle()
        assert running.seen[:-1] == [f"{SERVER} {message}".replace("\n", r"\n") for message in good]
        told = running.end()
    dropped = "0" if sys.platform == "linux" else "None"
    assert told == f"{running.sent} received, {dropped} dropped"


@pytest.mark.slow
@linux_only
def test_what_a_flood_makes_the_kernel_drop_is_told_to_the_datagram(
    backend: str, udp: ends.MakeSocket
) -> None:
    with collector(udp()) as running:
        running.process.send_signal(signal.SIGSTOP)  # as busy as can be
        for number in range(20_000):  # over 14 MB, as the kernel accounts them
            running.send(f"<13>1 - - flood {number} - - ")
        running.process.send_signal(signal.SIGCONT)
        running.settle()
        in_this_second = re.fullmatch(r"(\d+) dropped in this second", running.errors.next())
        told = running.end()
    found = re.fullmatch(r"(\d+) received, (\d+) dropped", told)
    assert found is not None
    received, dropped = map(int, found.groups())
    assert received == len(running.seen)
    assert dropped > 0
    assert received + dropped == running.sent
    assert in_this_second is not None
    assert 0 < int(in_this_second[1]) <= dropped


@needs("logger")
def test_collector_understands_logger(backend: str, udp: ends.MakeSocket) -> None:
    version = subprocess.run(["logger", "--version"], capture_output=True, text=True, check=False)
    if "util-linux" not in version.stdout:
        pytest.skip("this logger is not util-linux's")
    with collector(udp()) as running:
        command = ["logger", "--server", SERVER, "--port", str(running.port), "--udp"]
        command += ["--tag", "cookbook", "--priority", "local3.warning", "a message"]
        subprocess.run(command, check=True, timeout=ends.PATIENCE)
        line = running.lines.next()
        running.end()
    assert re.fullmatch(rf"{SERVER} <156>1 \S+ \S+ cookbook - - .*a message", line)


def test_fan_out_gives_everything_to_every_backend_whichever_is_dead(
    backend: str, udp: ends.MakeSocket
) -> None:
    client, *living = udp(), udp(), udp()
    dead = ends.deafen(udp())
    targets = [f"{host}:{port}" for host, port, *_ in [dead, *map(ends.address_of, living)]]
    packets = [b"requests:%d|c" % number for number in range(300)]
    with program("statsd_fan_out", SERVER, "0", *targets) as process:
        lines = Lines(process.stdout)
        client.connect((SERVER, port_in(lines.next())))
        for piece in (packets[:1], packets[1:]):  # what comes first finds out that one is dead
            for packet in piece:
                client.send(packet)
            for sink in living:
                assert ends.read_plainly(sink, len(piece)) == piece
        process.send_signal(signal.SIGTERM)
        told = lines.rest()
        assert process.wait(ends.PATIENCE) == 0
    of_the_dead = re.fullmatch(rf"{targets[0]}: 300 sent, 0 missed, (\d+) refused", told[0])
    assert of_the_dead is not None
    if sys.platform == "linux":
        assert int(of_the_dead[1]) > 0
    assert told[1:] == [f"{target}: 300 sent, 0 missed, 0 refused" for target in targets[1:]]


async def test_fan_out_waits_for_no_backend_and_counts_what_each_has_missed() -> None:
    good, full, narrow = (ScriptedSocket(remote_address=("192.0.2.9", n)) for n in (1, 2, 3))
    full.answer = lambda packets, address: errno.EAGAIN
    narrow.answer = lambda packets, address: errno.EMSGSIZE if len(packets[0]) > 9 else 0
    source = ScriptedSocket()
    batches = [ends.batch_of([b"a:%d|c" % n, b"longer:%d|c" % n], ("::1", 9)) for n in range(5)]
    source.receives.extend(batches)
    senders = {
        name: UdpBatchSender(sock)
        for name, sock in (("full", full), ("narrow", narrow), ("good", good))
    }
    missed: Counter[str] = Counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            example("statsd_fan_out").fan_out, UdpBatchReceiver(source), senders, missed
        )
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    everything = [packet for batch in batches for packet, _ in batch]
    assert [packet for packet, _ in good.sent] == everything
    assert [packet for packet, _ in narrow.sent] == everything[::2]
    waiting = senders["full"].statistics().datagrams_queued
    assert missed == {"narrow": 5, "full": len(everything) - waiting}


def rtp(number: int) -> bytes:
    """A packet of G.711: 20 ms, 160 bytes."""
    header = struct.pack("!BBHII", 0x80, 0, number, 160 * number, 0x5EED)
    return header + bytes([number % 256]) * 160


def packets_of(capture: bytes) -> Iterator[tuple[int, bytes]]:
    """The times in nanoseconds and the IPv4 packets of a capture."""
    magic, major, minor, _, _, _, kind = struct.unpack_from("!IHHIIII", capture)
    assert (magic, major, minor, kind) == (0xA1B23C4D, 2, 4, 228)
    start = 24
    while start < len(capture):
        seconds, nanoseconds, kept, whole = struct.unpack_from("!4I", capture, start)
        assert kept == whole
        assert nanoseconds < 10**9
        yield seconds * 10**9 + nanoseconds, capture[start + 16 : start + 16 + kept]
        start += 16 + kept


@attrs.frozen
class Recorded:
    """What was recorded, from whom to whom, and between what times."""

    path: Path
    source: Address
    target: Address
    began: int
    ended: int


@pytest.fixture
def recorded(udp: ends.MakeSocket, linux_backend: None, tmp_path: Path) -> Recorded:
    """A capture of 200 packets, and two datagrams that are none."""
    path, sender = tmp_path / "recorded.pcap", udp()
    with program("rtp_recorder", SERVER, "0", str(path)) as process:
        lines = Lines(process.stdout)
        sender.connect((SERVER, port_in(lines.next())))
        began = time.time_ns()
        for packet in (b"\x80", b"no RTP at all", *map(rtp, range(200))):
            sender.send(packet)
        ended = time.time_ns()
        while path.stat().st_size < 24 + 200 * (16 + 28 + 172):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert lines.rest() == ["202 received, 0 dropped"]
        assert process.wait(ends.PATIENCE) == 0
    return Recorded(path, sender.getsockname(), sender.getpeername(), began, ended)


def test_recorder_writes_each_packet_with_the_time_when_the_kernel_had_it(
    recorded: Recorded,
) -> None:
    found = list(packets_of(recorded.path.read_bytes()))
    assert [packet[28:] for _, packet in found] == [rtp(number) for number in range(200)]
    times = [when for when, _ in found]
    assert times == sorted(times)
    assert recorded.began <= times[0]
    assert times[-1] <= recorded.ended
    assert len(set(times)) > 100  # each has its own, but for a clock that is coarse
    for _, packet in found:
        assert (packet[0], packet[9]) == (0x45, socket.IPPROTO_UDP)
        hosts = [socket.inet_ntoa(packet[start : start + 4]) for start in (12, 16)]
        ports = struct.unpack_from("!HH", packet, 20)
        assert list(zip(hosts, ports)) == [recorded.source, recorded.target]
        assert struct.unpack_from("!H", packet, 2)[0] == len(packet)
        assert struct.unpack_from("!H", packet, 24)[0] == len(packet) - 20


@needs("tcpdump")
def test_tcpdump_reads_what_was_recorded(recorded: Recorded) -> None:
    command = ["tcpdump", "-n", "-T", "rtp", "-r", str(recorded.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    source, target = (f"{host}.{port}" for host, port, *_ in (recorded.source, recorded.target))
    way = f"IP {source} > {target}: udp/rtp 160 c0 "
    assert len(lines) == 200
    assert all(way in line for line in lines)
