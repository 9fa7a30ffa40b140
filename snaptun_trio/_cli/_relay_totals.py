# What the reports of a relay's workers come to: sums, which no worker's death lets fall, and rates.
# It must not know how workers are run, nor who looks. Other threads may look: `sums` and `rates`
# are replaced as a whole, and never changed.

from __future__ import annotations

import operator
from functools import partial, reduce
from typing import TYPE_CHECKING

from .. import UdpRelay
from ._relay_worker import report_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._talk import Facts

DIRECTIONS = {"to_targets": "to targets", "to_clients": "to clients"}


def combined(operation: Callable[[float, float], float], one: Facts, other: Facts) -> Facts:
    """Two reports, number by number. One that is missing is 0."""
    found: Facts = {}
    for name in {**one, **other}:
        first, second = one.get(name, 0), other.get(name, 0)
        if hasattr(first, "keys"):
            found[name] = combined(operation, first, second or {})
        else:
            found[name] = operation(first, second)
    return found


class RelayTotals:
    """How a relay stands.

    Attributes:
      workers: how many there should be. ``restarts``: how often one was replaced.
      stopping: the end has begun.
      sums: what all workers that there ever were have counted.
      rates: the same for each second, by the last two reports of those that there are.
    """

    def __init__(self, workers: int) -> None:
        self.workers, self.restarts, self.stopping = workers, 0, False
        self._reports: dict[int, Facts] = {}
        self._rates: dict[int, Facts] = {}
        nothing = report_of(UdpRelay(None, [("127.0.0.1", 9)]))  # all names
        self._zero = combined(lambda *_: 0, nothing, {})
        self._gone = self.sums = self.rates = self._zero

    @property
    def running(self) -> int:
        """How many workers relay at this moment."""
        return len(self._reports)

    @property
    def ready(self) -> bool:
        """Whether all of them do, and go on."""
        return self.running == self.workers and not self.stopping

    def take(self, worker: int, report: Facts) -> None:
        """A report has come."""
        before = self._reports.get(worker)
        if before is not None and (took := report["at"] - before["at"]) > 0:
            self._rates[worker] = combined(lambda now, then: (now - then) / took, report, before)
        self._reports[worker] = report
        self._add_up()

    def ended(self, worker: int) -> None:
        """A worker is gone, and what it had not sent with it."""
        report, _ = self._reports.pop(worker, None), self._rates.pop(worker, None)
        if report is not None:
            report["sessions_closed"] += report["sessions"]
            report["sessions"] = 0
            for flow in (report[direction] for direction in DIRECTIONS):
                lost = {"closed": flow["datagrams_waiting"]}
                flow["dropped"] = combined(operator.add, flow["dropped"], lost)
                flow["datagrams_waiting"] = 0
            self._gone = combined(operator.add, self._gone, report)
            self._add_up()

    def _add_up(self) -> None:
        add = partial(combined, operator.add)
        self.sums = reduce(add, self._reports.values(), self._gone)
        self.rates = reduce(add, self._rates.values(), self._zero)
