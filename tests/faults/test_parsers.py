# Control messages and socket addresses from random bytes: F40 of the fault matrix.
#
# The kernel writes them and a stranger chooses much of what is in them. Whatever the bytes are, the
# parsers end, read nothing beyond the buffer, and raise nothing.

from __future__ import annotations

import random
import socket
import struct

import hypothesis
import pytest
from hypothesis import strategies as st

from snaptun_trio._kernel import _cmsg, _sockaddr

IN_A_NORMAL_RUN = 20_000

LEVELS = (0, 1, 17, 41, 132, -1, 0x7FFF_FFFF)
KINDS = (1, 2, 8, 11, 35, 50, 67, 103, 104, -1)


def random_control(rng: random.Random) -> bytes:
    """Control bytes that are nearly right: headers with lying lengths, tails cut anywhere."""
    parts = []
    for _ in range(rng.randrange(6)):
        size = rng.choice((0, 1, 2, 3, 4, 8, 12, 16, 20, rng.randrange(64)))
        length = rng.choice(
            (16 + size, 16 + size, 16 + size, rng.randrange(17), 0, 2**63, 2**64 - 1, 16 + size + 1)
        )
        header = struct.pack("=Qii", length, rng.choice(LEVELS), rng.choice(KINDS))
        parts.append(header + rng.randbytes(size) + bytes(-size % rng.choice((8, 8, 8, 4, 1))))
    control = b"".join(parts)
    if rng.random() < 0.3:
        control = control[: rng.randrange(len(control) + 1)]
    return control


def check_control(control: bytes) -> None:
    """What every control buffer must obey."""
    stop = 0
    for _, _, start, end in _cmsg.walk(control):
        assert stop <= start <= end <= len(control)
        stop = end
    messages = _cmsg.parse(control)
    told = _cmsg.decode(messages)
    assert told.segment_size is None or told.segment_size != 0
    assert told.ecn is None or 0 <= told.ecn <= 3
    assert told.interface_index is None or isinstance(told.interface_index, int)


def check_name(raw: bytes) -> None:
    """What every socket address must obey: nothing is raised, and what is read can be written."""
    address = _sockaddr.decode(raw)
    if address is None:
        return
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    socket.inet_pton(family, address[0])
    assert 0 <= address[1] <= 0xFFFF
    if len(address) == 4 and address[2] > 0xFFFFF:
        return  # A flow label that the kernel never reports (20 bits); not ours to send.
    written = _sockaddr.encode(address, int(family))
    assert len(written) == (28 if family == socket.AF_INET6 else 16)
    assert _sockaddr.decode(written) == address


@hypothesis.settings(max_examples=1000)
@hypothesis.given(st.binary(max_size=400))
def test_f40_any_bytes_as_control_messages(control: bytes) -> None:
    check_control(control)


@hypothesis.settings(max_examples=1000)
@hypothesis.given(
    st.binary(max_size=40),
    st.sampled_from([socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 0, 0xFFFF]),
)
def test_f40_any_bytes_as_a_socket_address(raw: bytes, family: int) -> None:
    check_name(raw)
    check_name(struct.pack("=H", family) + raw)


def fuzz(inputs: int, seed: int) -> None:
    """Nearly right control messages and addresses, in numbers."""
    rng = random.Random(seed)
    for _ in range(inputs // 2):
        check_control(random_control(rng))
        family = rng.choice((2, 10, 10, rng.randrange(0x10000)))
        check_name(
            struct.pack("=H", family) + rng.randbytes(rng.choice((14, 26, rng.randrange(40))))
        )


def test_f40_nearly_right_control_messages_and_addresses(seed: int) -> None:
    fuzz(IN_A_NORMAL_RUN, seed)


@pytest.mark.soak
def test_soak_nearly_right_control_messages_and_addresses(rounds: int, seed: int) -> None:
    fuzz(rounds, seed)
    print(f"{rounds} control buffers and addresses parsed")
