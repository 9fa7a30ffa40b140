# The page on finding a drop: each cause that can be brought about here moves the counters that the
# page names, and those of the library.
#
# In a namespace of its own, for the kernel counts in one for all sockets.

from __future__ import annotations

import json
import select
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import PacketBatch, UdpBatchReceiver, UdpBatchSender

from .. import ends
from ..examples import EXAMPLES, example
from . import netns, packets, sockets, tun

if TYPE_CHECKING:
    from collections import Counter

pytestmark = [
    pytest.mark.own_network,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc/net is Linux's"),
]

NET = Path("/proc/thread-self/net")  # of the namespace in which this thread stands


def counters() -> Counter[str]:
    found: Counter[str] = example("howto/drops").counters(NET)
    return found


def moved(before: Counter[str]) -> dict[str, int]:
    return dict(counters() - before)


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
async def test_a_receive_buffer_that_is_full(ip: str) -> None:
    before = counters()
    with sockets.udp(ip) as out, sockets.udp(ip, receive_buffer=20_000) as into:
        receiver = UdpBatchReceiver(into, gro=False)
        for _ in range(100):
            out.sendto(bytes(1000), into.getsockname())
        counted = receiver.statistics().buffers_dropped_by_kernel
        seen = netns.run("ss --udp --all --numeric --memory")
    family = "Udp6" if ":" in ip else "Udp"
    assert counted is not None
    assert counted > 0
    assert moved(before) == {f"{family}RcvbufErrors": counted, f"{family}InErrors": counted}
    assert f"d{counted})" in seen


@pytest.mark.parametrize(("size", "of_the_socket"), [(5, 0), (500, 7)])
async def test_a_checksum_that_is_wrong(size: int, of_the_socket: int) -> None:
    """The kernel looks at that of a short datagram when it comes, else when it is read."""
    before = counters()
    device = tun.Tun("tun0", ip="10.0.0.1", peer_ip="10.0.0.2")
    with sockets.udp("10.0.0.1") as into:
        receiver, there = UdpBatchReceiver(into, gro=False), into.getsockname()
        packet = packets.udp_packet(("10.0.0.2", 9), there, bytes(size), checksum=0x1234)
        for _ in range(7):
            assert device.write(packet) == 0
        with pytest.raises(trio.WouldBlock):
            receiver.receive_nowait()
        assert receiver.statistics().buffers_dropped_by_kernel == of_the_socket
    assert moved(before) == {"UdpInCsumErrors": 7, "UdpInErrors": 7}


async def test_a_port_at_which_nobody_listens() -> None:
    before = counters()
    with sockets.udp() as out:
        sender = UdpBatchSender(out)
        for _ in range(5):
            await sender.send_packet(b"hello", ("127.0.0.1", 9))
        assert sender.statistics().datagrams_sent == 5
    assert moved(before) == {"UdpNoPorts": 5}


async def test_a_send_buffer_that_is_full_is_counted_as_an_error_and_loses_nothing() -> None:
    """The library waits for the socket; the kernel has counted the attempt all the same."""
    netns.slow_link("50mbit", burst=20_000)
    before = counters()
    packet = bytes(1000)
    with sockets.udp(send_buffer=4608) as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out, gso=False), UdpBatchReceiver(into, gro=False)
        batch = PacketBatch.pack([(packet, into.getsockname())] * 300)
        with trio.fail_after(ends.PATIENCE):
            await sender.send(batch)
            seen = 0
            while seen < 300:
                seen += len(await receiver.receive())
        assert sender.statistics().datagrams_failed == 0
    found = moved(before)
    assert found.pop("UdpSndbufErrors") > 0
    assert found == {}


async def test_a_queue_of_the_device_that_is_full() -> None:
    netns.attempt("tc qdisc replace dev lo root tbf rate 1mbit burst 2000 limit 5000")
    before = counters()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out, gso=False), UdpBatchReceiver(into)
        await sender.send(PacketBatch.pack([(bytes(1000), into.getsockname())] * 100))
        counted = sender.statistics()
        (queue,) = json.loads(netns.run("tc -s -json qdisc show dev lo"))
        seen = 0
        with trio.fail_after(ends.PATIENCE):
            while seen < 100 - queue["drops"]:
                seen += len(await receiver.receive())
    assert queue["drops"] > 0
    assert (counted.datagrams_sent, counted.datagrams_failed) == (100, 0)  # the kernel took them
    assert moved(before) == {"UdpSndbufErrors": queue["drops"]}


def test_a_source_to_which_there_is_no_way_back() -> None:
    device = tun.Tun("tun0", ip="10.0.0.1", peer_ip="10.0.0.2")
    netns.sysctl("net.ipv4.conf.tun0.rp_filter", 1)
    before = counters()
    with sockets.udp("10.0.0.1") as into:
        stranger = packets.udp_packet(("192.0.2.1", 9), into.getsockname(), b"hello")
        for _ in range(3):
            device.write(stranger)
        assert list(sockets.drain(into)) == []
    assert nstat("TcpExtIPReversePathFilter") == 3
    assert moved(before) == {}  # it never got so far


def test_a_rule_of_the_firewall() -> None:
    netns.nft("filter hook input", "udp dport 4000-65535 udp length > 500 counter drop")
    before = counters()
    with sockets.udp() as out, sockets.udp() as into:
        for size in (100, 600, 700):
            out.sendto(bytes(size), into.getsockname())
        assert [len(packet) for packet in sockets.drain(into)] == [100]
    assert "counter packets 2" in netns.run("nft list ruleset")
    assert moved(before) == {}


def nstat(name: str) -> int:
    found = json.loads(netns.run(f"nstat --json --zeros --ignore --noupdate {name}"))
    return int(found["kernel"][name])


@pytest.mark.skipif(shutil.which("nstat") is None, reason="nstat is not installed")
def test_nstat_has_the_names_of_the_page() -> None:
    with sockets.udp() as out:
        out.sendto(b"hello", ("127.0.0.1", 9))
    assert nstat("UdpNoPorts") == 1
    assert nstat("UdpRcvbufErrors") == 0


def test_the_program_says_what_moves() -> None:
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "howto" / "drops.py")], stdout=subprocess.PIPE, text=True
    ) as watching:
        try:
            assert watching.stdout is not None
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                while not select.select([watching.stdout], [], [], 0.1)[0]:
                    out.sendto(b"hello", ("127.0.0.1", 9))
            assert watching.stdout.readline().startswith("UdpNoPorts +")
        finally:
            watching.kill()
