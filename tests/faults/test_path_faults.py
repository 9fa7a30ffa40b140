# A bad network between two ends: F1 to F5 of the fault matrix.
#
# Two namespaces, a tun device in each, and the seeded relay between them. The library is at both
# ends. What it delivers is exactly what the network delivered: no more, no less, in that order.

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from snaptun_trio import UdpBatchReceiver, UdpBatchSender

from . import harness, laws, ledger, netns, sockets, tun

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

pytestmark = [pytest.mark.own_network, pytest.mark.usefixtures("backend")]


@attrs.frozen
class Scene:
    """Two ends and the relay between them."""

    out: socket.socket
    into: socket.socket
    left: tun.Tun
    far: netns.Namespace
    relay: tun.Relay
    v6: bool

    @classmethod
    def make(cls, faults: tun.Faults, seed: int, *, v6: bool = False) -> Scene:
        near_ip, far_ip = ("fd00::1", "fd00::2") if v6 else ("10.0.0.1", "10.0.0.2")
        far = netns.Namespace()
        left = tun.Tun("left", ip=near_ip, peer_ip=far_ip)
        with far:
            right = tun.Tun("right", ip=far_ip, peer_ip=near_ip)
            into = sockets.udp(far_ip)
        relay = tun.Relay(left, right, seed=seed, there=faults)
        return cls(sockets.udp(near_ip), into, left, far, relay, v6)

    def check(self, book: ledger.Ledger, sender: UdpBatchSender) -> None:
        """L1 and L3, and the sender's own account."""
        account = book.account()
        way = self.relay.there
        laws.sender_adds_up(sender.statistics(), account)
        laws.l1_path(account, way, tun_dropped=self.left.dropped())
        with self.far:
            damaged = sockets.snmp("InCsumErrors", v6=self.v6)
            overflowed = sockets.snmp("RcvbufErrors", v6=self.v6)
        laws.l3_bad_path(account, way, damaged=damaged, overflowed=overflowed)

    def close(self) -> None:
        self.out.close()
        self.into.close()


@pytest.fixture
def sizes(seed: int) -> list[int]:
    """What one run sends: some thousand datagrams of all kinds, none of them empty."""
    return [size or 333 for size in harness.random_sizes(random.Random(seed), 3000)]


async def run(scene: Scene, sizes: list[int], *, gso: bool = True) -> ledger.Ledger:
    """Send that through the relay, batch by batch, and receive what comes out."""
    book = ledger.Ledger()
    whole: list[bytes] = []
    scene.relay.there.whole = whole
    sender = UdpBatchSender(scene.out, gso=gso)
    receiver = UdpBatchReceiver(scene.into)
    target = scene.into.getsockname()
    received: list[bytes] = []
    for part in parts(sizes, 100):
        await sender.send(harness.batch_of([book.write(size=size) for size in part], target))
        scene.relay.carry_all()
    scene.relay.flush()
    way = scene.relay.there
    with trio.move_on_after(harness.PATIENCE):
        while len(received) < way.emitted - way.damaged_emitted:
            received += [packet for packet, _ in await receiver.receive()]
    book.deliver_all(received)
    # Byte for byte what the network delivered, in the order in which it did.
    assert received == whole
    scene.check(book, sender)
    laws.receiver_adds_up(receiver.statistics(), len(received))
    assert sender.gso is gso
    return book


