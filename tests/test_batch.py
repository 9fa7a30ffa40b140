# PacketBatch of trains that a program made. Received ones are in test_received_batches.

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from snaptun_trio import PacketBatch, PacketTrain

from . import ends

A = ("192.0.2.1", 1000)
B = ("192.0.2.2", 2000)

trains_of_any_shape = st.lists(
    st.builds(
        lambda data, size, address: PacketTrain(data, size, address),
        st.binary(max_size=60),
        st.integers(1, 70),
        st.sampled_from([A, B, None]),
    ),
    max_size=10,
)


@given(trains=trains_of_any_shape)
def test_a_batch_says_what_its_trains_say(trains: list[PacketTrain]) -> None:
    batch = PacketBatch(trains)
    assert batch.trains == tuple(trains)
    assert len(batch) == sum(len(train) for train in trains)
    assert batch.nbytes == sum(train.nbytes for train in trains)
    assert list(batch) == [(packet, train.address) for train in trains for packet in train]
    assert bool(batch) == bool(trains)
    assert batch.truncated == 0


@given(trains=trains_of_any_shape)
def test_a_batch_for_another_peer_is_the_same_data(trains: list[PacketTrain]) -> None:
    batch = PacketBatch(trains).to(B)
    assert list(batch) == [(packet, B) for train in trains for packet in train]
    assert batch.trains == tuple(train.to(B) for train in trains)
    assert all(new.data is old.data for new, old in zip(batch.trains, trains))
    assert [address for _, address in batch.to(None)] == [None] * len(batch)
    assert batch.to(A).trains == PacketBatch(trains).to(A).trains


def test_an_empty_batch_has_nothing() -> None:
    batch = PacketBatch([])
    assert (len(batch), batch.nbytes, batch.trains, list(batch)) == (0, 0, (), [])
    assert not batch


def test_a_batch_of_one_zero_length_datagram_is_not_empty() -> None:
    batch = PacketBatch([PacketTrain(b"", 0, A)])
    assert batch
    assert len(batch) == 1
    assert list(batch) == [(b"", A)]


def test_a_batch_takes_its_trains_once() -> None:
    trains = [PacketTrain(b"x", 1, A)]
    batch = PacketBatch(iter(trains))
    trains.append(PacketTrain(b"y", 1, A))
    assert len(batch) == 1


@pytest.mark.parametrize("trains", [[b"bytes"], [(b"data", A)], PacketTrain(b"x", 1, A), [None]])
def test_a_batch_of_something_else_is_a_type_error(trains: object) -> None:
    with pytest.raises(TypeError, match="PacketTrain"):
        PacketBatch(trains)  # type: ignore[arg-type]


def test_the_repr_tells_the_size() -> None:
    assert repr(PacketBatch([PacketTrain(b"aabb", 2, A)])) == (
        "<PacketBatch: 2 datagrams, 4 bytes>"
    )


@pytest.mark.parametrize("ecn", [None, 1])
def test_a_batch_for_another_peer_may_have_been_for_the_other_family(
    pair: ends.Pair, ecn: int | None
) -> None:
    """The addresses that it had are nobody's any more."""
    batch = PacketBatch([PacketTrain(b"x", 1, ("::1", 9), ecn=ecn)])
    pair.sender.send_nowait(batch.to(pair.target))
    ends.expect_only(pair, [b"x"])
