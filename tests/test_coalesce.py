# Packets into trains and back, without a socket: the two are inverse, and within every limit.

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, strategies as st

from snaptun_trio._coalesce import (
    MAX_SEGMENTS,
    coalesce,
    datagram_count,
    joined,
    segment_ranges,
    split,
)

# Runs of one size are what coalescing is about; anything else mixes in.
sizes_of_packets = st.lists(
    st.tuples(st.sampled_from([0, 1, 7, 100, 1200, 1400, 9000, 65_507]), st.integers(1, 90)),
    max_size=8,
).map(lambda runs: [size for size, count in runs for _ in range(count)])
any_sizes = st.lists(st.integers(0, 3000), max_size=40)


@given(sizes=sizes_of_packets | any_sizes, max_bytes=st.integers(1, 65_507))
def test_every_datagram_is_in_exactly_one_train_and_order_is_kept(
    sizes: list[int], max_bytes: int
) -> None:
    covered = [index for start, stop in coalesce(sizes, max_bytes) for index in range(start, stop)]
    assert covered == list(range(len(sizes)))


@given(sizes=sizes_of_packets | any_sizes, max_bytes=st.integers(1, 65_507))
def test_trains_stay_within_the_kernels_limits(sizes: list[int], max_bytes: int) -> None:
    for start, stop in coalesce(sizes, max_bytes):
        train = sizes[start:stop]
        assert len(train) <= MAX_SEGMENTS
        assert len(train) == 1 or sum(train) <= max_bytes
        assert len(train) == 1 or min(train) > 0, "a zero-length datagram does not go alone"
        assert all(size == train[0] for size in train[:-1])
        assert train[-1] <= train[0]


@given(sizes=sizes_of_packets | any_sizes, max_bytes=st.integers(1, 65_507))
def test_no_two_neighbours_could_have_been_one_train(sizes: list[int], max_bytes: int) -> None:
    trains = list(coalesce(sizes, max_bytes))
    for (start, stop), (_, next_stop) in itertools.pairwise(trains):
        first, follower = sizes[start:stop], sizes[stop:next_stop][0]
        fits = sum(first) + follower <= max_bytes and len(first) < MAX_SEGMENTS
        open_ended = first[-1] == first[0] and 0 < follower <= first[0]
        assert not (fits and open_ended)


@given(sizes=sizes_of_packets | any_sizes)
def test_split_is_the_inverse_of_coalesce(sizes: list[int]) -> None:
    packets = [bytes([index % 256]) * size for index, size in enumerate(sizes)]
    back: list[bytes] = []
    for start, stop in coalesce(sizes, 65_507):
        back += split(b"".join(packets[start:stop]), sizes[start])
    assert back == packets


@given(sizes=sizes_of_packets | any_sizes, max_bytes=st.integers(1, 65_507))
def test_packets_are_joined_as_coalesce_says(sizes: list[int], max_bytes: int) -> None:
    packets = [bytes([index % 256]) * size for index, size in enumerate(sizes)]
    assert joined(packets, max_bytes) == [
        (b"".join(packets[start:stop]), sizes[start]) for start, stop in coalesce(sizes, max_bytes)
    ]


@pytest.mark.parametrize(("count", "size"), [(1, 0), (2, 0), (4, 25), (64, 1), (65, 1)])
@pytest.mark.parametrize("room", [-1, 0, 1])
def test_packets_of_one_size_are_joined_up_to_each_limit(count: int, size: int, room: int) -> None:
    packets, max_bytes = [bytes(size)] * count, max(1, count * size + room)
    trains = joined(packets, max_bytes)
    assert [list(split(data, segment)) for data, segment in trains] == [
        packets[start:stop] for start, stop in coalesce([size] * count, max_bytes)
    ]


@given(length=st.integers(0, 70_000), segment_size=st.integers(1, 65_535))
def test_datagram_count_is_what_split_makes(length: int, segment_size: int) -> None:
    segment_size = max(segment_size, length // 2000)  # not a list of 70 000 items
    assert datagram_count(length, segment_size) == len(split(bytes(length), segment_size or 1))


@given(length=st.integers(0, 70_000), piece=st.integers(50, 65_535))
def test_segment_ranges_cover_everything_without_gaps(length: int, piece: int) -> None:
    ranges = list(segment_ranges(length, piece))
    assert sum(size for _, size in ranges) == length
    assert [offset for offset, _ in ranges] == list(range(0, length or 1, piece))
    assert all(size == piece for _, size in ranges[:-1])


def test_a_shorter_datagram_ends_a_train() -> None:
    assert list(coalesce([5, 5, 3, 5, 5], 1000)) == [(0, 3), (3, 5)]


def test_a_longer_datagram_begins_a_train() -> None:
    assert list(coalesce([5, 5, 6, 6], 1000)) == [(0, 2), (2, 4)]


def test_a_tail_that_does_not_fit_begins_a_train() -> None:
    assert list(coalesce([5, 5, 3, 1], 12)) == [(0, 2), (2, 4)]


def test_zero_length_datagrams_go_alone() -> None:
    assert list(coalesce([0, 5, 0, 0, 5, 5], 1000)) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6)]


def test_a_datagram_over_the_limit_is_a_train_of_its_own() -> None:
    assert list(coalesce([100, 100], 99)) == [(0, 1), (1, 2)]


@pytest.mark.parametrize("max_segments", [1, 2, 128])
def test_the_number_of_segments_can_be_chosen(max_segments: int) -> None:
    trains = list(coalesce([8] * 300, 65_507, max_segments))
    assert max(stop - start for start, stop in trains) == max_segments
