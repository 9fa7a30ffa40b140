# What a stranger can write onto the wire: F6 and F7 of the fault matrix.
#
# Raw packets through a tun device: lying lengths, no source port, storms of ICMP, trains that are
# none. Nothing crashes, nothing is switched off, and what is a datagram is delivered as it is.

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import struct
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from snaptun_trio import (
    PacketBatch,
    PacketTrain,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import harness, interposer, laws, ledger, netns, own_process, packets, sockets, tun

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.own_network, pytest.mark.usefixtures("backend")]

HERE, STRANGER = "10.0.0.1", "10.0.0.2"


def test_f6_lies_in_headers_are_dropped_or_delivered_and_never_raise(seed: int) -> None:
    """Wrong lengths and checksums at random: nothing but whole datagrams comes out."""
    rng = random.Random(seed)
    book = ledger.Ledger()
    with (
        tun.Tun("tun0", ip=HERE, peer_ip=STRANGER) as device,
        sockets.udp(HERE) as into,
    ):
        receiver = UdpBatchReceiver(into)
        target = into.getsockname()
        good = 0
        for number in range(3000):
            lie = rng.choice(("none", "udp_length", "ip_length", "checksum", "no checksum"))
            source = (STRANGER, rng.choice((0, 1, 7, 65_535)))
            datagram = book.write(flow=0 if lie in ("none", "no checksum") else 1, size=100)
            match lie:
                case "udp_length":
                    wrong = rng.choice((0, 1, 7, 8, 9, 60, 107, 109, 1000, 65_535))
                    packet = packets.udp_packet(source, target, datagram, udp_length=wrong)
                case "ip_length":
                    wrong = rng.choice((0, 20, 27, 28, 100, 127, 129, 65_535))
                    packet = packets.udp_packet(source, target, datagram, ip_length=wrong)
                case "checksum":
                    packet = packets.udp_packet(source, target, datagram, checksum=number or 1)
                case "no checksum":
                    packet = packets.udp_packet(source, target, datagram, checksum=0)
                    good += 1
                case _:
                    packet = packets.udp_packet(source, target, datagram)
                    good += 1
            device.write(packet)
            if number % 100 == 0:
                harness.collect_nowait(receiver, book)
        harness.collect_nowait(receiver, book)
        account = book.account()
        # By chance one of 65 536 wrong checksums is right, and a wrong length with it.
        assert account.unique - good <= 2
        assert account.duplicates == 0
        laws.receiver_adds_up(receiver.statistics(), account.delivered + account.damaged)


async def test_f6_an_answer_to_port_0_fails_alone_and_gso_stays_on() -> None:
    """A stranger sends from port 0, and Linux delivers it: the echo to it is refused, no other."""
    with (
        tun.Tun("tun0", ip=HERE, peer_ip=STRANGER) as device,
        sockets.udp(HERE) as sock,
    ):
        receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
        ports = [7, 0, 8, 9, 0, 0, 10]
        for port in ports:
            device.write(packets.udp_packet((STRANGER, port), sock.getsockname(), b"%05d" % port))
        batch = await receiver.receive()
        assert [address[1] for _, address in batch if address] == ports
        with pytest.raises(SendBatchError) as caught:
            await sender.send(batch)
        assert {failure.error.errno for failure in caught.value.failures} == {errno.EINVAL}
        assert sum(len(failure.train) for failure in caught.value.failures) == 3
        assert {failure.train.address for failure in caught.value.failures} == {(STRANGER, 0)}
        answered = []
        while (packet := device.read()) is not None:
            if packets.is_udp(packet):
                start = packets.payload_offset(packet)
                answered.append((int.from_bytes(packet[start - 6 : start - 4]), packet[start:]))
        assert answered == [(port, b"%05d" % port) for port in ports if port]
        assert sender.gso
        laws.sender_adds_up(sender.statistics())


