# A worker of a `UdpRelay` that has several: a process that relays, and does nothing else. What its
# reports are for, and that there may be other workers, it must not know.
#
#     orders in     a line of JSON each: other targets, or null, which is to stop. At the end of the
#                   input it ends, so that it never outlives who gives the orders
#     reports out   a line of JSON each: what it has counted, at first, every so often, and last; or
#                   what went wrong, with which it ends

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
import trio

from ._groups import leaves_of
from ._lines import LineReader
from ._relay import UdpRelay
from ._relay_sums import encoded

if TYPE_CHECKING:
    from trio.abc import SendStream

REPORT_EVERY_SECONDS = 0.5
# How much of the time reports may take. With many thousand sessions one takes long.
SHARE_OF_TIME = 0.02


async def work(local: int, targets: list[list[Any]], **settings: Any) -> None:  # noqa: ANN401
    """Relay on the socket with this descriptor until it is told to stop."""
    relay = UdpRelay(local, map(tuple, targets), **settings)
    orders, reports = (trio.lowlevel.FdStream(os.dup(number)) for number in (0, 1))
    began = time.monotonic()

    async def obey() -> None:
        reader = LineReader(orders)
        while (line := await reader.read()) is not None:
            if (wanted := json.loads(line)) is None:
                relay.stop()
            else:
                await relay.set_targets(map(tuple, wanted))
        nursery.cancel_scope.cancel(reason="who gave the orders has gone")

    async def run(task_status: trio.TaskStatus[UdpRelay]) -> None:  # noqa: ASYNC910
        await relay.run(task_status=task_status)
        nursery.cancel_scope.cancel(reason="the relay has ended")

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        nursery.start_soon(obey)  # not before: a relay that has not begun takes no other targets
        while True:
            took = await report(relay, reports, began)
            await trio.sleep(max(REPORT_EVERY_SECONDS, took / SHARE_OF_TIME))
    await report(relay, reports, began)


async def report(relay: UdpRelay, reports: SendStream, began: float) -> float:
    """Say what was counted; returns how many seconds of work that was.

    It may wait for ever, for whoever listens: the relay goes on meanwhile. A line that is begun is
    ended, whatever is cancelled, or nobody could read the next.
    """
    before = time.perf_counter()
    seconds, cpu = time.monotonic() - began, time.process_time()
    counted = attrs.evolve(
        relay.statistics(), workers=1, worker_seconds=seconds, worker_cpu_seconds=cpu
    )
    line = encoded(counted)
    took = time.perf_counter() - before
    with suppress(trio.BrokenResourceError), trio.CancelScope(shield=True):
        await reports.send_all(line)
    return took  # noqa: ASYNC910  # sending has a checkpoint, or nobody listens


def main(settings: str) -> None:
    """Work, and say what went wrong."""
    import resource  # not on every system

    # Who has started it tells it when to stop, and a service manager may tell everybody.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Each session has a descriptor, and what UdpRelay takes as the default follows the soft limit.
    # That is 1024 in most places, for the sake of programs that use select().
    with suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        trio.run(lambda: work(**json.loads(settings)))
    except Exception as error:
        first = leaves_of(error)[0]
        if not isinstance(first, OSError):
            raise
        os.set_blocking(1, True)
        os.write(1, encoded(first))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(sys.argv[1])
