# What the reports of a relay's workers come to; no worker's death lets a count fall. It must not
# know how workers are run, nor who looks.

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._child import Facts

SILENT_SECONDS = 5.0  # a worker reports each second, and with many thousand sessions a bit later
DIRECTIONS = {"to_targets": "to targets", "to_clients": "to clients"}


class RelayTotals:
    """How a relay stands: the last report of each worker, and in ``sums`` what all that there ever
    were have counted. Other threads may look at that: it is only ever replaced."""

    def __init__(self, workers: int) -> None:
        self.workers, self.restarts, self.stopping = workers, 0, False
        self.reports: dict[int, Counter[str]] = {}
        self._heard: dict[int, float] = {}  # when each of them came
        self.sums, self._gone = Counter[str](), Counter[str]()

    @property
    def ready(self) -> bool:
        """Whether all workers relay, have said so lately, and go on."""
        now = time.monotonic()
        late = [number for number, when in self._heard.items() if now > when + SILENT_SECONDS]
        return len(self.reports) == self.workers and not late and not self.stopping

    def take(self, worker: int, report: Facts | None) -> None:
        """A report has come; or a worker has ended, and what it had not sent is lost."""
        if report is not None:
            self.reports[worker] = Counter(report)
            self._heard[worker] = time.monotonic()
        elif last := self.reports.pop(worker, None):
            del self._heard[worker]
            last["sessions_closed"] += last.pop("sessions", 0)
            for way in DIRECTIONS:
                last[f"{way}.dropped.closed"] += last.pop(f"{way}.datagrams_waiting", 0)
            self._gone.update(last)
        sums = self._gone.copy()
        for last in self.reports.values():
            sums.update(last)
        sums["sessions"] += 0  # there, if there is none
        self.sums = sums