def _icmp_unreachable(original: bytes, code: int, kind: int = 3, info: int = 0) -> bytes:
    """What a router (or anybody who knows the two ports) says of that packet."""
    body = struct.pack("!BBHI", kind, code, 0, info) + original[:28]
    checksum = 0xFFFF & ~packets.ones_complement_sum(body)
    body = body[:2] + struct.pack("!H", checksum) + body[4:]
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, 1, 0, original[16:20], original[12:16]
    )
    checksum = 0xFFFF & ~packets.ones_complement_sum(header)
    return header[:10] + struct.pack("!H", checksum) + header[12:] + body


@attrs.frozen
class Storm:
    """A sender that is connected to the stranger, and what forged messages say to it."""

    device: tun.Tun
    sender: UdpBatchSender
    receiver: UdpBatchReceiver
    messages: list[bytes]
    book: ledger.Ledger = attrs.field(factory=ledger.Ledger)

    async def send(self, number: int) -> None:
        """Send three more datagrams, and enter what became of them."""
        batch = harness.batch_of(self.book.write_many(3, size=16 + number % 700), None)
        with harness.refusals_entered(self.book):
            await self.sender.send(batch)
        with pytest.raises(trio.WouldBlock):
            self.receiver.receive_nowait()
        self.book.deliver_all(_sent_into(self.device))

    @property
    def errors(self) -> int:
        """How many errors the sender knows to be about earlier datagrams."""
        return sum(self.sender.statistics().asynchronous_errors.values())

    def check(self) -> None:
        laws.l2_clean(self.book.account())
        laws.sender_adds_up(self.sender.statistics(), self.book.account())
        assert self.sender.gso


@contextlib.contextmanager
def _in_a_storm(recverr: bool) -> Iterator[Storm]:
    with (
        tun.Tun("tun0", ip=HERE, peer_ip=STRANGER) as device,
        sockets.udp(HERE) as sock,
    ):
        if recverr:
            sockets.with_error_queue(sock)
        sock.connect((STRANGER, 7))
        original = packets.udp_packet(sock.getsockname(), (STRANGER, 7), b"x")
        messages = [_icmp_unreachable(original, code) for code in (3, 1, 13, 0, 2)]
        messages.append(_icmp_unreachable(original, 4, info=600))  # Fragmentation needed.
        yield Storm(device, UdpBatchSender(sock), UdpBatchReceiver(sock), messages)


