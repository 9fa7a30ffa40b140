# Ten thousand peers beside one: the works of the first table, the two in turn.
#
# Only receiving: to answer one peer is cheaper by nature, since what goes to it leaves in trains.

from __future__ import annotations

from typing import TYPE_CHECKING

from ._shapes import many_peers

if TYPE_CHECKING:
    from ._worker import Contender

ONE, MANY = 1, 10_000
BUDGET_NS, QUICK_BUDGET_NS = 8_000_000, 3_000_000


def sit(contender: Contender, variant: str, *, quick: bool, peers: int) -> float:
    """CPU nanoseconds a datagram of the work that the variant names."""
    budget_ns = QUICK_BUDGET_NS if quick else BUDGET_NS
    return contender.sit(variant, many_peers(peers), False, budget_ns)
