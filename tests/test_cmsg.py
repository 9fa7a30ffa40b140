# Control messages: what we write the kernel reads, and whatever bytes come, nothing is over-read.

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given, strategies as st

from snaptun_trio import ECN
from snaptun_trio._kernel import _abi, _cmsg

INT = struct.Struct("=i")
HEADER = struct.Struct("@Nii")

messages = st.lists(
    st.tuples(st.integers(0, 300), st.integers(0, 200), st.binary(max_size=40)), max_size=6
)
known = st.sampled_from(
    [
        (_abi.SOL_UDP, _abi.UDP_GRO),
        (_abi.SOL_IP, _abi.IP_TOS),
        (_abi.SOL_IP, _abi.IP_PKTINFO),
        (_abi.SOL_IPV6, _abi.IPV6_TCLASS),
        (_abi.SOL_IPV6, _abi.IPV6_PKTINFO),
        (_abi.SOL_SOCKET, _abi.SO_TIMESTAMPNS),
    ]
)


@given(messages=messages)
def test_serialise_and_parse_are_inverse(messages: list[tuple[int, int, bytes]]) -> None:
    assert _cmsg.parse(_cmsg.serialise(tuple(messages))) == messages


@given(raw=st.binary(max_size=300))
def test_any_bytes_end_the_walk_within_the_buffer(raw: bytes) -> None:
    for _, _, start, stop in _cmsg.walk(raw):
        assert 0 < start <= stop <= len(raw)


@given(messages=messages, cut=st.integers(0, 300), claimed=st.integers(0, 2**31))
def test_a_length_that_lies_ends_the_walk(
    messages: list[tuple[int, int, bytes]], cut: int, claimed: int
) -> None:
    raw = _cmsg.serialise(tuple(messages))
    parsed = _cmsg.parse(raw[:cut])
    assert parsed == messages[: len(parsed)]
    lying = HEADER.pack(claimed, 1, 1)
    if claimed != HEADER.size:
        assert _cmsg.parse(raw + lying) == messages


@given(kind=known, data=st.binary(max_size=40))
def test_known_messages_of_any_content_are_decoded_or_passed_over(
    kind: tuple[int, int], data: bytes
) -> None:
    told = _cmsg.decode([(*kind, data)])
    assert told.ecn in (None, 0, 1, 2, 3)
    assert told.segment_size != 0
    assert told.interface_index != 0


def test_nothing_says_nothing() -> None:
    assert _cmsg.decode([]) == _cmsg.Ancillary()
    assert _cmsg.decode([(99, 99, b"whatever")]) == _cmsg.Ancillary()


@pytest.mark.parametrize("size", [0, -1, -1200, -(2**31)])
def test_a_segment_size_that_is_not_positive_is_not_told(size: int) -> None:
    bad, good = ((_abi.SOL_UDP, _abi.UDP_GRO, INT.pack(each)) for each in (size, 1200))
    assert _cmsg.decode([bad]).segment_size is None
    for messages in ([good], [bad, good], [good, bad]):
        assert _cmsg.decode(messages).segment_size == 1200


def test_a_segment_size_that_came_cut_is_not_told() -> None:
    assert _cmsg.decode([(_abi.SOL_UDP, _abi.UDP_GRO, b"")]).segment_size is None


def test_all_that_a_message_can_say_is_decoded() -> None:
    told = _cmsg.decode(
        [
            (_abi.SOL_SOCKET, _abi.SO_TIMESTAMPNS, struct.pack("=qq", 3, 7)),
            (_abi.SOL_UDP, _abi.UDP_GRO, INT.pack(1200)),
            (
                _abi.SOL_IP,
                _abi.IP_PKTINFO,
                struct.pack("=i4s4s", 2, bytes(4), socket.inet_aton("192.0.2.7")),
            ),
            (_abi.SOL_IP, _abi.IP_TOS, b"\xfe"),
        ]
    )
    assert told == _cmsg.Ancillary(1200, ECN.ECT_0, "192.0.2.7", 2, 3_000_000_007)


@pytest.mark.parametrize("ipv4", [True, False])
@given(
    segment_size=st.integers(0, 65_535),
    ecn=st.none() | st.integers(0, 3),
    interface=st.none() | st.integers(1, 2**31 - 1),
)
def test_whatever_is_asked_for_fits_into_the_room_for_it(
    ipv4: bool, segment_size: int, ecn: int | None, interface: int | None
) -> None:
    local = "192.0.2.1" if ipv4 else "2001:db8::1"
    asked = _cmsg.encode(segment_size, ecn, local, interface, ipv4)
    assert len(_cmsg.serialise(asked)) <= 128, "CONTROL_OUT of _rows.h"
    if segment_size:
        assert asked[0] == (_abi.SOL_UDP, _abi.UDP_SEGMENT, struct.pack("=H", segment_size))


def test_a_mapped_local_address_leaves_over_ipv4() -> None:
    assert _cmsg.encode(0, None, "::ffff:192.0.2.1", None, True) == _cmsg.encode(
        0, None, "192.0.2.1", None, True
    )


@pytest.mark.parametrize(("local", "ipv4"), [("::1", True), ("127.0.0.1", False), ("lo", True)])
def test_a_local_address_of_the_wrong_family_is_a_value_error(local: str, ipv4: bool) -> None:
    with pytest.raises(ValueError, match=r"numeric|the peer is of"):
        _cmsg.encode(0, None, local, None, ipv4)


times = st.tuples(
    st.just(_abi.SOL_SOCKET), st.just(_abi.SO_TIMESTAMPNS), st.binary(min_size=14, max_size=18)
)


@given(
    messages=st.lists(
        st.one_of(times, st.tuples(known, st.binary(max_size=40)).map(lambda m: (*m[0], m[1]))),
        max_size=4,
    ),
    cut=st.integers(0, 8),
)
def test_reading_what_was_read_before_tells_the_same(
    messages: list[tuple[int, int, bytes]], cut: int
) -> None:
    raw = _cmsg.serialise(tuple(messages))
    raw = raw[: len(raw) - cut]
    for _ in range(2):
        assert _cmsg.read(raw) == _cmsg.decode(_cmsg.parse(raw))[1:]
