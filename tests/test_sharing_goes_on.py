# Many tasks wait for one sender, and something happens that is not its usual round: a pump takes
# its batch back, memory lacks, a log handler calls the sender. Nobody may wait for ever.

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, NoReturn

import pytest
import trio
import trio.testing

from snaptun_trio import Address, PacketBatch, PacketTrain, UdpBatchSender
from snaptun_trio._outlet import SenderOutlet

from .test_sender import check_law

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from snaptun_trio._gathering import Gathering, Item

    from . import ends, scripted

A: Address = ("127.0.0.1", 9)
FULL = -errno.EAGAIN


@pytest.fixture
def sender(kernel: scripted.ScriptedKernel, udp: ends.MakeSocket) -> UdpBatchSender:
    return UdpBatchSender(udp(), batch_size=1)


# -- a pump takes back what it gave


async def pump(sender: UdpBatchSender, scope: trio.CancelScope) -> None:
    """What a pump does that is cancelled: it discards what it had given to the sender."""
    with scope:
        await SenderOutlet(sender).send([PacketBatch([PacketTrain(b"taken back", 10, A)])])


@pytest.mark.parametrize("sends", [True, False])
async def test_all_who_wait_for_what_a_pump_takes_back_need_not_wait_any_more(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, sends: bool
) -> None:
    """Whether it was the pump that sent for all, or another task."""
    kernel.sends += [FULL] * 9
    scope = trio.CancelScope()
    flushed = 0

    async def flush() -> None:
        nonlocal flushed
        await sender.flush()
        flushed += 1

    async with trio.open_nursery() as tasks:
        if not sends:
            sender.try_queue_packet(b"first", A)
            tasks.start_soon(sender.flush)
            await trio.testing.wait_all_tasks_blocked()
        tasks.start_soon(pump, sender, scope)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            tasks.start_soon(flush)
        await trio.testing.wait_all_tasks_blocked()
        assert flushed == 0
        scope.cancel()
        kernel.sends.clear()
        kernel.waits.wake()
    assert flushed == 3
    check_law(sender)


async def test_what_a_pump_takes_back_makes_room(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    kernel.sends += [FULL]
    scope = trio.CancelScope()
    async with trio.open_nursery() as tasks:
        tasks.start_soon(pump, sender, scope)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(3):
            tasks.start_soon(sender.send_packet, b"%d" % number, A)
            await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
    assert kernel.payloads == [b"0", b"1", b"2"]
    check_law(sender)


# -- a batch of nothing


async def test_a_batch_of_nothing_that_finds_others_in_the_queue_is_not_taken_out_of_it(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    """The socket takes what was there; then it is full, and who waited for room is in the queue."""
    kernel.sends += [FULL, 1, FULL]
    async with trio.open_nursery() as tasks:
        for number in range(3):
            tasks.start_soon(sender.send_packet, b"%d" % number, A)
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            sender.send_nowait(PacketBatch(()))
        kernel.waits.wake()
    assert kernel.payloads == [b"0", b"1", b"2"]
    check_law(sender)


# -- no memory to wait with


def _no_memory(_: object) -> NoReturn:
    raise MemoryError


@pytest.mark.parametrize("for_room", [True, False])
async def test_who_has_no_memory_to_wait_is_forgotten(
    sender: UdpBatchSender,
    kernel: scripted.ScriptedKernel,
    monkeypatch: pytest.MonkeyPatch,
    for_room: bool,
) -> None:
    kernel.sends += [FULL]
    async with trio.open_nursery() as tasks:
        tasks.start_soon(sender.send_packet, b"0", A)
        await trio.testing.wait_all_tasks_blocked()
        with monkeypatch.context() as patch:
            patch.setattr(trio.lowlevel, "wait_task_rescheduled", _no_memory)
            with pytest.raises(MemoryError):
                await (sender.send_packet(b"never", A) if for_room else sender.flush())
        tasks.start_soon(sender.send_packet, b"1", A)
        await trio.testing.wait_all_tasks_blocked()
        kernel.waits.wake()
    assert kernel.payloads == [b"0", b"1"]
    assert sender._shared.has_room()
    check_law(sender)


async def test_who_cannot_be_let_in_is_told_and_the_next_one_is_let_in(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.sends += [FULL]
    put_all = sender._queue.put_all
    told = 0

    def lacking(items: list[Item]) -> tuple[Gathering, range]:
        if items[0][0] == b"never":
            raise MemoryError
        return put_all(items)

    async def never() -> None:
        nonlocal told
        with pytest.raises(MemoryError):
            await sender.send_packet(b"never", A)
        told += 1

    async with trio.open_nursery() as tasks:
        for number in range(2):  # the first one's is in the queue, the second one sends for all
            tasks.start_soon(sender.send_packet, b"%d" % number, A)
            await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(sender._queue, "put_all", lacking)
        tasks.start_soon(never)
        await trio.testing.wait_all_tasks_blocked()
        tasks.start_soon(sender.send_packet, b"2", A)
        await trio.testing.wait_all_tasks_blocked()
        kernel.waits.wake()
    assert (told, kernel.payloads) == (1, [b"0", b"1", b"2"])
    check_law(sender)


# -- bounds


async def test_nobody_is_let_in_beyond_the_bound(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    kernel.sends += [FULL] * 3
    sender.try_queue_packet(b"0", A)
    async with trio.open_nursery() as tasks:
        for number in range(1, 4):
            tasks.start_soon(sender.send_packet, b"%d" % number, A)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            assert sender.statistics().datagrams_queued == 1
            kernel.waits.wake()
    assert sorted(kernel.payloads) == [b"0", b"1", b"2", b"3"]


def test_a_closed_sender_keeps_no_packet(sender: UdpBatchSender) -> None:
    packet = bytearray(b"x")
    sender.try_queue_packet(packet, A)
    sender.close()
    packet.append(0)  # a BufferError, while something looks at it


# -- a log handler that calls the sender


class Calling(logging.Handler):
    """A log handler that does something when it is told of anything."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call
        self.called = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.called += 1
        self._call()


def _queue_and_flush(sender: UdpBatchSender) -> None:
    if not sender.is_full:
        sender.try_queue_packet(b"of the handler", A)
    sender.try_flush_best_effort()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("snaptun_trio")
    before = list(logger.handlers)
    yield logger
    logger.handlers[:] = before


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
@pytest.mark.parametrize(
    "call", [UdpBatchSender.close, UdpBatchSender.try_flush_best_effort, _queue_and_flush]
)
@pytest.mark.parametrize("packets", [2, 5, 20])
async def test_a_log_handler_may_call_the_sender(
    sender: UdpBatchSender,
    kernel: scripted.ScriptedKernel,
    logger: logging.Logger,
    call: Callable[[UdpBatchSender], object],
    number: int,
    packets: int,
) -> None:
    handler = Calling(lambda: call(sender))
    logger.addHandler(handler)
    kernel.sends += [-number, -number]
    train = PacketTrain(b"%02d" * packets % tuple(range(packets)), 2, A)
    closes = call is UdpBatchSender.close
    try:
        await sender.send(PacketBatch([train, train]))
    except trio.ClosedResourceError:
        assert closes
    assert handler.called == 1
    statistics = sender.statistics()
    assert statistics.gso_fallbacks == 1
    assert statistics.datagrams_queued == 0
    assert statistics.datagrams_sent == len(kernel.payloads)
    own = [one for one in kernel.payloads if len(one) == 2]
    assert own == (list(train) * 2)[: len(own) if closes else None]
    check_law(sender)
