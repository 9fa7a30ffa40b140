# A worker of `relay`: a process that relays, and does nothing that could hold up a datagram. Its
# settings come as JSON; the first report says that it relays. What reports are for, and that there
# may be other workers, it must not know.
#
#     orders in     {"stop": true}; the end of the input ends the process at once
#     reports out   what it has counted, every so often and at the end; or what went wrong

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import trio

from .. import UdpRelay

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._talk import Facts

SHARE_OF_TIME = 0.02  # for reports, at most: with thousands of sessions one takes long


def report_of(relay: UdpRelay) -> Facts:
    """What a relay has counted, and when."""
    counts = attrs.asdict(relay.statistics())
    return {"at": time.monotonic(), "cpu_seconds": time.process_time(), **counts}


def say(facts: Facts) -> None:
    """Say something, unless nobody listens just now."""
    # What is not over 4096 bytes (PIPE_BUF) goes into a pipe as a whole or not at all.
    with suppress(BlockingIOError, BrokenPipeError):
        os.write(1, json.dumps(facts, default=dict).encode() + b"\n")


def obey(stop: Callable[[], None]) -> None:
    """Take orders, and never outlive who gives them."""
    # Not `sys.stdin`, whose lock must be free if the interpreter ends by itself.
    with open(0, closefd=False, encoding="utf-8") as orders:
        for line in orders:
            if json.loads(line)["stop"]:
                stop()
    os._exit(0)  # whatever the loop is doing


async def work(local: int, interval: float, settings: Facts) -> None:
    """Relay until it is stopped."""
    targets = [tuple(target) for target in settings.pop("targets")]
    relay = UdpRelay(local, targets, **settings)
    soon = trio.lowlevel.current_trio_token().run_sync_soon
    # A service manager may send SIGTERM to every process of a service.
    signal.signal(signal.SIGTERM, lambda *_: soon(relay.stop))
    threading.Thread(target=obey, args=(lambda: soon(relay.stop),), daemon=True).start()

    async def report_on() -> None:
        while True:
            began = time.perf_counter()
            say(report_of(relay) | {"targets": relay.targets})
            took = time.perf_counter() - began
            await trio.sleep(max(interval, took / SHARE_OF_TIME))

    async with trio.open_nursery() as reporting:
        async with trio.open_nursery() as relaying:
            await relaying.start(relay.run)
            reporting.start_soon(report_on)
        reporting.cancel_scope.cancel(reason="the relay has ended")
    os.set_blocking(1, True)  # the last one is worth waiting for
    say(report_of(relay) | {"targets": relay.targets})


def main(arguments: Facts) -> int:
    """Relay, and return the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_blocking(1, False)
    # Each session has a descriptor, and what UdpRelay takes as the default follows the soft limit.
    # That is 1024 in most places, for the sake of programs that use select().
    with suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        trio.run(lambda: work(**arguments))
    except Exception as error:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if not isinstance(error, (OSError, ValueError)):
            raise
        say({"error": getattr(error, "strerror", None) or str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
