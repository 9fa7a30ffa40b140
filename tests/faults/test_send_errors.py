# What each errno on sending leads to: F16 to F20, F22 and F36 of the fault matrix.
#
# EAGAIN is waited for, errors about an earlier datagram cost no datagram, and whatever else the
# kernel says is said of one message: it is reported with its errno, and the others go.

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import (
    PacketBatch,
    PacketTrain,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
)

from .. import ends
from . import harness, interposer, laws, ledger, netns, sockets

if TYPE_CHECKING:
    import socket

    from snaptun_trio import Address

pytestmark = pytest.mark.usefixtures("backend")

ALONE = "127.77.0.1"  # where a port that was given up is still free a moment later


# -- F16: EAGAIN


@pytest.mark.own_network
@pytest.mark.parametrize("gso", [False, True])
async def test_f16_eagain_in_the_middle_of_a_batch_waits_and_resumes(gso: bool, seed: int) -> None:
    """A slow link and a tiny send buffer: EAGAIN every few messages; nothing lost, or twice."""
    netns.slow_link("400mbit", burst=70000)
    sizes = harness.random_sizes(random.Random(seed), 2000)
    book = ledger.Ledger()
    datagrams = [book.write(size=size) for size in sizes]
    with sockets.udp(send_buffer=2304) as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out, gso=gso), UdpBatchReceiver(into)
        target = into.getsockname()
        with trio.fail_after(harness.PATIENCE):
            await sender.send(harness.batch_of(datagrams[:1000], target))
            for datagram in datagrams[1000:]:
                if sender.is_full:
                    await sender.flush()
                sender.try_queue_packet(datagram, target)
            await sender.flush()
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())
        assert sender.statistics().asynchronous_errors == {}


@pytest.mark.own_network
async def test_f16_a_full_socket_would_block_and_keeps_the_rest_queued() -> None:
    """`try_flush_best_effort` and `send_nowait` never wait, and what is left goes later."""
    netns.slow_link("80kbit", burst=2000)
    book = ledger.Ledger()
    with sockets.udp(send_buffer=2304) as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        target = into.getsockname()
        for number in range(12):
            # Each is larger than the one before, so that no two of them make a train.
            sender.try_queue_packet(book.write(size=900 + number), target)
        with pytest.raises(trio.WouldBlock):
            sender.try_flush_best_effort()
        counters = sender.statistics()
        laws.sender_adds_up(counters)
        assert 0 < counters.datagrams_queued < 12
        refused_batch = harness.batch_of(book.write_many(1, flow=1, size=1200), target)
        with pytest.raises(trio.WouldBlock):
            sender.send_nowait(refused_batch)
        # The link may have taken some of the queue meanwhile, but nothing of the batch got into it.
        assert sender.statistics().datagrams_submitted == counters.datagrams_submitted
        with trio.fail_after(harness.PATIENCE):
            await sender.flush()
            await sender.send(refused_batch)
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())


# -- F17: ENOBUFS


@pytest.mark.own_network
async def test_f17_enobufs_is_counted_and_never_waited_for() -> None:
    """A queue that is full and says so (IP_RECVERR): each datagram is sent or refused, at once."""
    netns.attempt("tc qdisc replace dev lo root tbf rate 80kbit burst 2000 limit 20000")
    book = ledger.Ledger()
    with sockets.with_error_queue(sockets.udp()) as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out, gso=False), UdpBatchReceiver(into)
        datagrams = book.write_many(500, size=1000)
        with trio.fail_after(harness.PATIENCE):  # The link would need a minute for all of them.
            with pytest.raises(SendBatchError) as caught:
                await sender.send(harness.batch_of(datagrams, into.getsockname()))
        harness.enter_refusals(book, caught.value)
        assert set(book.account().refused) == {errno.ENOBUFS}
        netns.run("tc qdisc delete dev lo root")  # What waits in it is gone: F36.
        laws.sender_adds_up(sender.statistics(), book.account())
        live = ledger.Ledger()
        out.setsockopt(0, sockets.IP_RECVERR, 0)
        await sender.send(harness.batch_of(live.write_many(100, flow=9), into.getsockname()))
        heard = {ledger.read(p) for p in await _drain(receiver, 100)}
        assert {ledger.Name(9, n) for n in range(100)} <= heard


async def _drain(receiver: UdpBatchReceiver, at_least: int) -> list[bytes]:
    packets: list[bytes] = []
    with trio.move_on_after(harness.PATIENCE):
        while len(packets) < at_least:
            packets += [packet for packet, _ in await receiver.receive()]
    return packets


