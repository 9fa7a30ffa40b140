# How the figures come about: relays take turns, round by round, under the same load.
#
# All relays of a shape run at once and wait for their turns; who waits costs nothing. Their clients
# are known to them before anything is measured. The CPU time of a relay is taken while nothing is
# under way, before the load and after its last answer.

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import _sittings
from .._sittings import CannotError, Effort
from ._load import Counts, Plan
from ._rows import MOST, OPENING, PACED
from ._running import Relay, running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._contenders import Contender
    from ._load import Ends
    from ._rows import Row, Shape

READY_TRIES, READY_PATIENCE = 300, 0.03
OPENING_TRIES = 10
CHECKED_TRAINS = 3  # of each client
WINDOW = 1000  # datagrams under way, unless they are lost
WARM_UP = 0.3  # of what is measured


@dataclass(frozen=True)
class Sitting:
    """One turn of one relay."""

    cpu_ns: int
    counts: Counts

    @property
    def ns_each(self) -> float:
        """CPU nanoseconds a relayed datagram."""
        return self.cpu_ns / max(1, self.counts.relayed)

    @property
    def us_a_client(self) -> float:
        """CPU microseconds for each client that got an answer."""
        return self.cpu_ns / 1000 / max(1, self.counts.returned)

    @property
    def rate(self) -> float:
        """Relayed datagrams a second."""
        return self.counts.relayed / self.counts.seconds if self.counts.returned else 0.0

    @property
    def busy(self) -> float:
        """The part of the time that the relay was running."""
        return self.cpu_ns / 1e9 / self.counts.seconds if self.counts.returned else 0.0


class Measured(_sittings.Measured["Row", Sitting]):
    """A row's sittings, by relay."""


def sit(ends: Ends, relay: Relay, shape: Shape, plan: Plan) -> Sitting:
    """Let the clients do what is planned."""
    before = relay.cpu_ns()
    counts = ends.run(relay.port, shape.segments, plan)
    relay.check_alive()
    return Sitting(relay.cpu_ns() - before, counts)


def wait_until_ready(ends: Ends, relay: Relay) -> None:
    """Until the first client's datagram comes back. Raises `CannotError` if none does."""
    probe = Plan(clients=1, window=1, most_trains=1, patience=READY_PATIENCE)
    for _ in range(READY_TRIES):
        relay.check_alive()
        if ends.run(relay.port, 1, probe).returned:
            return
    raise relay.failed("no datagram came back")


def open_sessions(ends: Ends, relay: Relay, shape: Shape) -> None:
    """Each client gets an answer, and its own. Raises `CannotError` if one does not."""
    one_each = Plan(clients=shape.clients, window=1, most_trains=shape.clients)
    for _ in range(OPENING_TRIES):
        counts = ends.run(relay.port, 1, one_each)
        relay.check_alive()
        if counts.returned >= counts.sent:
            break
    else:
        raise CannotError(f"{counts.returned} of {shape.clients} clients got an answer")
    trains = CHECKED_TRAINS * shape.clients
    checked = Plan(clients=shape.clients, window=shape.segments, most_trains=trains, checks=True)
    check(ends.run(relay.port, shape.segments, checked))


def check(counts: Counts) -> None:
    """Raises `CannotError` unless all that came back is what it should be."""
    if counts.wrong:
        raise CannotError(
            f"{counts.wrong} of {counts.returned} answers came to another client, or were altered"
        )
    if not counts.returned:
        raise CannotError("nothing came back")


def paced(ends: Ends, relay: Relay, shape: Shape, seconds: float) -> Sitting:
    """At the pace that is given."""

    def plan(seconds: float) -> Plan:
        return Plan(clients=shape.clients, trains_per_ms=shape.trains_per_ms, seconds=seconds)

    sit(ends, relay, shape, plan(WARM_UP * seconds))
    sitting = sit(ends, relay, shape, plan(seconds))
    check(sitting.counts)
    return sitting


def most(ends: Ends, relay: Relay, shape: Shape, seconds: float) -> Sitting:
    """As much as goes through, with so many datagrams under way as are not lost."""
    window = max(WINDOW, shape.segments)

    def plan(seconds: float) -> Plan:
        return Plan(clients=shape.clients, window=window, seconds=seconds)

    first = sit(ends, relay, shape, plan(WARM_UP * seconds))
    window = max(first.counts.window, shape.segments)
    sitting = sit(ends, relay, shape, plan(seconds))
    check(sitting.counts)
    return sitting


SITTINGS = {PACED: paced, MOST: most}


def measure_shape(
    ends: Ends, contenders: Sequence[Contender], rows: Sequence[Row], effort: Effort
) -> list[Measured]:
    """Measure the rows of one shape, in each round all of them by all relays."""
    shape = rows[0].shape
    measured = [Measured(row) for row in rows]
    with ExitStack() as stack:
        relays = []
        for contender in contenders:
            try:
                relay = stack.enter_context(running(contender, ends.far_port))
                wait_until_ready(ends, relay)
                open_sessions(ends, relay, shape)
                relays.append(relay)
            except CannotError as error:
                for each in measured:
                    each.cannot[contender.name] = str(error)
        for _ in range(effort.rounds):
            for each in measured:
                for relay in relays:
                    if relay.name in each.cannot:
                        continue
                    with each.noting(relay.name):
                        sitting = SITTINGS[each.row.kind](ends, relay, shape, effort.seconds)
                        each.add(relay.name, sitting)
    return measured


def measure_opening(
    ends: Ends, contenders: Sequence[Contender], row: Row, effort: Effort
) -> Measured:
    """Measure what a new client costs. Each round has relays of its own, which know nobody."""
    measured = Measured(row)
    clients = row.shape.clients
    plan = Plan(clients=clients, first=1, window=row.together, most_trains=clients, checks=True)
    for _ in range(effort.rounds):
        for contender in contenders:
            if contender.name in measured.cannot:
                continue
            with measured.noting(contender.name), running(contender, ends.far_port) as relay:
                wait_until_ready(ends, relay)
                sitting = sit(ends, relay, row.shape, plan)
                check(sitting.counts)
                measured.add(contender.name, sitting)
    return measured


def measure(
    ends: Ends,
    contenders: Sequence[Contender],
    rows: Sequence[Row],
    effort: Effort,
    progress: Callable[[str], None],
) -> list[Measured]:
    """Measure all the rows."""
    results: dict[Row, Measured] = {}
    for row in rows:
        if row in results:
            continue
        if row.kind == OPENING:
            progress(row.id)
            results[row] = measure_opening(ends, contenders, row, effort)
        else:
            same = [each for each in rows if each.shape == row.shape and each.kind != OPENING]
            progress(", ".join(each.id for each in same))
            for measured in measure_shape(ends, contenders, same, effort):
                results[measured.row] = measured
    return [results[row] for row in rows]
