# Buffers that are too small, and datagrams of no length: F8 to F10 of the fault matrix.
#
# What did not fit is counted, in datagrams and in bytes, and no datagram is ever run together with
# another. A zero-length datagram is a datagram.

from __future__ import annotations

import random
import socket
import struct

import pytest
import trio

from snaptun_trio import (
    PacketBatch,
    PacketBufPool,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
)
from snaptun_trio._kernel import choose_backend

from . import harness, laws, ledger, netns, sockets

pytestmark = pytest.mark.usefixtures("backend")

# include/uapi/linux/in6.h, asm-generic/socket.h
IPV6_RECVDSTOPTS = 58
IPV6_DSTOPTS = 59
SO_RXQ_OVFL = 40
IP_RECVTTL = 12


# -- F8: datagrams of no length


@pytest.mark.parametrize("gso", [False, True])
@pytest.mark.parametrize("gro", [False, True])
async def test_f8_zero_length_datagrams_are_sent_and_delivered_as_such(
    gso: bool, gro: bool, seed: int
) -> None:
    """Alone, first, last, in a row and between others, by queue and by train."""
    rng = random.Random(seed)
    book = ledger.Ledger()
    empty_written = 0
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out, gso=gso), UdpBatchReceiver(into, gro=gro)
        target = into.getsockname()
        for _ in range(50):
            sizes = [0 if rng.random() < 0.3 else 100 for _ in range(rng.randrange(1, 30))]
            empty_written += sizes.count(0)
            packets = [book.write(size=size) for size in sizes]
            if rng.random() < 0.5:
                await sender.send(PacketBatch(PacketTrain.pack(packets, target)))
                continue
            for packet in packets:
                sender.try_queue_packet(packet, target)
            await sender.flush()
        await harness.collect(receiver, book)
        account = book.account()
        laws.l2_clean(account)
        laws.sender_adds_up(sender.statistics(), account)
        laws.receiver_adds_up(receiver.statistics(), account.written)
        assert empty_written > 100


@pytest.mark.own_network
async def test_f8_zero_length_datagrams_among_trains_that_the_wire_coalesced() -> None:
    """Through a device that coalesces plain sends (GRO): each empty one arrives as one."""
    netns.veth(far := netns.Namespace())
    with far:
        netns.attempt("ethtool -K vb gro on rx-udp-gro-forwarding on")
        into = sockets.udp("10.0.0.2")
    book = ledger.Ledger()
    with into, sockets.udp("10.0.0.1") as out:
        receiver = UdpBatchReceiver(into)
        for number in range(300):
            out.sendto(book.write(size=0 if number % 5 == 0 else 200), into.getsockname())
        await harness.collect(receiver, book)
        account = book.account()
        assert account.missing == account.duplicates == account.damaged == 0
        laws.receiver_adds_up(receiver.statistics(), 300)


# -- F9: a receive buffer below what arrives


@pytest.mark.parametrize("buffer_size", [1, 99, 100, 101, 250, 1000, 2500])
async def test_f9_a_train_that_is_larger_than_the_buffer_is_counted_to_the_datagram(
    buffer_size: int, seed: int
) -> None:
    """The owner had switched GRO on, and the pool's buffers are small: the rest of each train is
    gone, and the counters say exactly how much of it."""
    rng = random.Random(seed)
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp(gro=True) as into:
        pool = PacketBufPool(buffer_size)
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into, pool, gro=False)
        whole, cut, nbytes = 0, 0, 0
        for _ in range(100):
            segments, size = rng.randrange(1, 30), rng.randrange(16, 400)
            tail = rng.randrange(16, size + 1)
            datagrams = [*book.write_many(segments - 1, size=size), book.write(size=tail)]
            nbytes += sum(map(len, datagrams))
            await sender.send(PacketBatch(PacketTrain.pack(datagrams, into.getsockname())))
            batch = await receiver.receive()
            cut += batch.truncated
            packets = [packet for packet, _ in batch]
            assert len(packets) == len(batch)
            book.deliver_all(packets)
            fitting = sum(1 for n in range(1, segments) if n * size <= buffer_size)
            fitting += sum(map(len, datagrams)) <= buffer_size
            whole += fitting
        counters = receiver.statistics()
        account = book.account()
        assert account.delivered == whole
        assert account.damaged == cut == counters.datagrams_truncated
        assert account.written == whole + cut + counters.datagrams_lost_to_truncation
        assert counters.bytes_received + counters.bytes_lost_to_truncation == nbytes
        assert counters.trains_with_unknown_boundaries == 0
        laws.receiver_adds_up(counters, whole + cut)


@pytest.mark.parametrize("size", [999, 1000, 1001, 9000, 65_507])
async def test_f9_a_datagram_that_is_larger_than_the_buffer_is_delivered_cut_and_counted(
    size: int,
) -> None:
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        receiver = UdpBatchReceiver(into, PacketBufPool(1000), gro=False)
        datagrams = book.write_many(10, size=size)
        for datagram in datagrams:
            out.sendto(datagram, into.getsockname())
        packets: list[bytes] = []
        truncated = 0
        while len(packets) < 10:
            batch = await receiver.receive()
            packets += [packet for packet, _ in batch]
            truncated += batch.truncated
        assert packets == [datagram[:1000] for datagram in datagrams]
        counters = receiver.statistics()
        assert truncated == counters.datagrams_truncated == (10 if size > 1000 else 0)
        assert counters.bytes_lost_to_truncation == 10 * max(0, size - 1000)
        assert counters.datagrams_lost_to_truncation == 0