@pytest.mark.own_network
async def test_f17_a_datagram_that_needs_more_fragments_than_the_buffer_holds() -> None:
    """ENOBUFS or EMSGSIZE while poll says writable: refused at once, nobody spins or waits."""
    netns.run("ip link set lo mtu 1500")
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        out.setsockopt(1, 7, 4608)  # SOL_SOCKET, SO_SNDBUF
        sender, receiver = UdpBatchSender(out, gso=False), UdpBatchReceiver(into)
        # A program may want fragments and set the discovery back.
        out.setsockopt(0, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
        target = into.getsockname()
        with trio.fail_after(harness.PATIENCE):
            for flow in range(20):
                sender.try_queue_packet(book.write(flow, 30_000), target)
                sender.try_queue_packet(book.write(flow, 100), target)
                with harness.refusals_entered(book):
                    await sender.flush()
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())
        assert book.account().refused == {errno.ENOBUFS: 20}


# -- F18, F19: refusals that come and go


@pytest.mark.own_network
@pytest.mark.parametrize("gso", [False, True])
async def test_f18_eperm_switched_on_and_off_while_sending(gso: bool) -> None:
    """A firewall rule comes and goes: what it forbids is refused, what it allows arrives."""
    netns.veth(far := netns.Namespace())
    with far:
        into = sockets.udp("10.0.0.2")
    book = ledger.Ledger()
    policy = "dir out dst 10.0.0.2/32"
    with into, sockets.udp("10.0.0.1") as out:
        sender, receiver = UdpBatchSender(out, gso=gso), UdpBatchReceiver(into)
        target = into.getsockname()
        for round_ in range(6):
            blocked = round_ % 2 == 1
            if blocked:
                netns.attempt(f"ip xfrm policy add {policy} action block")
            with harness.refusals_entered(book):
                await sender.send(harness.batch_of(book.write_many(100), target))
            assert sum(book.account().refused.values()) == (round_ + 1) // 2 * 100
            if blocked:
                netns.run(f"ip xfrm policy delete {policy}")
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())
        assert book.account().refused == {errno.EPERM: 300}
        assert sender.gso is gso


@pytest.mark.own_network
async def test_f18_a_firewall_that_drops_some_of_what_goes_out_says_so() -> None:
    """nft on output refuses every third message with EPERM: exactly those are not sent.

    The second try of a refused message is a new message to the rule, so one may go through.
    """
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        port = into.getsockname()[1]
        netns.nft("filter hook output", f"udp dport {port} numgen random mod 3 0 drop")
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        for size in (100, 1200):
            for _ in range(50):
                with harness.refusals_entered(book):
                    await sender.send(
                        harness.batch_of(book.write_many(30, size=size), into.getsockname())
                    )
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())
        assert set(book.account().refused) == {errno.EPERM}
        assert sender.gso


@pytest.mark.own_network
async def test_f19_routes_and_links_that_fail_and_come_back() -> None:
    """Each refusal is of that target only, has its errno, and ends when its cause does."""
    netns.veth(far := netns.Namespace())
    with far:
        into = sockets.udp("10.0.0.2")
    book = ledger.Ledger()
    refused = 0

    async def send_both(code: int) -> None:
        nonlocal refused
        good = PacketTrain.pack(book.write_many(20, flow=1), into.getsockname())
        bad = PacketTrain.pack(book.write_many(20, flow=2), ("10.9.0.1", 9))
        with harness.refusals_entered(book):
            await sender.send(PacketBatch([*good, *bad, *good[:0]]))
        refused += 20
        account = book.account()
        assert sum(account.refused.values()) == refused
        assert code in account.refused

    with into, sockets.udp("0.0.0.0") as out:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        for kind, code in {
            "unreachable": errno.EHOSTUNREACH,
            "prohibit": errno.EACCES,
            "blackhole": errno.EINVAL,
            "throw": errno.ENETUNREACH,
        }.items():
            netns.run(f"ip route add {kind} 10.9.0.0/16")
            await send_both(code)
            netns.run(f"ip route delete {kind} 10.9.0.0/16")
        await send_both(errno.ENETUNREACH)  # No route at all.
        # Now the good target's own link goes down, and comes back.
        netns.run("ip link set va down")
        with harness.refusals_entered(book):
            await sender.send(harness.batch_of(book.write_many(20), into.getsockname()))
        refused += 20
        assert sum(book.account().refused.values()) == refused
        netns.run("ip link set va up")
        netns.run("ip neighbour replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev va")
        netns.wait_for_carrier("va")
        with far:
            netns.wait_for_carrier("vb")
        await sender.send(harness.batch_of(book.write_many(20, flow=3), into.getsockname()))
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())
        assert sender.gso


