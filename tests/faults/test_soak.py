# Everything at once, for a long time: F41 of the fault matrix, and proof by volume.
#
#     pytest -m soak tests/faults --datagrams 10000000 --rounds 1000000 --minutes 60 --seed 1
#
# A stream crosses a bad network, is echoed by a pump and crosses it back, while the network changes
# its faults and the sender and the receiver are cancelled again and again. After each cycle every
# stage's account is checked to the datagram. At the end the resident size and the descriptors have
# to be where they were.

from __future__ import annotations

import gc
import random
import time
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from snaptun_trio import (
    BatchPump,
    UdpBatchReceiver,
    UdpBatchSender,
    open_batch_pump,
)

from . import harness, laws, ledger, limits, netns, sockets, tun

if TYPE_CHECKING:
    import socket

HERE, THERE = "10.0.0.1", "10.0.0.2"

CYCLES = [
    tun.Faults(),
    tun.Faults(loss=0.01),
    tun.Faults(loss=0.3),
    tun.Faults(duplication=0.3),
    tun.Faults(reordering=0.3),
    tun.Faults(damage=0.1),
    tun.Faults(loss=0.3, damage=0.1, duplication=0.3, reordering=0.3),
]


@attrs.define
class Totals:
    """What a soak has come to."""

    datagrams: int = 0
    echoed: int = 0
    lost: int = 0
    duplicated: int = 0
    damaged: int = 0
    cancellations: int = 0

    def __str__(self) -> str:
        return (
            f"{self.datagrams} datagrams sent, {self.echoed} came back; {self.lost} lost, "
            f"{self.duplicated} doubled and {self.damaged} damaged by the network; "
            f"{self.cancellations} cancellations; 0 unexplained"
        )


class Network:
    """Two namespaces with a relay between them, an end of ours in one and a pump in the other."""

    def __init__(self) -> None:
        self.far = netns.Namespace()
        self.left = tun.Tun("left", ip=HERE, peer_ip=THERE)
        with self.far:
            self.right = tun.Tun("right", ip=THERE, peer_ip=HERE)
            self.echo_socket = sockets.udp(THERE)
        self.sock: socket.socket = sockets.udp(HERE)
        self.sender = UdpBatchSender(self.sock)
        self.receiver = UdpBatchReceiver(self.sock)

    def kernel_drops(self) -> tuple[int, int, int, int]:
        """Dropped so far: by our kernel and by the far one, and by the two tun devices."""

        def socket_drops() -> int:
            return sockets.snmp("InCsumErrors") + sockets.snmp("RcvbufErrors")

        with self.far:
            far, right = socket_drops(), self.right.dropped()
        return socket_drops(), far, self.left.dropped(), right

    def close(self) -> None:
        self.sock.close()
        self.left.close()
        self.right.close()


