# What the reports of a relay's workers come to; no worker's death lets a count fall. It must not
# know how workers are run, nor who looks.

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._child import Facts

DIRECTIONS = {"to_targets": "to targets", "to_clients": "to clients"}


class RelayTotals:
    """How a relay stands: the last report of each worker, and in ``sums`` what all that there ever
    were have counted. Other threads may look at that: it is only ever replaced."""

    def __init__(self, workers: int) -> None:
        self.workers, self.restarts, self.stopping = workers, 0, False
        self.reports: dict[int, Counter[str]] = {}
        self.sums, self._gone = Counter[str](), Counter[str]()

    @property
    def ready(self) -> bool:
        """Whether all workers relay, and go on."""
        return len(self.reports) == self.workers and not self.stopping

    def take(self, worker: int, report: Facts | None) -> None:
        """A report has come; or a worker has ended, and what it had not sent is lost."""
        if report is not None:
            self.reports[worker] = Counter(report)
        elif last := self.reports.pop(worker, None):
            last["sessions_closed"] += last.pop("sessions", 0)
            for way in DIRECTIONS:
                last[f"{way}.dropped.closed"] += last.pop(f"{way}.datagrams_waiting", 0)
            self._gone.update(last)
        sums = self._gone.copy()
        for last in self.reports.values():
            sums.update(last)
        self.sums = sums
