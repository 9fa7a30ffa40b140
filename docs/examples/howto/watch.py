"""Logs what a server loses, and nothing when it loses nothing."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from snaptun_trio import ServerStatistics, UdpServer

logger = logging.getLogger(__name__)


def losses(now: ServerStatistics) -> Counter[str]:
    """What did not get to a handler, or to a peer, by the place where it was lost."""
    return Counter(
        {
            "buffers dropped by the kernel": now.receiver.buffers_dropped_by_kernel or 0,
            "datagrams dropped, their handlers are too slow": now.datagrams_dropped,
            "datagrams of newcomers for whom there was no room": now.datagrams_shed,
            "datagrams that could not be sent": now.sender.datagrams_failed,
        }
    )


async def watch(server: UdpServer, every: float = 10.0) -> None:
    """Say each so many seconds what was lost meanwhile; beside the server in a nursery."""
    before = losses(server.statistics())
    while True:
        await trio.sleep(every)
        now = losses(server.statistics())
        for what, count in (now - before).items():
            logger.warning("%d %s", count, what)
        before = now
