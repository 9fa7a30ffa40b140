# Any number of tasks on one sender: whatever they do, and in whatever order they run, nothing is
# stranded, nothing goes twice, each learns of its own refusals only, and each keeps its order.

from __future__ import annotations

import contextlib
import errno
import random
import sys
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from snaptun_trio import (
    Address,
    PacketBatch,
    PacketTooLargeError,
    PacketTrain,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import ends, scripted
from .test_sender import check_law

if TYPE_CHECKING:
    from collections.abc import Callable

    from snaptun_trio._kernel._pieces import OutgoingMessage

A: Address = ("127.0.0.1", 9)
B: Address = ("127.0.0.2", 9)
PEERS: list[Address] = [A, B, ("127.0.0.3", 9)]
REFUSED = errno.EACCES


@pytest.fixture
def sender(kernel: scripted.ScriptedKernel, udp: ends.MakeSocket) -> UdpBatchSender:
    return UdpBatchSender(udp(), batch_size=8)


# -- send_packet


@pytest.mark.core
async def test_what_many_tasks_send_in_one_turn_leaves_together(
    pair: ends.Pair, nursery: trio.Nursery
) -> None:
    packets = ends.numbered(12, 100)
    async with trio.open_nursery() as tasks:
        for packet in packets:
            tasks.start_soon(pair.sender.send_packet, packet, pair.target)
    statistics = pair.sender.statistics()
    assert (statistics.datagrams_sent, statistics.datagrams_queued) == (12, 0)
    if pair.sender._io.backend == "linux":
        assert statistics.send_calls == 1
    assert sorted(ends.payloads(pair.receiver, 12)) == sorted(packets)
    check_law(pair.sender)


async def test_a_packet_is_sent_when_send_packet_returns(pair: ends.Pair) -> None:
    for number in range(3):
        await pair.sender.send_packet(b"%d" % number, pair.target)
        assert pair.sender.is_empty
        assert pair.sender.statistics().datagrams_sent == number + 1
    assert ends.payloads(pair.receiver, 3) == [b"0", b"1", b"2"]


async def test_send_packet_always_is_a_checkpoint(sender: UdpBatchSender) -> None:
    with trio.testing.assert_checkpoints():
        await sender.send_packet(b"x", A)
    with trio.CancelScope() as scope:
        scope.cancel()
        await sender.send_packet(b"y", A)
    assert scope.cancelled_caught
    assert sender.statistics().datagrams_submitted == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((b"x" * 101, A), PacketTooLargeError),
        (("text", A), TypeError),
        ((b"x", ("localhost", 9)), ValueError),
        ((b"x", ("::1", 9)), ValueError),
        ((b"x", "127.0.0.1"), TypeError),
    ],
)
async def test_what_cannot_be_sent_is_refused_before_anything_is_queued(
    kernel: scripted.ScriptedKernel,
    udp: ends.MakeSocket,
    arguments: tuple[Any, ...],
    error: type[Exception],
) -> None:
    sender = UdpBatchSender(udp(), batch_size=1, max_packet_size=100)
    sender.try_queue_packet(b"fills the queue", A)
    with pytest.raises(error):
        await sender.send_packet(*arguments)
    assert kernel.calls == []
    assert sender.statistics().datagrams_submitted == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"ecn": 4}, ValueError),
        ({"ecn": "1"}, TypeError),
        ({"local_address": "::1"}, ValueError),
        ({"local_address": 7}, TypeError),
        ({"local_address": "localhost"}, ValueError),
    ],
)
async def test_how_a_packet_is_to_leave_is_checked(
    sender: UdpBatchSender, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await sender.send_packet(b"x", A, **arguments)
    with pytest.raises(error):
        sender.try_queue_packet(b"x", A, **arguments)
    assert sender.statistics().datagrams_submitted == 0


async def test_a_packet_leaves_with_its_marks_and_from_where_it_is_told_to(
    backend: str, udp: ends.MakeSocket
) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux reports it")
    receiver = UdpBatchReceiver(udp(), ecn=True, packet_info=True)
    sender = UdpBatchSender(udp("0.0.0.0"))
    target = receiver.local_address
    await sender.send_packet(b"marked", target, ecn=2, local_address="127.0.0.9")
    (train,) = (await receiver.receive()).trains
    assert (train.ecn, train.address) == (2, ("127.0.0.9", sender.local_address[1]))
    sender.try_queue_packet(b"queued", target, ecn=1, local_address="127.0.0.8")
    sender.try_queue_packet(b"plain", target)
    await sender.flush()
    trains = ends.collect_trains(receiver, 2)
    port = sender.local_address[1]
    assert {(bytes(t.data), t.ecn, t.address) for t in trains} == {
        (b"queued", 1, ("127.0.0.8", port)),
        (b"plain", 0, ("127.0.0.1", port)),
    }


async def test_closing_wakes_everybody(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    """The one that waits for the socket, those that wait for it, and those before a full queue."""
    kernel.sends += [-errno.EAGAIN] * 50
    woken = 0

    async def wait(call: Callable[..., Any], *arguments: object) -> None:
        nonlocal woken
        with pytest.raises(trio.ClosedResourceError, match="sender is closed"):
            await call(*arguments)
        woken += 1

    async with trio.open_nursery() as tasks:
        for number in range(12):
            tasks.start_soon(wait, sender.send_packet, b"%d" % number, A)
        tasks.start_soon(wait, sender.send, PacketBatch([PacketTrain(b"batch", 5, A)]))
        await trio.testing.wait_all_tasks_blocked()
        tasks.start_soon(wait, sender.flush)
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.waits.waiting == 1
        sender.close()
    assert woken == 14
    assert sender.statistics().datagrams_discarded == sender.statistics().datagrams_submitted > 0
    check_law(sender)


class Closer(trio.abc.Instrument):
    """Closes a sender as soon as a task has queued something and lets others run."""

    def __init__(self, sender: UdpBatchSender) -> None:
        self._sender = sender

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self._sender.is_empty:
            self._sender.close()


@pytest.mark.parametrize("which", ["packet", "batch", "flush"])
async def test_a_task_that_runs_only_after_the_closing_is_told(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, which: str
) -> None:
    """It had queued, and did not come round before the sender was closed."""
    closer = Closer(sender)
    trio.lowlevel.add_instrument(closer)
    try:
        with pytest.raises(trio.ClosedResourceError):
            if which == "packet":
                await sender.send_packet(b"x", A)
            elif which == "batch":
                await sender.send(PacketBatch([PacketTrain(b"x", 1, A)]))
            else:
                sender.try_queue_packet(b"x", A)
                await sender.flush()
    finally:
        trio.lowlevel.remove_instrument(closer)
    assert kernel.sent == []
    assert sender.statistics().datagrams_discarded == 1
    check_law(sender)


async def test_each_learns_of_its_own_refusals_only(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    def refuse(first: OutgoingMessage) -> int:
        return -REFUSED if first.address == B else 1

    kernel.sends += [refuse] * 200
    good = 0

    async def fine(call: Callable[..., Any], *arguments: object) -> None:
        nonlocal good
        await call(*arguments)
        good += 1

    async def refused(call: Callable[..., Any], *arguments: object) -> None:
        nonlocal good
        with pytest.raises((PermissionError, SendBatchError)) as caught:
            await call(*arguments)
        if isinstance(caught.value, SendBatchError):
            assert [len(failure.train) for failure in caught.value.failures] == [1]
        else:
            assert getattr(caught.value, "errno", None) == REFUSED
        good += 1

    async with trio.open_nursery() as tasks:
        for number in range(3):
            packet = b"%d" % number
            tasks.start_soon(fine, sender.send_packet, packet, A)
            tasks.start_soon(refused, sender.send_packet, packet, B)
            tasks.start_soon(fine, sender.send, PacketBatch([PacketTrain(packet, 1, A)]))
            both = PacketBatch([PacketTrain(packet, 1, A), PacketTrain(packet, 1, B)])
            tasks.start_soon(refused, sender.send, both)
            tasks.start_soon(fine, sender.flush)
    assert good == 15
    sender.try_queue_packet(b"nobody waits for this", B)
    with pytest.raises(SendBatchError, match="1 datagram"):
        await sender.flush()
    await sender.flush()
    check_law(sender)


async def test_a_refusal_after_its_task_was_cancelled_is_told_by_the_next_flush(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    kernel.sends += [-errno.EAGAIN, *[-REFUSED] * 4]
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(sender.send_packet, b"x", A)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert sender.statistics().datagrams_queued == 1
    with pytest.raises(SendBatchError, match="1 datagram"):
        await sender.flush()
    assert sender.statistics().datagrams_failed == 1
    check_law(sender)


async def test_refusals_that_nobody_asks_for_are_forgotten_and_stay_counted(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    rounds = 1500
    kernel.sends += [-REFUSED] * (2 * rounds)
    for _ in range(rounds):
        sender.try_queue_packet(b"x", A)
        sender._shared.now()
    with pytest.raises(SendBatchError) as caught:
        await sender.flush()
    assert len(caught.value.failures) == 1024
    assert sender.statistics().datagrams_failed == rounds
    check_law(sender)


async def test_one_that_is_cancelled_hands_the_socket_on(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    kernel.sends += [-errno.EAGAIN] * 2
    scopes: list[trio.CancelScope] = []

    async def send(packet: bytes) -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await sender.send_packet(packet, A)

    async with trio.open_nursery() as tasks:
        for number in range(3):
            tasks.start_soon(send, b"%d" % number)
            await trio.testing.wait_all_tasks_blocked()
        assert kernel.waits.waiting == 1
        scopes[0].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.waits.waiting == 1
        kernel.waits.wake()
    assert kernel.payloads == [b"0", b"1", b"2"]  # the cancelled one's goes with the next
    assert [scope.cancelled_caught for scope in scopes] == [True, False, False]


async def test_who_waits_for_room_is_let_in_in_turn(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    sender = UdpBatchSender(udp(), batch_size=1)
    kernel.sends += [-errno.EAGAIN]
    async with trio.open_nursery() as tasks:
        for number in range(6):
            tasks.start_soon(sender.send_packet, b"%d" % number, PEERS[number % 3])
            await trio.testing.wait_all_tasks_blocked()
        assert sender.statistics().datagrams_submitted == 1
        kernel.waits.wake()
    assert kernel.payloads == [b"%d" % number for number in range(6)]


# -- small batches of many tasks


def small(number: int, address: Address = A) -> PacketBatch:
    """Two datagrams of one task."""
    trains = [PacketTrain(b"%d%s" % (number, part), 2, address) for part in (b"a", b"b")]
    return PacketBatch(trains)


@pytest.mark.core
async def test_small_batches_of_many_tasks_leave_together(pair: ends.Pair) -> None:
    async with trio.open_nursery() as tasks:
        for number in range(7):
            tasks.start_soon(pair.sender.send, small(number, pair.target))
    statistics = pair.sender.statistics()
    assert statistics.datagrams_sent == 14
    if pair.sender._io.backend == "linux":
        assert statistics.send_calls == 2  # the first one, which found nothing queued, as it is
    expected = [b"%d%s" % (number, part) for number in range(7) for part in (b"a", b"b")]
    found = ends.payloads(pair.receiver, 14)
    assert sorted(found) == expected
    assert all(found.index(b"%da" % n) < found.index(b"%db" % n) for n in range(7))
    check_law(pair.sender)


async def test_batches_for_one_peer_and_for_the_connected_one_keep_whom_they_are_for(
    backend: str, udp: ends.MakeSocket
) -> None:
    """Also what was received, and what has marks, beside what a program made."""
    source, first, second, out = udp(), udp(), udp(), udp()
    inside = UdpBatchReceiver(udp())
    out.connect(ends.address_of(first))
    sender = UdpBatchSender(out)
    source.sendto(b"received", inside.socket.getsockname())
    (received,) = ends.collect_batches(inside, 1)
    marked = PacketBatch([PacketTrain(b"marked", 6, ends.address_of(second), ecn=1)])
    calls = [
        received.to(ends.address_of(second)),
        small(1).to(None),
        marked,
        marked.to(None),
        received.to(ends.address_of(first)),
        small(2, ends.address_of(second)),
    ]
    async with trio.open_nursery() as tasks:
        for batch in calls:
            tasks.start_soon(sender.send, batch)
    to_second = [b"2a", b"2b", b"marked", b"received"]
    assert sorted(ends.read_plainly(second, 4)) == to_second
    assert sorted(ends.read_plainly(first, 4)) == [b"1a", b"1b", b"marked", b"received"]
    check_law(sender)


# -- the model


@attrs.frozen
class Step:
    """One call of one task."""

    call: str
    peers: list[int]
    cancel_after: int | None
    """After how many turns of the scheduler the call is cancelled, `None` for never."""
    delay: int
    """How many turns of the scheduler the task waits first."""


STEPS = st.builds(
    Step,
    st.sampled_from(["packet", "packet", "batch", "queue", "flush", "now"]),
    st.lists(st.integers(0, 2), min_size=1, max_size=3),
    st.sampled_from([None, None, None, 0, 1, 2, 5]),
    st.integers(0, 3),
)


def left(trains: list[PacketTrain]) -> set[bytes]:
    """What a call did not submit, or was refused."""
    return {bytes(train.data) for train in trains}


class Model:
    """Tasks on one sender, and what each of them was told."""

    def __init__(self, sender: UdpBatchSender, kernel: scripted.ScriptedKernel) -> None:
        self.sender = sender
        self.kernel = kernel
        self.returned: set[bytes] = set()
        self.refused: Counter[bytes] = Counter()
        self.order: defaultdict[tuple[int, Address | None], list[bytes]] = defaultdict(list)

    async def tick(self, turns: int, scope: trio.CancelScope) -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async def task(self, number: int, steps: list[Step]) -> None:
        for index, step in enumerate(steps):
            for _ in range(step.delay):
                await trio.lowlevel.checkpoint()
            packets = [b"%d.%d.%d" % (number, index, n) for n in range(len(step.peers))]
            await self.step(number, step, packets)

    async def step(self, number: int, step: Step, packets: list[bytes]) -> None:
        trains = [
            PacketTrain(packet, len(packet), PEERS[peer])
            for packet, peer in zip(packets, step.peers)
        ]
        trains = {"packet": trains[:1], "batch": trains, "queue": trains}.get(step.call, [])
        for train in trains:
            self.order[number, train.address].append(bytes(train.data))
        own = {bytes(train.data) for train in trains}
        async with trio.open_nursery() as helper:
            with trio.CancelScope() as scope:
                if step.cancel_after is not None:
                    helper.start_soon(self.tick, step.cancel_after, scope)
                try:
                    await self.call(step, trains)
                    self.returned |= own - left(trains)
                except PermissionError:
                    self.told(own, own if step.call == "packet" else set())
                except SendBatchError as error:
                    told = {bytes(failure.train.data) for failure in error.failures}
                    self.told(told, own if step.call == "batch" else None)
                    self.returned |= own - told - (left(trains) if step.call == "queue" else set())
                except trio.WouldBlock:
                    pass
                helper.cancel_scope.cancel()

    async def call(self, step: Step, trains: list[PacketTrain]) -> None:
        match step.call:
            case "packet":
                await self.sender.send_packet(bytes(trains[0].data), trains[0].address)
                trains.clear()
            case "batch":
                await self.sender.send(PacketBatch(tuple(trains)))
                trains.clear()
            case "queue":
                while trains and not self.sender.is_full:
                    train = trains.pop(0)
                    self.sender.try_queue_packet(bytes(train.data), train.address)
                await self.sender.flush()
            case "now":
                await trio.lowlevel.checkpoint()
                self.sender.try_flush_best_effort()
            case _:
                await self.sender.flush()

    def told(self, refused: set[bytes], own: set[bytes] | None) -> None:
        self.refused.update(refused)
        assert own is None or refused <= own, "told of another task's refusal"


@settings(max_examples=60)
@given(
    st.lists(st.lists(STEPS, min_size=1, max_size=4), min_size=1, max_size=6),
    st.lists(st.sampled_from([1, 2, 9, -errno.EAGAIN, -errno.EAGAIN, -REFUSED]), max_size=30),
    st.integers(0, 2**32),
)
def test_any_tasks_in_any_order(tasks: list[list[Step]], answers: list[int], seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(ends.bound_socket()) as sock:
        kernel = scripted.install(patch)
        chance = random.Random(seed)
        # Which of the tasks that can run runs first is trio's own random choice.
        patch.setattr("trio._core._run._r", chance)
        kernel.sends += answers
        kernel.waits.always_writable = True
        sender = UdpBatchSender(sock, batch_size=4)
        model = Model(sender, kernel)

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                for number, steps in enumerate(tasks):
                    nursery.start_soon(model.task, number, steps)
            try:  # what cancelled calls left
                await sender.flush()
            except SendBatchError as error:
                model.told({bytes(failure.train.data) for failure in error.failures}, None)

        trio.run(main)
        check_law(sender)
        assert sender.is_empty
        sent = Counter(kernel.payloads)
        assert set(sent.values()) <= {1}, "sent twice"
        assert set(model.refused.values()) <= {1}, "told twice"
        assert not sent.keys() & model.refused.keys(), "sent, and told to be refused"
        assert model.returned <= sent.keys() | model.refused.keys(), "returned, and never sent"
        assert sender.statistics().datagrams_failed == model.refused.total()
        for (_, address), packets in model.order.items():
            went = [payload for payload, peer in kernel.sent if peer == address]
            own = [packet for packet in went if packet in packets]
            assert own == [packet for packet in packets if packet in own], "out of order"
