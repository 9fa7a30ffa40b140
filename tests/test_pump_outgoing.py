# What an application puts into `outgoing` by mistake: the pump says so, and still ends.

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from snaptun_trio import BatchPump, PacketBatch

from . import ends
from .test_pump import Sink, Source, batch
from .test_pump_account import check_law

SLIPS: list[Any] = [5, None, b"abc", [(b"packet", ("127.0.0.1", 9))]]


class Stuck(Sink):
    """Takes nothing."""

    async def send(self, value: PacketBatch) -> None:
        await trio.sleep_forever()


@pytest.mark.parametrize("slip", SLIPS)
async def test_what_is_no_batch_is_named(slip: Any) -> None:  # noqa: ANN401
    sink = Sink()
    pump = BatchPump(Source(ends=False), sink)
    await pump.outgoing.send(batch(b"good"))
    await pump.outgoing.send(slip)
    with pytest.raises(TypeError, match="outgoing takes PacketBatches, not"):
        await pump.run()
    check_law(pump.statistics())
    assert (pump.statistics().datagrams_added, pump.statistics().datagrams_sent) == (1, 1)


@pytest.mark.parametrize("slip", SLIPS)
async def test_a_pump_that_is_closed_before_it_meets_what_is_no_batch_ends(
    nursery: trio.Nursery,
    slip: Any,  # noqa: ANN401
) -> None:
    """Whoever waits for its end is told, and whatever else waits to be sent is counted."""
    pump = BatchPump(Source(ends=False), Stuck(), capacity=3)
    await nursery.start(pump.run)
    for one in (batch(b"under way"), slip, batch(b"waits")):
        await pump.outgoing.send(one)
        await trio.testing.wait_all_tasks_blocked()
    pump.close()
    with trio.fail_after(ends.PATIENCE):
        await pump.drain()
    check_law(pump.statistics())
    assert (pump.statistics().datagrams_added, pump.statistics().datagrams_discarded) == (2, 2)
    with pytest.raises(trio.ClosedResourceError):
        pump.outgoing.send_nowait(batch(b"late"))