@pytest.mark.parametrize("recverr", [False, True])
async def test_f6_a_storm_of_icmp_messages_refuses_no_datagram(
    recverr: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forged "unreachable" and "too big" for a connected socket, before two of every three tries to
    send: the errors are about the past, so each datagram that is sent meanwhile is sent.

    A hundred thousand messages a second would be as dense.
    """
    tries = itertools.count()

    def before_a_try(message: interposer.Message) -> int:
        if next(tries) % 3 < 2:
            os.write(storm.device.fd, next(forged))
        return 0

    interposer.Interposer(monkeypatch, before_a_try)
    with _in_a_storm(recverr) as storm:
        forged = itertools.cycle(storm.messages)
        for number in range(1500):
            await storm.send(number)
        assert storm.errors > 500
        assert storm.book.account().refused == {}
        storm.check()


@pytest.mark.parametrize("recverr", [False, True])
async def test_f6_the_densest_storm_of_icmp_messages_loses_nothing_unsaid(recverr: bool) -> None:
    """As fast as a process can write, a million a second, a new error is there before any call can
    be made again. Then a datagram may be refused, but it is reported, and none is lost or doubled.
    """
    with _in_a_storm(recverr) as storm:
        storm_process = _blow(storm.device.fd, storm.messages)
        try:
            with trio.fail_after(harness.PATIENCE):
                number = 0
                while number < 1500 or storm.errors <= 10:
                    await storm.send(number)
                    number += 1
        finally:
            own_process.kill(storm_process)
        storm.book.deliver_all(_sent_into(storm.device))
        storm.check()


def _blow(fd: int, packets_: list[bytes]) -> int:
    """Write these packets again and again, in a process of its own, until it is killed."""
    child = own_process.fork()
    if child == 0:
        parent = os.getppid()
        while os.getppid() == parent:
            for packet in packets_:
                with contextlib.suppress(OSError):
                    os.write(fd, packet)
        os._exit(0)
    return child


def _sent_into(device: tun.Tun) -> Iterator[bytes]:
    """The UDP payloads that wait in a tun device."""
    while (packet := device.read()) is not None:
        if packets.is_udp(packet):
            yield packet[packets.payload_offset(packet) :]


async def test_f7_trains_that_lie_are_split_right_or_dropped(seed: int) -> None:
    """GSO packets from outside with every stride and length: no datagram is made of two, none is
    cut in two, and a stride of 0 does not loop for ever."""
    rng = random.Random(seed)
    with (
        tun.Tun("tun0", ip=HERE, peer_ip=STRANGER, virtio_headers=True) as device,
        sockets.udp(HERE) as into,
    ):
        receiver = UdpBatchReceiver(into)
        target = into.getsockname()
        taken = 0
        for number in range(1500):
            stride = rng.choice((0, 1, 2, 16, 100, 1000, 1400, 9000, 65_535))
            segments = rng.choice((1, 2, 3, 64, 65, 127, 128, 129, 200))
            most = min(65_000, max(1, stride * segments - rng.randrange(3)))
            payload = os.urandom(most)
            lie = rng.choice((None, None, None, 8, 50, 60_000))
            flags = rng.choice((packets.VIRTIO_NEEDS_CSUM,) * 5 + (0,))
            packet = packets.gso_packet(
                (STRANGER, 1 + number), target, payload, stride, flags=flags, udp_length=lie
            )
            if device.write(packet) != 0:
                continue
            taken += 1
            try:
                batch = receiver.receive_nowait()
            except trio.WouldBlock:
                continue  # The kernel saw through it.
            delivered = [packet for packet, _ in batch]
            assert b"".join(delivered) == payload[: sum(map(len, delivered))]
            if lie is None:
                assert [len(p) for p in delivered] == _expected(len(payload), stride)
        assert taken > 300
        assert receiver.statistics().datagrams_truncated == 0


def _expected(length: int, stride: int) -> list[int]:
    if not 0 < stride < length:
        return [length]
    whole, tail = divmod(length, stride)
    return [stride] * whole + [tail] * bool(tail)


@pytest.mark.parametrize("segments", [64, 65, 100, 128])
async def test_f7_a_train_of_more_segments_than_we_send_is_received_and_sent_on(
    segments: int,
) -> None:
    """Up to 128 datagrams in one buffer: all are delivered, and all are forwarded."""
    book = ledger.Ledger()
    with (
        tun.Tun("tun0", ip=HERE, peer_ip=STRANGER, virtio_headers=True) as device,
        sockets.udp(HERE) as relay,
        sockets.udp() as out,
        sockets.udp() as into,
    ):
        receiver, sender, last = (
            UdpBatchReceiver(relay),
            UdpBatchSender(out),
            UdpBatchReceiver(into),
        )
        source = (STRANGER, 7)
        for size in (16, 100, 500):
            payload = b"".join(book.write_many(segments, size=size))
            assert device.write(packets.gso_packet(source, relay.getsockname(), payload, size)) == 0
        batch = await receiver.receive()
        assert len(batch) == 3 * segments
        assert {address for _, address in batch} == {source}
        await sender.send(batch.to(into.getsockname()))
        await harness.collect(last, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())


async def test_f7_a_train_of_128_that_a_program_made_is_split_to_what_the_kernel_takes() -> None:
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        for count in (63, 64, 65, 127, 128, 129, 1000, 4000):
            data = b"".join(book.write_many(count))
            await sender.send(PacketBatch([PacketTrain(data, 16, into.getsockname())]))
            await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())


def test_the_namespace_of_these_tests_has_no_way_out() -> None:
    """Strangers are strangers of the test's own network only."""
    assert netns.run("ip route show") == ""
