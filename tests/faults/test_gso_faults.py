# Faults of segmentation (UDP_SEGMENT): F11 to F15 of the fault matrix.
#
# Only a verdict on GSO itself may switch GSO off, and then the same call delivers everything
# unsegmented. Whatever else is refused is refused for itself alone.

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from snaptun_trio import (
    PacketBatch,
    PacketTrain,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import harness, interposer, laws, ledger, netns, sockets

if TYPE_CHECKING:
    import socket

pytestmark = pytest.mark.usefixtures("backend")


async def send_trains_and_collect(
    sender_socket: socket.socket, receiver_socket: socket.socket, sizes: list[int]
) -> UdpBatchSender:
    """One batch of trains through one `send`; the law of the clean path must hold for it."""
    book = ledger.Ledger()
    datagrams = [book.write(size=size) for size in sizes]
    sender = UdpBatchSender(sender_socket)
    receiver = UdpBatchReceiver(receiver_socket)
    await sender.send(harness.batch_of(datagrams, receiver_socket.getsockname()))
    await harness.collect(receiver, book)
    laws.l2_clean(book.account())
    laws.sender_adds_up(sender.statistics(), book.account())
    laws.receiver_adds_up(receiver.statistics(), len(sizes))
    return sender


async def test_f11_eio_for_gso_sends_everything_unsegmented_in_the_same_call(seed: int) -> None:
    """A real EIO for every train: all arrive, once, in order; later calls do not try again."""
    sizes = harness.random_sizes(random.Random(seed), 1000)
    with sockets.udp_lite() as out, sockets.udp_lite() as into:
        sender = await send_trains_and_collect(out, into, sizes)
        assert not sender.gso
        assert sender.statistics().gso_fallbacks == 1
        book = ledger.Ledger()
        receiver = UdpBatchReceiver(into)
        await sender.send(harness.batch_of(book.write_many(100), into.getsockname()))
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        assert sender.statistics().gso_fallbacks == 1


async def test_f13_einval_for_gso_only_is_tried_plainly_once_and_counted(seed: int) -> None:
    """A real EINVAL for every train while plain sends work: as with EIO, nothing lost or twice."""
    sizes = harness.random_sizes(random.Random(seed), 1000)
    with sockets.without_checksums(sockets.udp()) as out, sockets.udp() as into:
        sender = await send_trains_and_collect(out, into, sizes)
        assert not sender.gso
        assert sender.statistics().gso_fallbacks == 1


@pytest.mark.parametrize("at", [0, 1, 2, 7, 19])
async def test_f12_eio_in_the_middle_of_a_batch_goes_on_at_the_failing_message(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO from message ``at`` on for whatever is segmented: no datagram twice, none left out."""
    asked = 0

    def verdict(message: interposer.Message) -> int:
        nonlocal asked
        asked += 1
        return errno.EIO if message.segment_size and asked > at else 0

    interposer.Interposer(monkeypatch, verdict)
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        # Each train has a size of its own, so that each is a message of its own.
        trains = [
            PacketTrain(b"".join(book.write_many(20, size=size)), size, into.getsockname())
            for size in range(100, 120)
        ]
        await sender.send(PacketBatch(trains))
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())
        assert not sender.gso
        assert asked > 20


async def test_f12_eio_that_passes_by_itself_leaves_gso_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One EIO that the second try does not meet again is no verdict, and costs nothing."""
    script = iter([0, 0, errno.EIO])
    interposer.Interposer(monkeypatch, interposer.from_script(script))
    with sockets.udp() as out, sockets.udp() as into:
        sender = await send_trains_and_collect(out, into, [100] * 400)
        assert sender.gso


@pytest.mark.parametrize("bad_train", [False, True])
async def test_f14_port_0_fails_alone_and_gso_stays_on(bad_train: bool) -> None:
    """EINVAL that is not about GSO: that message is reported, the others go, segmented."""
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        good, nobody = into.getsockname(), ("127.0.0.1", 0)
        before, after = book.write_many(100, flow=1, size=200), book.write_many(100, flow=2)
        bad = book.write_many(10 if bad_train else 1, flow=3)
        trains = [
            *PacketTrain.pack(before, good),
            *PacketTrain.pack(bad, nobody),
            *PacketTrain.pack(after, good),
        ]
        with pytest.raises(SendBatchError) as caught:
            await sender.send(PacketBatch(trains))
        assert {failure.train.address for failure in caught.value.failures} == {nobody}
        harness.enter_refusals(book, caught.value)
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())
        assert book.account().refused == {errno.EINVAL: len(bad)}
        assert sender.gso
        assert sender.statistics().gso_fallbacks == 0


@pytest.mark.own_network
async def test_f14_a_blackhole_route_fails_alone_and_gso_stays_on() -> None:
    """The route says EINVAL to everything: only what goes there is refused."""
    netns.run("ip route add blackhole 10.9.0.0/16")
    book = ledger.Ledger()
    with sockets.udp("0.0.0.0") as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        for number in range(300):
            target = ("10.9.0.1", 9) if number % 3 == 0 else into.getsockname()
            sender.try_queue_packet(book.write(flow=number % 3), target)
            if sender.is_full:
                with harness.refusals_entered(book):
                    await sender.flush()
        with harness.refusals_entered(book):
            await sender.flush()
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())
        assert book.account().refused == {errno.EINVAL: 100}
        assert sender.gso


