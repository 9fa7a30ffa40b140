# A worker of `relay`: a process that relays, and does nothing that could hold up a datagram. What
# its reports are for, and that there may be other workers, it must not know.
#
#     orders in     {"stop": true}; the end of the input ends the process at once
#     reports out   what it has counted, at first, every so often, and last; or {"error"}

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import trio

from .. import UdpRelay

if TYPE_CHECKING:
    from ._talk import Facts

SHARE_OF_TIME = 0.02  # for reports, at most: with thousands of sessions one takes long


def say(facts: Facts) -> None:
    """Say something, unless nobody listens just now."""
    # What is not over 4096 bytes (PIPE_BUF) goes into a pipe as a whole or not at all.
    with suppress(BlockingIOError, BrokenPipeError):
        os.write(1, json.dumps(facts).encode() + b"\n")


async def work(local: int, interval: float, settings: Facts) -> None:
    """Relay until it is stopped."""
    targets = [tuple(target) for target in settings.pop("targets")]
    relay, began = UdpRelay(local, targets, **settings), time.monotonic()

    async def obey() -> None:
        async for order in trio.lowlevel.FdStream(os.dup(0)):
            if b"stop" in order:
                relay.stop()
        os._exit(0)  # it never outlives who gives the orders

    def report() -> None:
        counts = attrs.asdict(relay.statistics())
        for direction in ("to_targets", "to_clients"):
            flow = counts.pop(direction)
            dropped = {f"dropped.{reason}": n for reason, n in flow.pop("dropped").items()}
            counts |= {f"{direction}.{name}": n for name, n in {**flow, **dropped}.items()}
        times = {"worker_seconds": time.monotonic() - began, "cpu_seconds": time.process_time()}
        say({"targets": relay.targets, **times, **counts})

    async def run(task_status: trio.TaskStatus[UdpRelay]) -> None:
        try:
            await relay.run(task_status=task_status)
        except (OSError, ValueError) as error:
            say({"error": getattr(error, "strerror", None) or str(error)})
            os._exit(1)
        nursery.cancel_scope.cancel(reason="the relay has ended")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey)
        await nursery.start(run)
        while True:
            before = time.perf_counter()
            report()
            await trio.sleep(max(interval, (time.perf_counter() - before) / SHARE_OF_TIME))
    os.set_blocking(1, True)  # the last one is worth waiting for
    report()


if __name__ == "__main__":
    # Who has started it tells it when to stop, and a service manager may tell everybody.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(1, False)
    # Each session has a descriptor, and what UdpRelay takes as the default follows the soft limit.
    # That is 1024 in most places, for the sake of programs that use select().
    with suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    trio.run(lambda: work(**json.loads(sys.argv[1])))