async def test_f19_the_wrong_family_the_broadcast_address_and_no_address() -> None:
    """EACCES, EDESTADDRREQ: of one message. A wrong family is refused before any call."""
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        target = into.getsockname()
        for address, code in ((("127.255.255.255", 9), errno.EACCES), (None, errno.EDESTADDRREQ)):
            trains = [
                *PacketTrain.pack(book.write_many(10, flow=1), target),
                *PacketTrain.pack(book.write_many(5, flow=2), address),
                *PacketTrain.pack(book.write_many(10, flow=3), target),
            ]
            with pytest.raises(SendBatchError) as caught:
                await sender.send(PacketBatch(trains))
            assert {failure.error.errno for failure in caught.value.failures} == {code}
            harness.enter_refusals(book, caught.value)
        counters = sender.statistics()
        with pytest.raises(ValueError, match="the socket is of IPv4"):
            await sender.send(harness.batch_of([b"x"], ("::1", 9)))
        assert sender.statistics() == counters
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())


@pytest.mark.own_network
async def test_f19_a_source_or_an_interface_that_is_not_there_fails_alone() -> None:
    """ENETUNREACH, EINVAL or ENODEV for a train that wants to leave by what does not exist."""
    book = ledger.Ledger()
    for host in ("127.0.0.1", "::1"):
        nowhere = "10.77.0.1" if host == "127.0.0.1" else "fd77::1"
        with sockets.udp(host) as out, sockets.udp(host) as into:
            sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
            target: Address = into.getsockname()
            flow = hash(host) % 1000
            trains = [
                *PacketTrain.pack(book.write_many(10, flow), target),
                PacketTrain(book.write(flow + 1), 100, target, local_address=nowhere),
                PacketTrain(book.write(flow + 1), 100, target, interface_index=4711),
                *PacketTrain.pack(book.write_many(10, flow), target),
            ]
            with pytest.raises(SendBatchError) as caught:
                await sender.send(PacketBatch(trains))
            assert len(caught.value.failures) == 2
            harness.enter_refusals(book, caught.value)
            await harness.collect(receiver, book)
            laws.sender_adds_up(sender.statistics())
    laws.l2_clean(book.account())


# -- F20: errors about an earlier datagram


async def test_f20_a_dead_connected_peer_refuses_nothing_and_is_counted() -> None:
    """Every second send meets the ICMP answer to the one before: all are sent, each once."""
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp(ALONE) as peer:
        nobody = peer.getsockname()
        out.connect(nobody)
        sender = UdpBatchSender(out)
        peer.close()
        for _ in range(100):
            await sender.send(harness.batch_of(book.write_many(3), None))
        counters = sender.statistics()
        assert counters.datagrams_sent == 300
        assert counters.asynchronous_errors[errno.ECONNREFUSED] > 0
        # Somebody comes to live there: from now on everything arrives.
        with sockets.udp(ALONE, port=nobody[1]) as alive:
            live = ledger.Ledger()
            receiver = UdpBatchReceiver(alive)
            await sender.send(harness.batch_of(live.write_many(300), None))
            await harness.collect(receiver, live)
            laws.l2_clean(live.account())
        laws.sender_adds_up(sender.statistics())


@pytest.mark.parametrize("gso", [False, True])
async def test_f20_with_ip_recverr_a_dead_peer_costs_a_live_one_nothing(gso: bool) -> None:
    """The socket's owner switched IP_RECVERR on; dead and live peers in turn, in one batch."""
    live, dead = ledger.Ledger(), ledger.Ledger()
    with (
        sockets.with_error_queue(sockets.udp()) as out,
        sockets.udp() as into,
        sockets.udp() as closed,
    ):
        nobody = ends.deafen(closed)
        sender, receiver = UdpBatchSender(out, gso=gso), UdpBatchReceiver(into)
        trains: list[PacketTrain] = []
        for _ in range(100):
            trains += PacketTrain.pack(dead.write_many(3), nobody)
            trains += PacketTrain.pack(live.write_many(3), into.getsockname())
        await sender.send(PacketBatch(trains))
        # In the middle of a batch the kernel may say such an error to nobody.
        before = sender.statistics().asynchronous_errors.get(errno.ECONNREFUSED, 0)
        for _ in range(100):
            sender.try_queue_packet(dead.write(), nobody)
            await sender.flush()
            sender.try_queue_packet(live.write(), into.getsockname())
            await sender.flush()
        await harness.collect(receiver, live)
        laws.l2_clean(live.account())
        counters = sender.statistics()
        laws.sender_adds_up(counters)
        assert counters.datagrams_sent == live.account().written + dead.account().written
        assert counters.asynchronous_errors[errno.ECONNREFUSED] - before == 100


