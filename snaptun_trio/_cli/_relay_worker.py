# A worker of `relay`: a process that relays, and does nothing that could hold up a datagram. What
# its reports are for, and that there may be other workers, it must not know.
#
#     orders in     a line, which is to stop; the end of the input ends the process
#     reports out   what it has counted, at first, every so often, and last; or {"error"}

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from typing import Any

import attrs
import trio

from .. import UdpRelay
from ._child import say

SHARE_OF_TIME = 0.02  # for reports, at most: with thousands of sessions one takes long
BEGAN = time.monotonic()


def report(relay: UdpRelay) -> None:
    """Say what has been counted. Names are flat: "to_targets.dropped.socket full"."""
    counts = attrs.asdict(relay.statistics())
    for way in ("to_targets", "to_clients"):
        flow = counts.pop(way)
        for name in ("dropped", "asynchronous_errors"):
            flow |= {f"{name}.{reason}": count for reason, count in flow.pop(name).items()}
        counts |= {f"{way}.{name}": count for name, count in flow.items()}
    times = {"worker_seconds": time.monotonic() - BEGAN, "cpu_seconds": time.process_time()}
    say(targets=relay.targets, **times, **counts)


async def work(local: int, interval: float, targets: list[Any], **settings: Any) -> None:  # noqa: ANN401
    """Relay until it is stopped."""
    relay = UdpRelay(local, [tuple(target) for target in targets], **settings)

    async def obey() -> None:
        orders = trio.lowlevel.FdStream(os.dup(0))
        while await orders.receive_some():
            relay.stop()
        os._exit(0)  # it never outlives who gives the orders

    async def run(task_status: trio.TaskStatus[UdpRelay]) -> None:  # noqa: ASYNC910
        try:
            await relay.run(task_status=task_status)
        except (OSError, ValueError) as error:
            say(error=getattr(error, "strerror", None) or str(error))
            os._exit(1)
        nursery.cancel_scope.cancel(reason="the relay has ended")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey)
        await nursery.start(run)
        while True:
            before = time.perf_counter()
            report(relay)
            await trio.sleep(max(interval, (time.perf_counter() - before) / SHARE_OF_TIME))
    os.set_blocking(1, True)  # the last one is worth waiting for
    report(relay)


if __name__ == "__main__":
    # Who has started it tells it when to stop, and a service manager may tell everybody.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.set_blocking(1, False)
    # Each session has a descriptor, and what UdpRelay takes as the default follows the soft limit.
    # That is 1024 in most places, for the sake of programs that use select().
    with suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    trio.run(lambda: work(**json.loads(sys.argv[1])))
