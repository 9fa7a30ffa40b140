# Memory runs out in the compiled part, at each of its allocations in turn: F55 of the fault matrix.
#
# For each of its functions the first allocation fails, then the second, and so on, until nothing is
# left that could: those of our own by a hook of the test build, Python's by `_testcapi`. Whatever
# fails, the call raises MemoryError or works, the very same objects serve for the next call,
# nothing is left behind, and what the kernel had is still there. A child runs each of them:
# another thread must not be the one whose allocation fails.

from __future__ import annotations

import gc
import importlib
import sys
from array import array
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from .. import system_calls
from .compiled import (
    CASES,
    COMPILED,
    LOOKS,
    SOMETHING_FAILS,
    Call,
    Case,
    Scene,
    import_it,
    receive_little,
)
from .compiled_many import MANY

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    _testcapi: Any = importlib.import_module("_testcapi")
except ImportError:
    _testcapi = None

pytestmark = [
    pytest.mark.usefixtures("linux_backend"),
    pytest.mark.own_process,
    pytest.mark.skipif(
        sys.implementation.name != "cpython", reason="only CPython counts its blocks"
    ),
]

SWEEPS = 5
QUIET = 20  # that many calls in a row without a failure: no allocation is left that could fail

NO_MEMORY = object()


class Ours:
    """One allocation of the compiled part's own fails."""

    def attempt(self, call: Call, number: int) -> tuple[object, bool]:
        """Call with that allocation failing. Returns what came of it, and whether it came to it."""
        system_calls.fail_allocation(number)
        told = outcome(call)
        left, _ = system_calls.fail_allocation(-1)
        return told, left < 0


class Pythons:
    """One of Python's allocations fails, or all from then on."""

    def __init__(self, *, once: bool) -> None:
        self.once = once

    def attempt(self, call: Call, number: int) -> tuple[object, bool]:
        """As above, but what fails without a word cannot be told from what does not fail."""
        gc.disable()  # what it calls, of others, would meet the failure in its place
        _testcapi.set_nomemory(number, number + 1 if self.once else 0)
        try:
            told = call()
        except MemoryError:
            told = NO_MEMORY
        except OSError as error:
            told = error
        finally:
            _testcapi.remove_mem_hooks()
            gc.enable()
        return told, told is NO_MEMORY


def outcome(call: Call) -> object:
    try:
        return call()
    except MemoryError:
        return NO_MEMORY
    except OSError as error:
        return error


def sweep(case: Callable[[Scene], Case], failing: Ours | Pythons) -> int:
    """Let one allocation after the other fail. Returns how many did."""
    failed = quiet = number = 0
    while quiet < QUIET:
        scene = Scene()
        call, check = case(scene)
        told, came_to_it = failing.attempt(call, number)
        if told is NO_MEMORY:
            assert came_to_it
            told = outcome(call)
        check(told)
        del call, check, told
        scene.close()
        failed += came_to_it
        quiet = 0 if came_to_it else quiet + 1
        number += 1
    return failed


@pytest.fixture(params=["ours", "one of Python's", "all of Python's"])
def failing(request: pytest.FixtureRequest) -> Ours | Pythons:
    system_calls.require_hooks()
    if request.param == "ours":
        return Ours()
    if _testcapi is None:
        pytest.skip("this Python has no _testcapi, which lets its allocations fail")
    return Pythons(once=request.param == "one of Python's")


EVERYTHING = CASES | MANY


@pytest.mark.parametrize("name", EVERYTHING)
def test_f55_whatever_allocation_fails_nothing_is_lost_or_left_behind(
    name: str, failing: Ours | Pythons
) -> None:
    # A leak makes more of each sweep. What else is kept, a cache or a free list, has its end.
    blocks, held = array("q", bytes(8 * SWEEPS)), array("q", bytes(8 * SWEEPS))
    for n in range(SWEEPS):
        failed = sweep(EVERYTHING[name], failing)
        gc.collect()
        held[n] = system_calls.held()
        blocks[n] = sys.getallocatedblocks()
    if (
        name in SOMETHING_FAILS
        or name.startswith(("receive_", "send_each"))
        or (name in LOOKS and isinstance(failing, Pythons))
    ):
        assert failed, "nothing failed, so nothing was shown"
    assert held[-1] == held[0]
    assert min(after - before for before, after in pairwise(blocks)) <= 0, blocks


def test_f55_an_import_without_memory_is_an_import_that_can_be_tried_again(
    failing: Ours | Pythons,
) -> None:
    if isinstance(failing, Pythons) and sys.version_info >= (3, 13):
        pytest.skip("CPython 3.13 crashes, when it imports modules of its own as well")

    def types() -> int:
        gc.collect()
        return sum(
            isinstance(each, type) and each.__module__ == COMPILED for each in gc.get_objects()
        )

    before = types(), system_calls.held()
    assert sweep(import_it, failing)
    assert (types(), system_calls.held()) == before


@pytest.mark.parametrize("failing", ["ours", "one of Python's"], indirect=True)
def test_f55_little_that_cannot_be_copied_stays_in_its_slab(failing: Ours | Pythons) -> None:
    forms = set()
    for number in range(QUIET):
        scene = Scene()
        call, check = receive_little(scene)
        rows: Any = failing.attempt(call, number)[0]
        if rows is not NO_MEMORY:
            check(rows)
            forms.add(type(rows.row(0)[0]))
            del rows
        scene.close()
    assert forms == {bytes, memoryview}