async def cycle(
    network: Network, pump: BatchPump, totals: Totals, faults: tun.Faults, count: int, seed: int
) -> None:
    """Send so many datagrams there and back, and account for each of them."""
    rng = random.Random(seed)
    book = ledger.Ledger()
    relay = tun.Relay(network.left, network.right, seed=seed, there=faults, back=faults)
    sender, receiver = network.sender, network.receiver
    target = network.echo_socket.getsockname()
    before, pump_before = network.kernel_drops(), pump.statistics()

    async def read() -> None:
        while True:
            # Cancelled every now and then; what a receive has taken, it returns.
            with trio.move_on_after(rng.random() * 0.002) as scope:
                while True:
                    book.deliver_all(packet for packet, _ in await receiver.receive())
            totals.cancellations += scope.cancelled_caught

    def settled() -> bool:
        relay.flush()
        account, now, echo = book.account(), network.kernel_drops(), pump.statistics()
        here, far, left, right = (a - b for a, b in zip(now, before))
        there, back = relay.there, relay.back
        echoed = echo.datagrams_sent - pump_before.datagrams_sent
        return (
            account.sent == there.taken + left
            and echoed == echo.datagrams_received - pump_before.datagrams_received
            and echoed == there.emitted - far
            and echoed == back.taken + right
            and account.delivered == back.emitted - here
            and account.damaged == 0
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        nursery.start_soon(read)
        for _ in range(count // 100):
            size = rng.randrange(ledger.SMALLEST, 1400)
            batch = harness.batch_of(book.write_many(100, size=size), target)
            submitted = sender.statistics().datagrams_submitted
            while sender.statistics().datagrams_submitted == submitted:
                with trio.move_on_after(rng.random() * 0.001) as scope:
                    await sender.send(batch)
                totals.cancellations += scope.cancelled_caught
            if rng.random() < 0.1:
                await trio.lowlevel.checkpoint()
        await sender.flush()
        with trio.move_on_after(harness.PATIENCE):
            while not settled():
                await wait_all_tasks_blocked(cushion=0.001)
        nursery.cancel_scope.cancel()

    account = book.account()
    echo = pump.statistics()
    here, far, left, right = (a - b for a, b in zip(network.kernel_drops(), before))
    laws.l1_path(account, relay.there, tun_dropped=left)
    echoed = echo.datagrams_sent - pump_before.datagrams_sent
    laws.l4_overflow(sent=relay.there.emitted, delivered=echoed, dropped=far, unit="datagrams")
    laws.l4_overflow(sent=echoed, delivered=relay.back.taken, dropped=right, unit="datagrams")
    laws.l4_overflow(
        sent=relay.back.emitted, delivered=account.delivered, dropped=here, unit="datagrams"
    )
    assert account.damaged == 0, account
    assert echo.datagrams_discarded == echo.datagrams_failed == 0
    laws.sender_adds_up(sender.statistics())
    laws.receiver_adds_up(receiver.statistics())
    totals.datagrams += account.sent
    totals.echoed += account.delivered
    for way in (relay.there, relay.back):
        totals.lost += way.lost
        totals.duplicated += way.duplicated
        totals.damaged += way.damaged


async def soak(seconds: float, most: int, seed: int, count: int = 20_000) -> Totals:
    """Go through the cycles until the time is over, or so many datagrams were sent."""
    network = Network()
    totals = Totals()
    sizes: list[tuple[float, int]] = []
    descriptors = None
    start = time.monotonic()
    number = 0
    async with open_batch_pump(network.echo_socket, handler=lambda batch: batch) as pump:
        while True:
            await cycle(network, pump, totals, CYCLES[number % len(CYCLES)], count, seed + number)
            number += 1
            if number % len(CYCLES) == 0:
                gc.collect()
                sizes.append((time.monotonic() - start, limits.resident_bytes()))
                now = limits.open_descriptors().keys()
                assert descriptors is None or now == descriptors
                descriptors = now
                if time.monotonic() - start >= seconds or totals.datagrams >= most:
                    break
    network.close()
    report(totals, sizes, len(descriptors))
    return totals


def report(totals: Totals, sizes: list[tuple[float, int]], descriptors: int) -> None:
    """Print the figures; the size must not have grown once everything had been used once."""
    print(totals)
    settled = sizes[len(sizes) // 5 :]
    first, last = settled[0], settled[-1]
    grown = last[1] - first[1]
    hours = (last[0] - first[0]) / 3600
    print(
        f"{len(sizes)} rounds of {len(CYCLES)} cycles in {last[0]:.0f} s; "
        f"{descriptors} descriptors throughout; "
        f"resident size {first[1] / 1e6:.1f} MB to {last[1] / 1e6:.1f} MB"
        + (f", {grown / 1e6 / hours:+.2f} MB an hour" if hours else "")
    )
    assert grown < 4_000_000, f"the resident size grew by {grown} bytes"


@pytest.mark.own_network
@pytest.mark.usefixtures("backend")
async def test_f41_all_faults_in_turn_there_and_back(seed: int) -> None:
    """The short form: each kind of fault once, some thousand datagrams each way."""
    totals = await soak(seconds=0, most=0, seed=seed, count=2000)
    assert totals.datagrams == 2000 * len(CYCLES)
    assert totals.cancellations > 0


@pytest.mark.soak
@pytest.mark.own_network
async def test_soak_all_faults_in_turn_there_and_back(minutes: int, seed: int) -> None:
    await soak(seconds=minutes * 60, most=10**12, seed=seed)


@pytest.mark.soak
@pytest.mark.own_network
async def test_soak_a_given_number_over_the_bad_network(datagrams: int, seed: int) -> None:
    """A tenth of the number over the relay, which is a Python program and slow."""
    await soak(seconds=10**9, most=datagrams // 10, seed=seed)


async def exchange(datagrams: int, seed: int) -> int:
    """So many datagrams over loopback, in all sizes and groupings: all arrive, once, in order."""
    rng = random.Random(seed)
    done = 0
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        target = into.getsockname()
        while done < datagrams:
            book = ledger.Ledger()  # A new one now and then, or its own size would be the soak's.
            for _ in range(100):
                size, segments = rng.randrange(16, 200), rng.randrange(1, 65)
                datagrams_ = book.write_many(400, flow=rng.randrange(4), size=size)
                await sender.send(harness.batch_of(datagrams_, target, segments=segments))
                harness.collect_nowait(receiver, book)
            await harness.collect(receiver, book)
            laws.l2_clean(book.account())
            done += book.account().written
        laws.sender_adds_up(sender.statistics())
        laws.receiver_adds_up(receiver.statistics(), done)
    return done


@pytest.mark.usefixtures("backend")
async def test_a_hundred_thousand_datagrams_over_loopback_are_all_accounted_for(seed: int) -> None:
    assert await exchange(100_000, seed) >= 100_000


@pytest.mark.soak
async def test_soak_a_given_number_over_loopback(datagrams: int, seed: int) -> None:
    print(f"{await exchange(datagrams, seed)} datagrams over loopback, 0 unexplained")
