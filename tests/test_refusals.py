# The table of refusals, and what is believed of them; no socket is needed for either.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from snaptun_trio._refusals import (
    TRIES,
    TRIES_IN_A_STORM,
    KnownRefusals,
    Verdict,
    judge,
)

if TYPE_CHECKING:
    from snaptun_trio import Address

A: Address = ("192.0.2.1", 9)
B: Address = ("192.0.2.2", 9)


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOTSOCK])
@pytest.mark.parametrize("segmented", [False, True])
def test_a_descriptor_that_is_no_socket_is_not_tried_again(number: int, segmented: bool) -> None:
    assert judge([number], segmented=segmented, storm=False) is Verdict.CLOSED


@pytest.mark.parametrize(
    ("number", "segmented", "verdict"),
    [
        (errno.EIO, True, Verdict.SWITCH_GSO_OFF),
        (errno.EINVAL, True, Verdict.FIRST_ALONE),
        (errno.EMSGSIZE, True, Verdict.FIRST_ALONE),
        (errno.EPERM, True, Verdict.FAIL),
        (errno.ENOBUFS, True, Verdict.FAIL),
        (errno.EIO, False, Verdict.FAIL),
        (errno.EINVAL, False, Verdict.FAIL),
        (errno.EMSGSIZE, False, Verdict.FAIL),
        (errno.ENETUNREACH, False, Verdict.FAIL),
    ],
)
def test_everything_else_is_tried_twice(number: int, segmented: bool, verdict: Verdict) -> None:
    assert judge([number], segmented=segmented, storm=False) is Verdict.RETRY
    assert judge([number] * TRIES, segmented=segmented, storm=False) is verdict


@given(st.lists(st.sampled_from([errno.ECONNREFUSED, errno.EHOSTUNREACH]), min_size=1))
def test_in_a_storm_a_message_is_tried_many_times(errors: list[int]) -> None:
    verdict = judge(errors, segmented=False, storm=True)
    assert (verdict is Verdict.RETRY) == (len(errors) < TRIES_IN_A_STORM)


def test_what_many_tries_have_shown_is_believed_of_datagrams_as_long() -> None:
    known = KnownRefusals()
    known.learn(A, errno.EMSGSIZE, 1500, tries=TRIES_IN_A_STORM)
    assert known.own(A, errno.EMSGSIZE, 1500)
    assert known.own(A, errno.EMSGSIZE, 9000)
    assert not known.own(A, errno.EMSGSIZE, 1499)
    assert not known.own(B, errno.EMSGSIZE, 1500)
    assert not known.own(A, errno.EHOSTUNREACH, 1500)
    known.learn(B, errno.EHOSTUNREACH, 1500, tries=TRIES_IN_A_STORM)
    assert known.own(B, errno.EHOSTUNREACH, 1)


def test_two_tries_show_nothing() -> None:
    known = KnownRefusals()
    known.learn(A, errno.EMSGSIZE, 1500, tries=TRIES)
    assert not known.own(A, errno.EMSGSIZE, 1500)


def test_one_that_goes_through_after_the_error_ends_the_belief() -> None:
    known = KnownRefusals()
    for number in (errno.EMSGSIZE, errno.EACCES):
        known.learn(A, number, 1500, tries=TRIES_IN_A_STORM)
    known.doubt([errno.EMSGSIZE])
    assert not known.own(A, errno.EMSGSIZE, 1500)
    assert known.own(A, errno.EACCES, 1500)


def test_no_belief_is_for_ever() -> None:
    known = KnownRefusals()
    known.learn(A, errno.EMSGSIZE, 1500, tries=TRIES_IN_A_STORM)
    believed = 0
    while known.own(A, errno.EMSGSIZE, 1500):
        known.learn(A, errno.EMSGSIZE, 1500, tries=TRIES)
        believed += 1
        assert believed < 10_000
    # The tries that it took are a small part of all.
    assert believed >= 2 * TRIES_IN_A_STORM


def test_strangers_cannot_make_it_remember_without_end() -> None:
    known = KnownRefusals()
    for number in range(5000):
        known.learn(("192.0.2.1", number), errno.EMSGSIZE, 1500, tries=TRIES_IN_A_STORM)
    assert sum(known.own(("192.0.2.1", n), errno.EMSGSIZE, 1500) for n in range(5000)) <= 256
    assert known.own(("192.0.2.1", 4999), errno.EMSGSIZE, 1500)
