# A pump whose sender and whose statistics the program uses as well, in the handler or in a task of
# its own.

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import BatchPump, PacketBatch, UdpBatchReceiver, UdpBatchSender

from . import ends
from .test_pump import Sink, Source, batch
from .test_pump_account import DEAD, TARGET, check_law, forwarder, numbered

if TYPE_CHECKING:
    from snaptun_trio._kernel._pieces import OutgoingMessage

    from . import scripted


@pytest.mark.parametrize("raises", [False, True])
async def test_a_handler_that_looks_at_the_account_sees_one_that_adds_up(raises: bool) -> None:
    """What it was called with is in its hands, and waits."""
    waiting: list[int] = []

    def handler(one: PacketBatch) -> PacketBatch:
        check_law(pump.statistics())
        waiting.append(pump.statistics().datagrams_waiting)
        if raises:
            raise LookupError
        return one

    pump = BatchPump(Source(batch(b"a", b"b"), batch(b"c")), Sink(), handler=handler)
    with contextlib.nullcontext() if not raises else pytest.raises(LookupError):
        await pump.run()
    check_law(pump.statistics())
    assert waiting[0] == 2
    assert pump.statistics().datagrams_waiting == 0


async def test_refusals_of_what_a_handler_queues_in_the_sender_are_not_heaped_up(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, caplog: pytest.LogCaptureFixture
) -> None:
    """Each holds a train and its memory, and a pump that is never in arrears runs for ever."""

    def refuse(first: OutgoingMessage) -> int:
        return -errno.EACCES if first.address == DEAD else 1

    def handler(one: PacketBatch) -> PacketBatch:
        pump.sender.try_queue_packet(b"for nobody", DEAD)
        return one

    kernel.receives += [numbered(1) for _ in range(20)]
    kernel.sends += [refuse] * 100
    kernel.waits.always_writable = True
    pump = BatchPump(UdpBatchReceiver(udp()), UdpBatchSender(udp()), handler=handler)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        with trio.fail_after(ends.PATIENCE):
            while pump.statistics().datagrams_sent < 20:
                await trio.testing.wait_all_tasks_blocked()
                kernel.waits.wake()
        pump.sender.try_flush_best_effort()  # raises nothing: all were told of, in the log
        assert len(caplog.records) == 1
        check_law(pump.statistics())
        assert pump.sender.statistics().datagrams_failed == 20
        pump.close()


@pytest.mark.parametrize("left", [0, 2])
async def test_a_program_that_flushes_what_it_queued_does_not_end_the_pump(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, nursery: trio.Nursery, left: int
) -> None:
    """The pump's batch waits for its turn; or a part of it is left, and either goes on with it."""

    async def flush() -> None:
        with contextlib.suppress(trio.BusyResourceError):
            await pump.sender.flush()

    kernel.sends += [left, *[-errno.EAGAIN] * 2] if left else [-errno.EAGAIN] * 2
    pump = forwarder(udp)
    if left:
        kernel.receives.append(numbered(6))
    else:
        pump.sender.try_queue_packet(b"the program's own", DEAD)
        nursery.start_soon(flush)
        await trio.testing.wait_all_tasks_blocked()
    await nursery.start(pump.run)
    while left and pump.statistics().datagrams_waiting != 6 - left:
        await trio.lowlevel.checkpoint()
    if left:
        pump.sender.try_queue_packet(b"the program's own", DEAD)
        nursery.start_soon(flush)
    else:
        kernel.receives.append(numbered(6))
    with trio.fail_after(ends.PATIENCE):
        while pump.statistics().datagrams_sent < 6:
            check_law(pump.statistics())
            await trio.testing.wait_all_tasks_blocked()
            kernel.waits.wake()
    assert pump.sender.is_empty
    assert [len(payload) for payload, to in kernel.sent if to == TARGET] == [1, 2, 3, 4, 5, 6]
    assert [payload for payload, to in kernel.sent if to == DEAD] == [b"the program's own"]
    pump.close()


async def test_a_sender_that_is_closed_with_a_batch_of_the_pumps_in_it_ends_the_pump(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    """What the sender has thrown away is discarded, once."""
    kernel.receives.append(numbered(6))
    kernel.sends += [2, *[-errno.EAGAIN] * 3]
    pump = forwarder(udp)
    with trio.fail_after(ends.PATIENCE), pytest.RaisesGroup(trio.ClosedResourceError):
        async with trio.open_nursery() as nursery:
            await nursery.start(pump.run)
            await trio.testing.wait_all_tasks_blocked()
            pump.sender.close()
            check_law(pump.statistics())
    statistics = pump.statistics()
    check_law(statistics)
    assert (statistics.datagrams_sent, statistics.datagrams_discarded) == (2, 4)
    assert (statistics.batches_sent, statistics.batches_discarded) == (0, 1)
