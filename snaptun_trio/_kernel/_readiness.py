# Whether the kernel says that a socket is ready, asked without waiting.
#
# What a wake-up was about cannot be told from the wake-up. But right after a try that found nothing
# it can be asked whether the socket is still called ready. This file decides nothing.

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._interface import Socket

# poll(2); Windows has select only, which on sockets is not limited by the descriptor's number.
_POLL = getattr(select, "poll", None)


def readable(sock: Socket) -> bool:
    """Whether a task that waits to read from the socket would be woken at once."""
    if _POLL is None:
        return any(select.select([sock.fileno()], [], [], 0))
    return _asked(sock, select.POLLIN)


def writable(sock: Socket) -> bool:
    """Whether a task that waits to write to the socket would be woken at once."""
    if _POLL is None:
        return any(select.select([], [sock.fileno()], [], 0))
    return _asked(sock, select.POLLOUT)


def _asked(sock: Socket, events: int) -> bool:
    # Errors and hang-ups are reported unasked, here as in the wait itself.
    poll = select.poll()
    poll.register(sock.fileno(), events)
    return bool(poll.poll(0))
