# A log that strangers cannot fill: of each errno a line now and then.

from __future__ import annotations

import logging
import math

import trio

logger = logging.getLogger("snaptun_trio")

# A dead target, or a flood of questions that cannot be answered, would fill the disk otherwise.
_SECONDS_BETWEEN_LINES = 60.0


class RareLog:
    """Warns, at most once a minute for each errno."""

    def __init__(self) -> None:
        self._next_line: dict[int, float] = {}

    def warn(self, number: int, message: str, *arguments: object) -> None:
        """Log a warning about an error, unless there was one about such an error just now."""
        now = trio.current_time()
        if now >= self._next_line.get(number, -math.inf):
            self._next_line[number] = now + _SECONDS_BETWEEN_LINES
            logger.warning(message, *arguments)
