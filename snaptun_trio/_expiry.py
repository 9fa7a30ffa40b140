# Whoever is silent for too long has to go: the clock of a table of peers.

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from ._brief import brief

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._peer_table import PeerT, PeerTable


def check_idle_timeout(idle_timeout: float) -> None:
    """Make sure that this is a number of seconds over 0.

    Raises:
      TypeError: it is no number.
      ValueError: it is not over 0.
    """
    if not isinstance(idle_timeout, int | float) or isinstance(idle_timeout, bool):
        raise TypeError(f"idle_timeout is a number of seconds, not {brief(idle_timeout)}")
    if not idle_timeout > 0:  # nor is it not a number
        raise ValueError(f"idle_timeout is a number of seconds over 0, not {brief(idle_timeout)}")


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
