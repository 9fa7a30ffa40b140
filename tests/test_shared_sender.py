# Any number of tasks on one sender: nothing is stranded, each learns of its own refusals only, and
# who waits for room is let in in turn. Whatever they do is in `test_shared_sender_model`.

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

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


# -- who is told


async def test_among_trains_that_are_brought_together_each_learns_of_its_own(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    """They leave peer by peer, and so in another order than that in which they came."""

    def refuse(first: OutgoingMessage) -> int:
        return -REFUSED if first.address == B else 1

    kernel.sends += [refuse] * 20
    sender.try_queue_train(PacketTrain(b"trains", 3, A))
    async with trio.open_nursery() as tasks:
        for number in range(6):
            tasks.start_soon(_send, sender, number, B if number % 2 else A)
    assert sorted(kernel.payloads) == [b"0", b"2", b"4", b"ins", b"tra"]


async def _send(sender: UdpBatchSender, number: int, address: Address) -> None:
    try:
        await sender.send_packet(b"%d" % number, address)
    except PermissionError:
        assert address == B
    else:
        assert address == A
