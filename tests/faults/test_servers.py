# serve_udp under bad handlers and under strangers: F49 and F50 of the fault matrix.
#
# Thousands of peers, one process: their datagrams are injected through a tun device, and what they
# are answered is read from it. So a peer is an address and nothing more, as it is for a server.

from __future__ import annotations

import contextlib
import gc
import random
import socket
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import Address, PacketTooLargeError, SendBatchError, open_udp_channel
from snaptun_trio.testing import ScriptedSocket

from .. import serving
from ..serving import echo
from . import harness, limits, netns, packets, sockets, tun

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from snaptun_trio import UdpChannel

pytestmark = pytest.mark.usefixtures("backend")

HERE = "10.0.0.1"
IN_FLIGHT = 250  # datagrams that a socket buffer of the usual size holds
Answers = Counter[tuple[Address, bytes]]


def client(number: int) -> tuple[str, int]:
    """So many different source addresses."""
    return (
        f"10.{16 + number // 50_000}.{number % 250}.{1 + number // 250 % 200}",
        1024 + number % 60_000,
    )


class Crowd:
    """Peers without sockets, of one server.

    Attributes:
      answers: how often each peer was answered with what.
    """

    def __init__(self, served: serving.Served, device: tun.Tun) -> None:
        self._served = served
        self._device = device
        self._sent = 0
        self.answers: Answers = Counter()

    async def send(self, datagrams: Iterable[tuple[Address, bytes]]) -> None:
        """Let the server receive these, not more at a time than its socket has room for."""
        for part in harness.chunks(datagrams, IN_FLIGHT):
            for source, payload in part:
                packet = packets.udp_packet(source[:2], (HERE, self._served.address[1]), payload)
                assert self._device.write(packet) == 0
            self._sent += len(part)
            await self.until(lambda: self._received() >= self._sent)

    def _received(self) -> int:
        return self._served.server._received

    async def until(self, holds: Callable[[], bool]) -> None:
        """Take answers in until this holds."""
        with trio.fail_after(harness.PATIENCE):
            while True:
                while (packet := self._device.read()) is not None:
                    if packets.is_udp(packet):
                        start = packets.payload_offset(packet)
                        port = int.from_bytes(packet[start - 6 : start - 4], "big")
                        host = socket.inet_ntoa(packet[16:20])
                        self.answers[(host, port), packet[start:]] += 1
                if holds():
                    return
                await trio.lowlevel.checkpoint()


@contextlib.asynccontextmanager
async def crowd(
    handler: Callable[[UdpChannel], object], **options: object
) -> AsyncIterator[tuple[Crowd, serving.Served]]:
    with tun.Tun("tun0", ip=HERE, peer_ip="10.0.0.2") as device:
        netns.run("ip route add 10.0.0.0/8 dev tun0")
        async with serving.server(handler, host=HERE, **options) as served:
            yield Crowd(served, device), served


@pytest.mark.own_network
@pytest.mark.parametrize("how", ["slow", "dead", "raising", "closing"])
async def test_f49_a_bad_handler_among_a_thousand_peers_disturbs_nobody(
    how: str, seed: int
) -> None:
    """The others get each of their answers, once. What it does not take is bounded and counted."""
    peers = [client(number) for number in range(1000)]
    bad, others = peers[500], peers[:500] + peers[501:]
    rounds, queue = 12, 4
    slow = trio.Semaphore(0)

    async def handler(channel: UdpChannel) -> None:
        if channel.address != bad:
            await echo(channel)
            return
        match how:
            case "slow":
                while True:
                    await slow.acquire()
                    await channel.send_packet(await channel.receive_packet())
            case "dead":
                with trio.CancelScope(shield=True):
                    await stop.wait()
            case "raising":
                raise ValueError("of the bad one")
            case _:
                channel.close()
                await stop.wait()

    stop = trio.Event()
    told: list[Exception] = []
    async with crowd(
        handler, peer_queue=queue, on_error=lambda error, channel: told.append(error)
    ) as (them, served):
        chance = random.Random(seed)
        for number in range(rounds):
            payload = b"%d" % number
            order = peers + [bad] * 20
            chance.shuffle(order)
            await them.send((peer, payload) for peer in order)
            slow.release()
            await them.until(lambda payload=payload: all(them.answers[o, payload] for o in others))  # type: ignore[misc]
            seen = served.statistics()
            assert seen.datagrams_waiting <= queue + 21, "and what it was handed while it waited"
        assert {them.answers[peer, b"%d" % n] for peer in others for n in range(rounds)} == {1}
        seen = served.statistics()
        assert seen.datagrams_received == rounds * 1020
        theirs = rounds * len(others)
        if how in {"slow", "dead"}:
            (channel,) = (one for one in served.server.peers if one.address == bad)
            counted = channel.statistics()
            assert counted.datagrams_received == rounds * 21
            assert counted.datagrams_dropped == seen.datagrams_dropped
            assert counted.datagrams_dropped >= rounds * 21 - queue - 21 - rounds
        else:
            assert seen.datagrams_dropped + seen.datagrams_discarded == rounds * 21
        assert seen.datagrams_delivered >= theirs
        assert (how == "raising") == bool(told)
        stop.set()