@pytest.mark.own_network
@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("gso", [False, True])
async def test_f15_a_datagram_over_the_mtu_is_refused_and_never_fragmented(
    gso: bool, v6: bool
) -> None:
    """With GSO and without, alone and in a train: EMSGSIZE for itself, and the others arrive."""
    netns.run("ip link set lo mtu 1500")
    most = 1452 if v6 else 1472
    book = ledger.Ledger()
    host = "::1" if v6 else "127.0.0.1"
    with sockets.udp(host) as out, sockets.udp(host) as into:
        sender, receiver = UdpBatchSender(out, gso=gso), UdpBatchReceiver(into)
        target = into.getsockname()[:2]
        sizes = [most, most + 1, 100, *[most] * 3, *[most + 1] * 3, most, 9000, most]
        trains = [
            train
            for flow, size in enumerate(sizes)
            for train in PacketTrain.pack([book.write(flow, size)], target)
        ]
        trains += PacketTrain.pack(book.write_many(40, flow=50, size=most), target)
        trains += PacketTrain.pack(book.write_many(40, flow=51, size=most + 1), target)
        with harness.refusals_entered(book):
            await sender.send(PacketBatch(trains))
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())
        assert book.account().refused == {errno.EMSGSIZE: 45}
        assert sender.gso is gso
        assert _fragments_made() == 0


@pytest.mark.own_network
@pytest.mark.parametrize("gso", [False, True])
async def test_f15_the_short_tail_of_an_oversize_train_is_sent_all_the_same(gso: bool) -> None:
    """A queue of one oversize packet and one that fits: only the oversize one is refused.

    The sender itself made one train of the two. That is no reason to refuse what could be sent.
    """
    netns.run("ip link set lo mtu 1500")
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out, gso=gso), UdpBatchReceiver(into)
        for flow in range(10):
            sender.try_queue_packet(book.write(flow, 1473), into.getsockname())
            sender.try_queue_packet(book.write(flow, 100), into.getsockname())
        with harness.refusals_entered(book):
            await sender.flush()
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())
        assert book.account().refused == {errno.EMSGSIZE: 10}


def _fragments_made() -> int:
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Ip: "))
    v6 = dict(line.split() for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines())
    return int(values[names.index("FragCreates")]) + int(v6["Ip6FragCreates"])


@pytest.mark.parametrize("v6", [False, True])
async def test_f15_more_than_a_udp_payload_can_hold_is_split_over_several_messages(
    v6: bool,
) -> None:
    """Trains and queues far over 65 507 bytes: all arrive, and none is refused for its size."""
    book = ledger.Ledger()
    host = "::1" if v6 else "127.0.0.1"
    with sockets.udp(host) as out, sockets.udp(host) as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        target = into.getsockname()
        # The last is what loopback's own MTU leaves an IPv6 datagram that may not be fragmented.
        largest = [65_473, 65_488] if v6 else [65_493, 65_507]
        for size in (1200, 1400, 9000, 30_000, 32_000, 60_000, *largest):
            data = b"".join(book.write_many(10, flow=size, size=size))
            await sender.send(PacketBatch([PacketTrain(data, size, target)]))
            for _ in range(10):
                sender.try_queue_packet(book.write(size, size), target)
            await sender.flush()
            await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())
        assert sender.statistics().datagrams_failed == 0


@pytest.mark.own_network
async def test_f15_an_icmp_too_big_neither_shrinks_the_path_nor_stops_a_send() -> None:
    """A router with a small hop says "too big": sends go on, and other targets lose nothing.

    With path MTU discovery on PROBE nobody's ICMP message decides what we may send; what is too
    big for the hop is lost there, as on any path, and every datagram that fits arrives.
    """
    router, far = netns.Namespace(), netns.Namespace()
    netns.veth(router)
    with router:
        netns.veth(far, near="vc", far_end="vd", near_ip="10.1.0.1", far_ip="10.1.0.2")
        netns.sysctl("net.ipv4.ip_forward", 1)
        netns.run("ip link set vc mtu 1300")
    with far:
        netns.run("ip link set vd mtu 1300")
        netns.run("ip route add 10.0.0.0/24 via 10.1.0.1")
        into = sockets.udp("10.1.0.2")
    netns.run("ip route add 10.1.0.0/24 via 10.0.0.2")
    fitting, too_big = ledger.Ledger(), 0
    with into, sockets.udp("10.0.0.1") as out:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        target = into.getsockname()
        for _ in range(20):
            await sender.send(harness.batch_of([bytes(1400)] * 3, target))
            too_big += 3
            await sender.send(harness.batch_of(fitting.write_many(10, size=1200), target))
        await harness.collect(receiver, fitting)
        laws.l2_clean(fitting.account())
        counters = sender.statistics()
        assert counters.datagrams_sent == too_big + fitting.account().written
        assert counters.datagrams_failed == 0
        laws.sender_adds_up(counters)