# -- F10: control buffers that are too small


def _destination_options(nbytes: int) -> bytes:
    """An IPv6 destination options header of that size, with one option that nobody knows."""
    # Type 0x1e (RFC 4727, experimental): a receiver that does not know it skips it.
    option = struct.pack("BB", 0x1E, nbytes - 4) + bytes(nbytes - 4)
    return struct.pack("BB", 0, nbytes // 8 - 1) + option


def _sends_options(sock: socket.socket, nbytes: int) -> None:
    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, _destination_options(nbytes))


def _everything_on(sock: socket.socket) -> None:
    """Switch on what a program could want to know beside a datagram, on an IPv6 socket."""
    sock.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVDSTOPTS, 1)
    sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)


@pytest.mark.own_network
@pytest.mark.parametrize("gro", [False, True])
async def test_f10_control_messages_over_the_buffer_never_make_two_datagrams_into_one(
    gro: bool,
) -> None:
    """A stranger's IPv6 options overflow the control buffer: MSG_CTRUNC on every message.

    What is delivered is right, and what cannot be known to be right is counted, to the byte.
    """
    book = ledger.Ledger()
    with sockets.udp("::1") as out, sockets.udp("::1") as into:
        _everything_on(into)
        receiver = UdpBatchReceiver(into, gro=gro, ecn=True, packet_info=True, timestamps=True)
        sender = UdpBatchSender(out)
        # The largest that one option can be; with the other control messages it is too much.
        _sends_options(out, 256)
        sent = 0
        for segments in (1, 2, 10, 40, 1):
            datagrams = book.write_many(segments, size=100)
            await sender.send(PacketBatch(PacketTrain.pack(datagrams, into.getsockname())))
            sent += 100 * segments
            harness.collect_nowait(receiver, book)

        def settled() -> bool:
            counters = receiver.statistics()
            return counters.bytes_received + counters.bytes_with_unknown_boundaries == sent

        await harness.collect(receiver, book, settled)
        counters = receiver.statistics()
        account = book.account()
        assert account.damaged == account.duplicates == account.late == 0
        assert settled(), counters
        assert account.missing * 100 == counters.bytes_with_unknown_boundaries
        if not gro:
            # Without GRO every message is one datagram, whatever was cut beside it.
            assert account.missing == 0
        laws.receiver_adds_up(counters, account.delivered)


@pytest.mark.own_network
async def test_f10_after_cut_control_messages_the_memory_is_lent_to_one_batch_at_a_time() -> None:
    """Messages that are thrown away give their slab back once, not twice."""
    with sockets.udp("::1") as out, sockets.udp("::1") as into, sockets.udp("::1") as plain:
        _everything_on(into)
        pool = PacketBufPool()
        receiver = UdpBatchReceiver(into, pool, ecn=True, packet_info=True, timestamps=True)
        _sends_options(out, 256)
        for _ in range(5):
            out.sendto(b"with options", into.getsockname())
            with pytest.raises(trio.WouldBlock):
                receiver.receive_nowait()
        assert receiver.statistics().trains_with_unknown_boundaries == 5
        held = []
        for number in range(20):
            plain.sendto(b"%02d" % number * 3000, into.getsockname())
            held.append(await receiver.receive())
        assert [bytes(batch.trains[-1].data) for batch in held] == [
            b"%02d" % number * 3000 for number in range(20)
        ]
        # The portable backend copies what comes in, and lends nothing.
        assert pool.statistics().slabs_in_use == (
            20 if choose_backend()[0].backend == "linux" else 0
        )
        del held
        assert pool.statistics().slabs_in_use == 0


@pytest.mark.own_network
async def test_f10_every_option_that_a_socket_can_have_fits_beside_a_train() -> None:
    """ECN, packet information, timestamps, TTL and overflow counts together: nothing is cut."""
    book = ledger.Ledger()
    for host in ("127.0.0.1", "::1"):
        with sockets.udp(host) as out, sockets.udp(host) as into:
            into.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
            into.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
            receiver = UdpBatchReceiver(into, ecn=True, packet_info=True, timestamps=True)
            sender = UdpBatchSender(out)
            flow = len(host)
            data = b"".join(book.write_many(20, flow, 100))
            train = PacketTrain(data, 100, into.getsockname(), ecn=1)
            await sender.send(PacketBatch([train]))
            batch = await receiver.receive()
            assert [len(train) for train in batch.trains] == [20]
            (arrived,) = batch.trains
            assert (arrived.ecn, arrived.local_address, arrived.interface_index) == (1, host, 1)
            assert arrived.timestamp_ns is not None
            book.deliver_all(arrived)
            assert receiver.statistics().trains_with_unknown_boundaries == 0
    laws.l2_clean(book.account())
