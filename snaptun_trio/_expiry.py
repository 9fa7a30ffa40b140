# Whoever is silent for too long has to go: the clock of a table of peers.

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from ._brief import brief

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._peer_table import PeerT, PeerTable


def check_seconds(name: str, seconds: float, *, zero: bool = False) -> None:
    """Make sure that an argument is a number of seconds over 0, or 0 if that is one of them.

    Raises:
      TypeError: it is no number.
      ValueError: it is too small, or not a number (NaN).
    """
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise TypeError(f"{name} is a number of seconds, not {brief(seconds)}")
    if not (seconds >= 0 if zero else seconds > 0):
        least = ", 0 or more" if zero else " over 0"
        raise ValueError(f"{name} is a number of seconds{least}, not {brief(seconds)}")


async def let_go_of_the_silent(  # noqa: ASYNC910
    table: PeerTable[PeerT], idle_timeout: float, let_go: Callable[[PeerT], object]
) -> None:
    """Let go of everybody in a table who was silent for ``idle_timeout`` seconds, for ever."""
    if idle_timeout == math.inf:
        return  # noqa: ASYNC910
    while True:
        # Nobody is silent for long enough before, whoever comes meanwhile.
        since = min(table.longest_silent(), trio.current_time())
        await trio.sleep_until(since + idle_timeout)
        # What was added and is subtracted again may be less than it was.
        moment = max(since, trio.current_time() - idle_timeout)
        for peer in table.silent_since(moment):
            let_go(peer)
