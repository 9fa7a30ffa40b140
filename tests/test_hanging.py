# The bound for tests that hang: it ends them, says where, and leaves all others alone.

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from .hanging import guarded

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def alarms_as_they_were() -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getsignal(signal.SIGALRM) is before


async def wait_for_a_task_that_hangs() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)


async def test_a_test_that_hangs_fails_and_says_where() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"wait_for_a_task_that_hangs(.|\n)*forever"):
        await guarded(wait_for_a_task_that_hangs, 0.01)()


async def test_a_clock_that_stands_still_stops_no_bound(mock_clock: trio.testing.MockClock) -> None:
    with pytest.raises(pytest.fail.Exception, match="hung"):
        await guarded(trio.sleep_forever, 0.01)()


async def test_a_test_that_ends_is_not_disturbed() -> None:
    seen: list[int] = []

    async def see(number: int) -> None:
        seen.append(number)

    await guarded(see)(number=1)
    assert seen == [1]
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    with pytest.raises(KeyError):
        await guarded(fail)()


async def fail() -> None:
    raise KeyError


def test_a_plain_test_stays_as_it_is() -> None:
    assert guarded(len) is len