@pytest.mark.own_network
async def test_f50_a_hundred_thousand_strangers_beside_a_hundred_live_peers(seed: int) -> None:
    """The live ones are answered throughout and never have to go. Memory does not follow the
    strangers, of whom each is served as well, for as long as there is room for it."""
    limits.skip_under_a_sanitizer()
    live = [client(200_000 + number) for number in range(100)]
    most, strangers = 500, 100_000
    chance = random.Random(seed)

    async with crowd(echo, max_peers=most) as (them, served):
        await them.send((peer, b"hello") for peer in live * 2)
        await them.until(lambda: them.answers.total() >= 200)
        channels = {one.address: one for one in served.server.peers}
        assert set(channels) == set(live)
        resident = 0
        for number, first in enumerate(range(0, strangers, 1000)):
            payload = b"%d" % number
            mixed = [(client(one), b"stranger") for one in range(first, first + 1000)]
            mixed += [(peer, payload) for peer in live]
            chance.shuffle(mixed)
            them.answers.clear()
            await them.send(mixed)
            await them.until(lambda payload=payload: all(them.answers[o, payload] for o in live))  # type: ignore[misc]
            seen = served.statistics()
            assert seen.peers <= most
            assert seen.handlers <= most + 64
            assert seen.datagrams_dropped == 0
            if first == strangers // 5:
                gc.collect()
                resident = limits.resident_bytes()
        them.answers.clear()
        gc.collect()
        grown = limits.resident_bytes() - resident
        now = {one.address: one for one in served.server.peers}
        assert all(now[address] is channel for address, channel in channels.items())
        seen = served.statistics()
        assert seen.datagrams_received == 200 + strangers + 100 * len(live)
        assert seen.peers_admitted == 100 + strangers - seen.peers_shed
        assert seen.peers_evicted == seen.peers_admitted - seen.peers
        assert grown < 100 * strangers * 4 // 5, f"{grown} bytes more"


async def test_a_thousand_idle_peers_cost_eight_kib_each_at_most() -> None:
    """What Python allocates for a peer: its channel, its place in the table, its task."""
    limits.skip_under_a_sanitizer()
    async with serving.server(echo, ScriptedSocket()) as served:
        await served.feed((b"warm", ("192.0.2.1", 1)))
        pairs: list[tuple[bytes, Address | None]] = [
            (b"hello", ("192.0.2.2", 1000 + number)) for number in range(1000)
        ]
        tracemalloc.start()
        try:
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(2):
                await served.feed(*pairs)
            served.server._sender.socket.sent.clear()  # type: ignore[union-attr]
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert served.statistics().peers == 1001
        cost = (after - before) / 1000
        print(f"{cost:.0f} bytes for an idle peer")
        assert cost < 8192


@pytest.mark.own_network
@pytest.mark.parametrize(
    ("here", "there", "headers"), [(HERE, "10.0.0.2", 28), ("fd00::1", "fd00::2", 48)]
)
async def test_the_mtu_of_a_narrow_device(here: str, there: str, headers: int) -> None:
    """It is told by the system; what goes over it is refused, and that is remembered."""
    with tun.Tun("thin", ip=here, peer_ip=there) as device:
        netns.run("ip link set thin mtu 1300")
        async with serving.server(host=here) as served:
            stranger = packets.udp_packet((there, 1024), (here, served.address[1]), b"hello")
            assert device.write(stranger) == 0
            peer = await served.next_channel()
            async with await open_udp_channel(there, 9) as client:
                for channel in (client, peer):
                    fits = 1300 - headers
                    assert channel.mtu == fits
                    for send in (
                        channel.send_packet(bytes(fits + 1)),
                        channel.send(harness.batch_of([bytes(fits + 1)] * 3, None)),
                    ):
                        with pytest.raises((OSError, SendBatchError), match="too long"):
                            await send
                    await channel.send_packet(bytes(fits))
                    assert channel.statistics().datagrams_sent == 1
                    netns.run("ip link set thin mtu 1400")
                    assert channel.mtu == fits, "what was refused is remembered"
                    netns.run("ip link set thin mtu 1300")


@pytest.mark.own_network
@pytest.mark.parametrize("how", ["send", "send_packet"])
async def test_a_peer_that_asks_a_link_local_address_is_answered_from_it(how: str) -> None:
    """Which is one only together with its interface; the peer's own says nothing of that."""
    netns.run("ip address add fe80::1/64 dev lo nodad")
    netns.run("ip address add fd00::1/128 dev lo nodad")
    for host in ("fe80::1", "fd00::1"):
        netns.wait_for_ipv6("lo", host)
    lo = socket.if_nametoindex("lo")
    async with serving.server(host="::") as served:
        with sockets.udp("fd00::1") as asking:
            asking.sendto(b"hello", ("fe80::1", served.address[1], 0, lo))
            channel = await served.next_channel()
            assert channel.local_address == ("fe80::1", served.address[1], 0, lo)
            if how == "send":
                await channel.send(await channel.receive())
            else:
                await channel.send_packet(await channel.receive_packet())
            with trio.fail_after(harness.PATIENCE):
                await trio.lowlevel.wait_readable(asking)
            packet, source = asking.recvfrom(100)
            assert (packet, source[0].partition("%")[0]) == (b"hello", "fe80::1")
            with pytest.raises(PacketTooLargeError):
                await channel.send_packet(bytes(65_530))
            with pytest.raises(OSError, match="too long"):
                await channel.send_packet(bytes(channel.mtu + 1))
