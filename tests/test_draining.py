# An idle pump that is drained: the wait of its sending task ends, and so does the pump.
#
# That a task was woken is looked for once all tasks are blocked again, so that one that is not
# woken is a failure and no hang. What a drain sends is in `test_pump.py`.

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import BatchPump, UdpBatchReceiver, UdpBatchSender

if TYPE_CHECKING:
    from . import ends


@pytest.mark.core
@pytest.mark.parametrize("handler", [False, True])
async def test_a_drain_wakes_a_pump_that_has_nothing_to_do(
    backend: str, udp: ends.MakeSocket, nursery: trio.Nursery, handler: bool
) -> None:
    sock = udp()
    pump = BatchPump(
        UdpBatchReceiver(sock), UdpBatchSender(sock), handler=(lambda one: one) if handler else None
    )
    ended: list[str] = []

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await pump.run(task_status=task_status)
        ended.append("run")

    async def drain() -> None:
        await pump.drain()
        ended.append("drain")

    await nursery.start(run)
    await trio.testing.wait_all_tasks_blocked()
    assert ended == []
    nursery.start_soon(drain)
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(ended) == ["drain", "run"]
