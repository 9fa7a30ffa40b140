# What the reports of a relay's workers come to; no worker's death lets a count fall. It must not
# know how workers are run, nor who looks: other threads may, so `sums` is only ever replaced.

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._talk import Facts

DIRECTIONS = ("to_targets", "to_clients")


class RelayTotals:
    """How a relay stands: how many workers it should have, how many were replaced, the last report
    of each that there is, and in ``sums`` what all that there ever were have counted."""

    def __init__(self, workers: int) -> None:
        self.workers, self.restarts, self.stopping = workers, 0, False
        self.reports: dict[int, Counter[str]] = {}
        self.sums, self._gone = Counter[str](), Counter[str]()

    @property
    def ready(self) -> bool:
        """Whether all workers relay, and go on."""
        return len(self.reports) == self.workers and not self.stopping

    def take(self, worker: int, report: Facts) -> None:
        """A report has come."""
        self.reports[worker] = Counter(report)
        self._add_up()

    def ended(self, worker: int) -> None:
        """A worker is gone, and what it had not sent with it."""
        last = self.reports.pop(worker, Counter())
        last["sessions_closed"] += last.pop("sessions", 0)
        for direction in DIRECTIONS:
            lost = last.pop(f"{direction}.datagrams_waiting", 0)
            last[f"{direction}.dropped.closed"] += lost
        self._gone.update(last)
        self._add_up()

    def _add_up(self) -> None:
        sums = self._gone.copy()
        for report in self.reports.values():
            sums.update(report)
        self.sums = sums
