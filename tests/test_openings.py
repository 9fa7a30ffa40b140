# How fast new sessions may be begun, and the pause after there was nothing for one.

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from snaptun_trio import _openings
from snaptun_trio._openings import Openings

AT_ONCE, A_SECOND, PAUSE = _openings._AT_ONCE, 4096, _openings._PAUSE


def taken(openings: Openings, now: float, tries: int = 5000) -> int:
    return sum([openings.take(now) for _ in range(tries)])


@pytest.mark.parametrize("now", [0.0, 1e6, -5.0])
def test_so_many_at_once_whatever_the_clock_says(now: float) -> None:
    openings = Openings(A_SECOND)
    assert taken(openings, now) == AT_ONCE
    assert taken(openings, now) == 0
    assert not openings.paused(now), "who waits for its turn has not met a lack of anything"


def test_so_many_a_second_after_that() -> None:
    openings = Openings(A_SECOND)
    taken(openings, 100.0)
    assert taken(openings, 100.125) == A_SECOND // 8
    assert not openings.take(100.125 + 0.5 / A_SECOND)
    assert openings.take(100.125 + 1.5 / A_SECOND)
    assert taken(openings, 200.0) == AT_ONCE, "what was not used is not kept"


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    openings = Openings(A_SECOND)
    taken(openings, 100.0)
    assert taken(openings, 50.0) == 0
    assert taken(openings, 100.0) == 0


def test_a_pause_admits_nobody_and_is_over_by_itself() -> None:
    openings = Openings(A_SECOND)
    assert openings.take(100.0)
    openings.pause(100.0)
    for now in (100.0, 100.0 + PAUSE / 2, 100.0 + PAUSE):
        assert not openings.take(now)
        assert openings.paused(now)
    later = 100.0 + PAUSE + 0.01 / A_SECOND
    assert not openings.paused(later)
    assert taken(openings, later) == 1, "who comes then is not told that too many came"
    assert taken(openings, later + 2.5 / A_SECOND) == 2, "it begins slowly"


@given(steps=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3000)), max_size=20))
def test_never_more_than_the_bucket_and_what_runs_into_it(steps: list[tuple[float, int]]) -> None:
    openings, now, total = Openings(A_SECOND), 10.0, 0
    for pause, tries in steps:
        now += pause
        total += taken(openings, now, tries)
        assert total <= AT_ONCE + (now - 10.0) * A_SECOND + 1