def parts(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@pytest.mark.parametrize("percent", [1, 10, 30])
@pytest.mark.parametrize("v6", [False, True])
async def test_f1_a_path_that_loses(percent: int, v6: bool, sizes: list[int], seed: int) -> None:
    """Nothing is raised, and everything that came through is delivered whole."""
    scene = Scene.make(tun.Faults(loss=percent / 100), seed, v6=v6)
    book = await run(scene, sizes)
    assert book.account().missing == scene.relay.there.lost > 0
    scene.close()


async def test_f2_a_path_that_doubles(sizes: list[int], seed: int) -> None:
    """What the network delivered twice is delivered twice, never merged into one."""
    scene = Scene.make(tun.Faults(duplication=0.3), seed)
    book = await run(scene, sizes)
    assert book.account().duplicates == scene.relay.there.duplicated > 0
    scene.close()


async def test_f3_a_path_that_reorders(sizes: list[int], seed: int) -> None:
    """The order is the network's."""
    scene = Scene.make(tun.Faults(reordering=0.3), seed)
    book = await run(scene, sizes)
    assert book.account().late > 0
    scene.close()


async def test_f4_a_path_that_flips_bits(sizes: list[int], seed: int) -> None:
    """A damaged datagram is never delivered, and raises nothing."""
    scene = Scene.make(tun.Faults(damage=0.2), seed)
    book = await run(scene, sizes)
    assert book.account().missing == scene.relay.there.damaged > 0
    scene.close()


@pytest.mark.parametrize("gso", [False, True])
@pytest.mark.parametrize("v6", [False, True])
async def test_f1_to_f4_a_path_that_does_everything_at_once(
    gso: bool, v6: bool, sizes: list[int], seed: int
) -> None:
    faults = tun.Faults(loss=0.3, damage=0.1, duplication=0.3, reordering=0.3)
    scene = Scene.make(faults, seed, v6=v6)
    await run(scene, sizes, gso=gso)
    scene.close()


async def test_f4_damaged_datagrams_alone_wake_nobody_for_nothing_more_than_once() -> None:
    """A reader is asleep while only rubbish arrives; what is whole wakes it and is delivered."""
    scene = Scene.make(tun.Faults(damage=1.0), 1)
    book = ledger.Ledger()
    receiver = UdpBatchReceiver(scene.into)
    for datagram in book.write_many(50, flow=1, size=500):
        scene.out.sendto(datagram, scene.into.getsockname())
        scene.relay.carry_all()
    assert harness.collect_nowait(receiver, ledger.Ledger()) == 0
    scene.relay.there.faults = tun.Faults()
    for datagram in book.write_many(50, flow=2, size=500):
        scene.out.sendto(datagram, scene.into.getsockname())
    scene.relay.carry_all()
    await harness.collect(receiver, book, lambda: book.account().missing == 50)
    account = book.account()
    assert (account.unique, account.damaged, account.duplicates) == (50, 0, 0)
    with scene.far:
        assert sockets.snmp("InCsumErrors") == 50
    scene.close()


async def test_f5_damage_that_passes_every_checksum_is_delivered_as_it_came() -> None:
    """Loopback computes no checksum, so what nft changes there arrives: only a CRC can tell.

    One in four messages is damaged in the first byte of its payload, the first datagram of a train.
    """
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        port = into.getsockname()[1]
        netns.nft(
            "filter hook ingress device lo",
            f"udp dport {port} numgen inc mod 4 0 @th,64,8 set 0xff",
        )
        sender, receiver = UdpBatchSender(out, gso=False), UdpBatchReceiver(into)
        await sender.send(harness.batch_of(book.write_many(400), into.getsockname()))
        await harness.collect(
            receiver, book, lambda: receiver.statistics().datagrams_received == 400
        )
        account = book.account()
        assert account.damaged == 100
        assert account.missing == 100
        assert account.duplicates == 0
        laws.receiver_adds_up(receiver.statistics(), 400)


async def test_loss_of_whole_trains_behind_the_socket_is_silent_and_exact() -> None:
    """nft drops every fourth message on its way in: the kernel says nothing, the ledger does."""
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        port = into.getsockname()[1]
        netns.nft("filter hook input", f"udp dport {port} numgen inc mod 4 0 drop")
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        for _ in range(80):
            await sender.send(harness.batch_of(book.write_many(10), into.getsockname()))
        await harness.collect(receiver, book, lambda: book.account().missing == 200)
        account = book.account()
        assert account.missing == 200
        assert account.duplicates == account.late == account.damaged == 0
        laws.sender_adds_up(sender.statistics(), account)
