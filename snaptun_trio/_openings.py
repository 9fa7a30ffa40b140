# How many new sessions may be begun now: a bucket of tokens.
#
# Each costs a socket, and strangers decide how many there are. This file must not know what is
# begun, and has no clock: it is told what the time is.

from __future__ import annotations

import math

# A thousand clients that all come at the same moment are let in, whatever the rate.
_AT_ONCE = 1024
# How long to open nothing after the system had no socket for us: to look for a free port where
# there is none takes the kernel a millisecond.
_PAUSE = 0.1  # seconds


class Openings:
    """Admits new sessions, as many as go without harm to those that there are.

    Args:
      rate: how many a second.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._tokens = float(_AT_ONCE)
        self._since = 0.0
        self._paused_until = -math.inf

    def take(self, now: float) -> bool:
        """Whether one more may be opened."""
        if now > self._since:
            self._tokens = min(_AT_ONCE, self._tokens + (now - self._since) * self._rate)
            self._since = now
        if self._tokens < 1 or self.paused(now):
            return False
        self._tokens -= 1
        return True

    def pause(self, now: float) -> None:
        """Admit none for a while."""
        self._tokens = 1.0  # the first one behind it, who finds out whether it is over
        self._since = self._paused_until = now + _PAUSE

    def paused(self, now: float) -> bool:
        """Whether a pause is not over."""
        return now <= self._paused_until
