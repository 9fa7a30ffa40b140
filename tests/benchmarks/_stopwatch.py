# A server's own clock: it starts after a warm-up and stops with the last thing that was served.
#
# It is the server's process that counts its CPU time, so that what the client does is in no figure.

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Stopwatch:
    """Counts what was served, and takes the CPU time from the warm-up's end on."""

    warm_up: int
    count: int
    """How many come after the warm-up."""
    served: int = 0
    _started_at: int = -1
    _stopped_at: int = -1
    _cpu_ns: int = 0

    def start(self) -> None:
        """Start now, where there is no warm-up."""
        self._started_at, self._cpu_ns = self.served, time.process_time_ns()

    def tick(self, served: int = 1) -> bool:
        """So many more were served. Whether those were the last."""
        self.served += served
        if self._started_at < 0 and self.served >= self.warm_up:
            self.start()
        if self._stopped_at < 0 and self.served >= self.warm_up + self.count:
            self._stopped_at = self.served
            self._cpu_ns = time.process_time_ns() - self._cpu_ns
            return True
        return False

    @contextmanager
    def counting(self) -> Iterator[None]:
        """What takes far too long has lost something; say how much."""
        try:
            yield
        except TimeoutError as error:
            wanted = self.warm_up + self.count
            raise RuntimeError(f"only {self.served} were served of {wanted}") from error

    @property
    def ns_each(self) -> float:
        """CPU nanoseconds for each that was served. Raises `RuntimeError` if they were not all."""
        if self._stopped_at <= self._started_at or self.served != self.warm_up + self.count:
            raise RuntimeError(f"{self.served} were served of {self.warm_up + self.count}")
        return self._cpu_ns / (self._stopped_at - self._started_at)
