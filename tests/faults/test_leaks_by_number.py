# A million calls of the compiled part leave nothing behind: F56 of the fault matrix.
#
#     pytest -m soak tests/faults/test_leaks_by_number.py --rounds 1000000
#
# `tests/test_leaks.py` has what is called, and the short form. Here all of it goes in turn, and
# what Python's allocator holds, what the compiled part holds beside it and the resident size stay
# where they are.

from __future__ import annotations

import gc
import sys
from array import array

import pytest

from .. import ends, system_calls
from ..test_leaks import JOBS, Scene
from . import limits

pytestmark = [
    pytest.mark.usefixtures("linux_backend"),
    pytest.mark.skipif(
        sys.implementation.name != "cpython", reason="only CPython counts its blocks"
    ),
]

PARTS = 10


@pytest.mark.soak
def test_soak_a_million_calls_leave_nothing_behind(udp: ends.MakeSocket, rounds: int) -> None:
    """Each round is one job, of at least one call and of 30 at most."""
    scene = Scene(udp(), udp())
    # Of a fixed size: what is noted is not to count itself.
    blocks, allocations, resident = (array("q", bytes(8 * PARTS)) for _ in range(3))
    for part in range(PARTS):
        for number in range(rounds // PARTS):
            JOBS[number % len(JOBS)](scene)
        gc.collect()
        resident[part] = limits.resident_bytes()
        allocations[part] = system_calls.held()
        blocks[part] = sys.getallocatedblocks()
    print(
        f"{rounds} rounds; after each tenth of them there were held", blocks, allocations, resident
    )
    assert scene.pool.statistics()[0] == 0, "slabs are still lent"
    # From the second on all caches are full.
    assert len(set(allocations[1:])) == 1
    assert blocks[-1] - blocks[1] < 20
    assert resident[-1] - resident[1] < 1_000_000