async def test_f20_several_errors_about_earlier_datagrams_in_a_row_refuse_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three ICMP answers to three earlier datagrams come one by one: none is about this one."""
    script = iter([errno.ECONNREFUSED] * 3)
    interposer.Interposer(monkeypatch, interposer.from_script(script))
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        await sender.send(harness.batch_of(book.write_many(100), into.getsockname(), segments=10))
        await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())
        assert sender.statistics().asynchronous_errors == {errno.ECONNREFUSED: 3}


async def test_f20_a_dead_peer_ends_no_receive_and_eats_no_datagram() -> None:
    """A connected receiver whose peer is gone and comes back: an error, then what was sent."""
    book = ledger.Ledger()
    with sockets.udp() as into, sockets.udp(ALONE) as peer:
        address = peer.getsockname()
        into.connect(address)
        receiver = UdpBatchReceiver(into)
        peer.close()
        for _ in range(5):
            into.send(b"anybody?")
            with pytest.raises(trio.WouldBlock):
                receiver.receive_nowait()
        with sockets.udp(ALONE, port=address[1]) as alive:
            into.send(b"anybody?")
            for datagram in book.write_many(20):
                alive.sendto(datagram, into.getsockname())
            await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        assert receiver.statistics().asynchronous_errors == {errno.ECONNREFUSED: 5}
        laws.receiver_adds_up(receiver.statistics(), 20)


# -- F22: a dead neighbour


@pytest.mark.own_network
async def test_f22_while_a_dead_neighbour_holds_the_buffer_a_deadline_still_works() -> None:
    """ARP has no answer, and its packets fill the send buffer: a blocked flush can be left."""
    netns.veth(netns.Namespace())
    with sockets.udp("10.0.0.1", send_buffer=20_000) as out:
        sender = UdpBatchSender(out, gso=False)
        for _ in range(100):
            for number in range(64):
                sender.try_queue_packet(bytes(100 + number), ("10.0.0.77", 9))
            try:
                sender.try_flush_best_effort()
            except trio.WouldBlock:
                break
        left = sender.statistics().datagrams_queued
        assert left > 0
        with trio.move_on_after(0.05) as scope:
            await sender.flush()
        assert scope.cancelled_caught
        laws.sender_adds_up(sender.statistics())
        assert sender.statistics().datagrams_queued == left


@pytest.mark.own_network
async def test_f22_the_pumps_default_buffer_outlasts_a_dead_neighbour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thousand datagrams into the void, and a live peer gets everything without a wait."""
    netns.veth(far := netns.Namespace())
    with far:
        into = sockets.udp("10.0.0.2")
    from snaptun_trio import open_batch_pump

    waits: list[object] = []
    real_wait = trio.lowlevel.wait_writable

    async def counted_wait(sock: socket.socket) -> None:
        waits.append(sock)
        await real_wait(sock)

    monkeypatch.setattr(trio.lowlevel, "wait_writable", counted_wait)
    book = ledger.Ledger()
    with into:
        receiver = UdpBatchReceiver(into)
        async with open_batch_pump(("10.0.0.1", 0)) as pump:
            dead = [PacketTrain(bytes(100), 100, ("10.0.0.77", 9)) for _ in range(1000)]
            await pump.outgoing.send(PacketBatch(dead))
            for _ in range(10):
                await pump.outgoing.send(harness.batch_of(book.write_many(50), into.getsockname()))
            await harness.collect(receiver, book)
            assert waits == []  # The neighbour would hold us for three seconds.
            laws.l2_clean(book.account())
            counters = pump.statistics().sender
            assert counters is not None
            assert counters.send_buffer_size >= 851_968


# -- F36: success that means nothing


@pytest.mark.own_network
async def test_f36_what_a_removed_queue_held_is_missing_and_nothing_else() -> None:
    """The kernel took the datagrams, and lost them with its queue: the ledger shows how many."""
    # So slow that nothing leaves it between the two commands below, however late they run.
    netns.slow_link("200bit", burst=2000)
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out, gso=False), UdpBatchReceiver(into)
        target = into.getsockname()
        await sender.send(harness.batch_of(book.write_many(100, size=1000), target))
        shown = netns.run("tc -s qdisc show dev lo")
        waiting = int(shown.partition("backlog ")[2].partition("b ")[2].partition("p")[0])
        netns.run("tc qdisc delete dev lo root")
        await sender.send(harness.batch_of(book.write_many(10, flow=1), target))
        laws.sender_adds_up(sender.statistics(), book.account())
        await harness.collect(receiver, book, lambda: book.account().missing <= waiting)
        assert waiting > 90
        assert book.account().missing == waiting
        assert book.account().duplicates == 0
