# A flood of datagrams that the kernel refuses costs little more than one that it takes: F43 and F44
# of the fault matrix.
#
# A stranger chooses how large the datagrams are that a forwarder gets, and from which port. Each is
# refused once, reported once, and costs a few calls. Counted are the calls, and how many one task
# makes before others run; what they cost is measured by the benchmark.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import (
    Address,
    BatchPump,
    PacketBatch,
    PacketTrain,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import harness, interposer, laws, netns, sockets

if TYPE_CHECKING:
    import socket

pytestmark = pytest.mark.usefixtures("backend")

COUNT = 600
# Once many tries to learn what the error is about, then for each datagram: two tries.
MOST_CALLS = 2 * 64 + 3 * COUNT
# 256 refused tries where nothing waits, and one more turn, which may be a storm of its own.
MOST_CALLS_A_STEP = 400


class CallsAStep(trio.abc.Instrument):
    """The most send calls that any task made before another one could run."""

    def __init__(self, counter: interposer.Interposer) -> None:
        self._counter = counter
        self._before = 0
        self.most = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._before = self._counter.calls

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.most = max(self.most, self._counter.calls - self._before)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> interposer.Interposer:
    """Count the calls, and let all of them through to the kernel."""
    return interposer.Interposer(monkeypatch, lambda message: 0)


def oversize(count: int, address: Address | None) -> PacketBatch:
    """Datagrams that are too long for 1500 bytes, no two of which make a train."""
    return PacketBatch(
        [PacketTrain(bytes(1600 + number % 400), 2000, address) for number in range(count)]
    )


async def send_by(call: str, sender: UdpBatchSender, batch: PacketBatch) -> int:
    """Send a batch to its end with one of the calls; returns how many datagrams were refused."""
    refused = 0

    def enter(error: SendBatchError) -> None:
        nonlocal refused
        refused += sum(len(failure.train) for failure in error.failures)
        assert {failure.error.errno for failure in error.failures} <= {
            errno.EMSGSIZE,
            errno.EINVAL,
        }

    if call == "send":
        with pytest.raises(SendBatchError) as caught:
            await sender.send(batch)
        enter(caught.value)
    else:
        try:
            sender.send_nowait(batch)
        except SendBatchError as error:
            enter(error)
        # What was too much for one go is still queued.
        while not sender.is_empty:
            await trio.lowlevel.checkpoint()
            try:
                sender.try_flush_best_effort()
            except SendBatchError as error:
                enter(error)
    return refused


@pytest.mark.own_network
@pytest.mark.parametrize("call", ["send", "send_nowait"])
async def test_f43_oversize_datagrams_of_a_connected_sender_are_refused_once_and_at_once(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    netns.run("ip link set lo mtu 1500")
    counter = count_calls(monkeypatch)
    with sockets.udp() as out, sockets.udp() as into:
        out.connect(into.getsockname())
        sender = UdpBatchSender(out)
        steps = CallsAStep(counter)
        trio.lowlevel.add_instrument(steps)
        assert await send_by(call, sender, oversize(COUNT, None)) == COUNT
        assert sender.statistics().failures == {errno.EMSGSIZE: COUNT}
        laws.sender_adds_up(sender.statistics())
        assert counter.calls <= MOST_CALLS
        assert steps.most <= MOST_CALLS_A_STEP
        # What fits still goes, before and after.
        await sender.send(PacketBatch([PacketTrain(b"fits", 4, None)]))
        assert into.recv(100) == b"fits"


@pytest.mark.own_network
@pytest.mark.parametrize("call", ["send", "send_nowait"])
async def test_f44_datagrams_for_port_0_are_refused_once_and_at_once(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    counter = count_calls(monkeypatch)
    with sockets.udp() as out:
        sender = UdpBatchSender(out)
        steps = CallsAStep(counter)
        trio.lowlevel.add_instrument(steps)
        batch = oversize(COUNT, ("127.0.0.1", 0))
        assert await send_by(call, sender, batch) == COUNT
        assert sender.statistics().failures == {errno.EINVAL: COUNT}
        assert counter.calls <= MOST_CALLS
        assert steps.most <= MOST_CALLS_A_STEP
        assert sender.gso == UdpBatchSender(out).gso


@pytest.mark.own_network
async def test_f43_a_forwarding_pump_counts_oversize_datagrams_and_forwards_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    netns.run("ip link set lo mtu 1500")
    counter = count_calls(monkeypatch)
    with sockets.udp() as source, sockets.udp() as inside:
        with sockets.udp() as out, sockets.udp() as into:
            out.connect(into.getsockname())
            _may_fragment(source)
            pump = BatchPump(
                UdpBatchReceiver(inside), UdpBatchSender(out), handler=lambda batch: batch.to(None)
            )
            steps = CallsAStep(counter)
            trio.lowlevel.add_instrument(steps)
            async with trio.open_nursery() as nursery:
                await nursery.start(pump.run)
                for number in range(COUNT):
                    source.sendto(bytes(1600 + number % 400), inside.getsockname())
                    if number % 10 == 0:
                        source.sendto(b"fits", inside.getsockname())
                    if number % 40 == 39:
                        await _until_received(pump, number + 1 + number // 10 + 1)
                with trio.fail_after(harness.PATIENCE):
                    while pump.statistics().datagrams_sent < COUNT // 10:
                        await trio.lowlevel.checkpoint()
                await pump.drain()
            counters = pump.statistics()
            assert counters.datagrams_received == COUNT + COUNT // 10
            assert counters.failures == {errno.EMSGSIZE: COUNT}
            assert counters.datagrams_sent == COUNT // 10
            assert list(sockets.drain(into)) == [b"fits"] * (COUNT // 10)
            assert counter.calls <= MOST_CALLS + COUNT
            assert steps.most <= MOST_CALLS_A_STEP


async def _until_received(pump: BatchPump, count: int) -> None:
    with trio.fail_after(harness.PATIENCE):
        while pump.statistics().datagrams_received < count:
            await trio.lowlevel.checkpoint()


def _may_fragment(sock: socket.socket) -> None:
    """Let a plain socket send what is over the interface's MTU, in fragments."""
    sock.setsockopt(0, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT: include/uapi/linux/in.h


@pytest.mark.own_network
async def test_f43_a_train_that_is_too_long_is_refused_in_a_few_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not datagram by datagram; its shorter last one fits, and goes."""
    netns.run("ip link set lo mtu 1500")
    counter = count_calls(monkeypatch)
    with sockets.udp() as out, sockets.udp() as into:
        sender = UdpBatchSender(out)
        if not sender.gso:
            pytest.skip("this system does not segment")
        train = PacketTrain(bytes(30 * 2000) + b"tail", 2000, into.getsockname())
        with pytest.raises(SendBatchError) as caught:
            await sender.send(PacketBatch([train]))
        (failure,) = caught.value.failures
        assert failure.train == PacketTrain(bytes(30 * 2000), 2000, into.getsockname())
        assert list(sockets.drain(into)) == [b"tail"]
        assert counter.calls <= 6
        assert sender.gso
