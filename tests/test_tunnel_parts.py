# The parts of docs/examples/tunnel.py that need no network: keys, the replay window, and
# super-packets that are cut and joined again.

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from hypothesis import given, strategies as st

from .examples import example
from .faults import packets

if TYPE_CHECKING:
    from collections.abc import Sequence

crypto, frames = example("tunnel_crypto"), example("tunnel_packets")
PSK = bytes(range(32))
SMALL_WINDOW = 16

# -- the replay window


@given(st.lists(st.integers(-20, 20) | st.just(2**40), max_size=60))
@hypothesis.example([3, 10, 8, -2])  # 19 was skipped, and has the place that 3 had
def test_window_lets_each_counter_through_once(steps: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crypto, "WINDOW", SMALL_WINDOW)
        window, seen = crypto.ReplayWindow(), set[int]()
        for step in steps:
            counter = max(max(seen, default=0) + step, 0)
            is_late = counter <= max(seen, default=-1) - SMALL_WINDOW
            assert window.is_fresh(counter) == (counter not in seen and not is_late)
            if window.is_fresh(counter):
                window.mark(counter)
                seen.add(counter)


# -- keys


def keyring(psk: bytes = PSK) -> Any:  # noqa: ANN401  # the example is imported as a file
    return crypto.Keyring(psk, seconds=100.0, messages=1000)


def agree(one: Any, other: Any, now: float = 0.0) -> None:  # noqa: ANN401
    """A whole exchange, that the first one asks for, with nothing lost."""
    confirmation = one.take_reply(other.take_hello(one.hello(), now), now)
    packet, answer = other.open(confirmation, now)
    assert packet == b""
    assert one.open(answer, now) == (b"", None)


def agreed() -> tuple[Any, Any]:
    one, other = keyring(), keyring()
    agree(one, other)
    return one, other


@given(st.lists(st.binary(max_size=80), min_size=1), st.randoms())
def test_what_is_sealed_is_opened_once_in_any_order(sent: list[bytes], random: Any) -> None:  # noqa: ANN401
    for way in ([0, 1], [1, 0]):
        sides = agreed()
        here, there = (sides[which] for which in way)
        sealed = [(here.sending.seal(packet), packet) for packet in sent]
        random.shuffle(sealed)
        for message, packet in sealed:
            assert len(message) == len(packet) + crypto.OVERHEAD
            assert there.open(message, 0.0) == (packet, None)
            assert there.open(message, 0.0) == (None, None)
        assert there.counts["replayed"] == len(sent)


@given(st.binary(max_size=40), st.data())
def test_what_was_changed_is_not_opened(packet: bytes, data: st.DataObject) -> None:
    here, there = agreed()
    message = here.sending.seal(packet, b"\1\2\3")
    changed = bytearray(message)
    changed[data.draw(st.integers(0, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert there.open(bytes(changed), 0.0) == (None, None)
    refused = ("forged", "unknown", "replayed")  # the last with the counter of one that has come
    assert sum(there.counts[reason] for reason in refused) == 1
    assert there.open(message, 0.0) == (packet, None)  # the forgery has not used it up


@given(st.binary(max_size=80))
def test_rubbish_is_refused(rubbish: bytes) -> None:
    one, _ = agreed()
    one.hello()
    before = one.sending
    assert one.open(rubbish, 0.0) == (None, None)
    assert one.take_hello(rubbish, 0.0) is None
    assert one.take_reply(rubbish, 0.0) is None
    assert one.counts["forged"] + one.counts["unknown"] == 3
    assert one.sending is before


def test_other_key_is_not_answered() -> None:
    one, stranger = keyring(), keyring(bytes(32))
    assert one.take_hello(stranger.hello(), 0.0) is None
    hello = one.hello()
    reply = keyring().take_hello(hello, 0.0)
    assert stranger.take_reply(reply, 0.0) is None
    changed = bytes([*reply[:-1], reply[-1] ^ 1])
    assert one.take_reply(changed, 0.0) is None
    assert one.take_reply(reply, 0.0) is not None
    assert one.take_reply(reply, 0.0) is None  # once


def test_what_is_under_way_is_opened_after_new_keys_came() -> None:
    here, there = agreed()
    old = [here.sending.seal(b"before"), there.sending.seal(b"before")]
    agree(here, there, 50.0)
    new = [here.sending.seal(b"after"), there.sending.seal(b"after")]
    assert not here.wants_new(50.5)
    assert not there.wants_new(50.5)
    for messages, packet in ((new, b"after"), (old, b"before")):
        assert there.open(messages[0], 51.0) == (packet, None)
        assert here.open(messages[1], 51.0) == (packet, None)
    late = there.sending.seal(b"late")
    assert not here.wants_new(50.0 + crypto.OVERLAP + 1)
    assert here.open(late, 62.0) == (b"late", None)
    assert len(here._sessions) == 1  # the old keys are gone


def test_nothing_is_sent_under_keys_that_the_peer_may_not_have() -> None:
    here, there = agreed()
    old = there.sending
    hello = here.hello()
    for _ in range(100):  # somebody recorded it, and sends it again and again
        reply = there.take_hello(hello, 1.0)
        assert there.sending is old
        assert len(there._sessions) <= crypto.SESSIONS
    confirmation = here.take_reply(reply, 1.0)
    assert here.open(old.seal(b"old"), 1.0) == (b"old", None)
    _, answer = there.open(confirmation, 1.0)
    assert there.sending is not old
    assert here.open(answer, 1.0) == (b"", None)
    there.take_hello(hello, 2.0)
    assert here.open(there.sending.seal(b"new"), 2.0) == (b"new", None)


def test_both_ask_at_once() -> None:
    one, other = keyring(), keyring()
    hellos = [one.hello(), other.hello()]
    replies = [other.take_hello(hellos[0], 0.0), one.take_hello(hellos[1], 0.0)]
    confirmations = [one.take_reply(replies[0], 0.0), other.take_reply(replies[1], 0.0)]
    for side, message in ((other, confirmations[0]), (one, confirmations[1])):
        assert side.open(message, 0.0)[0] == b""
    for _ in range(3):
        assert other.open(one.sending.seal(b"there"), 0.0)[0] == b"there"
        assert one.open(other.sending.seal(b"back"), 0.0)[0] == b"back"


def test_own_hello_that_comes_back_is_not_answered() -> None:
    one, other = keyring(), keyring()
    first, hello = one.hello(), one.hello()
    assert one.take_hello(hello, 0.0) is None
    assert one.counts["reflected"] == 1
    assert one.take_reply(one.take_hello(first, 0.0), 0.0) is None  # nobody waits for that one
    assert one.take_reply(other.take_hello(hello, 0.0), 0.0) is not None
    assert one.take_hello(hello, 0.0) is not None  # answered, but the answer is not taken
    assert one.take_reply(one.take_hello(hello, 0.0), 0.0) is None


def test_when_new_keys_are_wanted() -> None:
    one, other = keyring(), keyring()
    assert one.wants_new(0.0)
    assert other.wants_new(0.0)
    confirmation = one.take_reply(other.take_hello(one.hello(), 0.0), 0.0)
    assert one.wants_new(0.0)  # until the peer has shown that it heard us
    _, answer = other.open(confirmation, 0.0)
    one.open(answer, 0.0)
    assert not one.wants_new(99.0)
    assert one.wants_new(100.0)
    assert not other.wants_new(199.0)  # the one that asked goes on asking
    assert other.wants_new(200.0)
    for _ in range(1000):
        one.sending.seal(b"")
    assert one.wants_new(1.0)
    assert not other.wants_new(1.0)
    other.open(keyring_of_a_restarted_peer().sending.seal(b""), 1.0)
    assert other.wants_new(1.0)
    assert one.wants_new(301.0)
    assert one.sending is None  # keys do not last for ever


def keyring_of_a_restarted_peer() -> Any:  # noqa: ANN401
    restarted, _ = agreed()
    return restarted


# -- super-packets


def checked(packet: bytes, start: int, offset: int) -> bytes:
    """A packet with its checksum completed, after a look at its headers; it returns the payload."""
    if packet[0] >> 4 == 4:
        assert packets.ones_complement_sum(packet[:start]) == 0xFFFF
        assert struct.unpack_from("!H", packet, 2) == (len(packet),)
        addresses = packet[12:20]
    else:
        assert struct.unpack_from("!H", packet, 4) == (len(packet) - 40,)
        addresses = packet[8:40]
    inner = len(packet) - start
    pseudo = addresses + struct.pack("!HH", 6 if offset == 16 else 17, inner)
    field = struct.unpack_from("!H", packet, start + offset)[0]
    assert field % 0xFFFF == packets.ones_complement_sum(pseudo) % 0xFFFF
    if offset == 16:
        return packet[start + (packet[start + 12] >> 4) * 4 :]
    assert struct.unpack_from("!H", packet, start + 4) == (inner,)
    return packet[start + 8 :]


@st.composite
def super_packets(draw: st.DrawFn) -> tuple[bytes, int, int]:
    """A frame as the kernel gives it, with csum_start and csum_offset."""
    v4, is_tcp = draw(st.booleans()), draw(st.booleans())
    size = draw(st.integers(1, 40))
    payload = draw(st.binary(min_size=size + 1, max_size=10 * size))
    if is_tcp:
        options = bytes(4 * draw(st.integers(0, 10)))
        sequence, flags = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 255))
        words = (5 + len(options) // 4) << 12 | flags
        transport = struct.pack("!HHIIHHHH", 1, 2, sequence, 3, words, 4, 0, 0) + options
        kind, offset = (frames.GSO_TCPV4 if v4 else frames.GSO_TCPV6), 16
    else:
        transport = struct.pack("!HHHH", 1, 2, 0, 0)
        kind, offset = frames.GSO_UDP_L4, 6
    if v4:
        identification, fragment = draw(st.integers(0, 0xFFFF)), draw(st.sampled_from([0, 0x4000]))
        hosts = ipaddress.ip_address("10.0.0.1").packed + ipaddress.ip_address("10.0.0.2").packed
        protocol = 6 if is_tcp else 17
        head = struct.pack("!BBHHHBBH", 0x45, 1, 0, identification, fragment, 64, protocol, 0)
    else:
        hosts = draw(st.binary(min_size=32, max_size=32))
        head = struct.pack("!IHBB", 0x6010_0001, 0, 6 if is_tcp else 17, 64)
    whole = bytearray(head + hosts + transport)
    start = len(head + hosts)
    frames.set_lengths(whole, len(payload), start, offset)
    assert checked(bytes(whole) + payload, start, offset) == payload
    virtio = frames.VIRTIO.pack(frames.NEEDS_CSUM, kind, len(whole), size, start, offset)
    return virtio + whole + payload, start, offset


def as_opened(noted: Sequence[tuple[bytes, bytes]], first: int = 7) -> list[tuple[bytes, bytes]]:
    """Packets as they come out of a session, in the order in which they were sealed."""
    return [
        (bytes(packet), crypto.HEADER.pack(crypto.DATA, notes, 5, first + number))
        for number, (packet, notes) in enumerate(noted)
    ]


@given(super_packets())
def test_pieces_are_packets_of_their_own(made: tuple[bytes, int, int]) -> None:
    frame, start, offset = made
    size = frames.VIRTIO.unpack_from(frame)[3]
    whole = frame[frames.VIRTIO.size :]
    pieces = [bytes(packet) for packet, _ in frames.cut(frame)]
    payloads = [checked(piece, start, offset) for piece in pieces]
    assert b"".join(payloads) == checked(whole, start, offset)
    assert {len(payload) for payload in payloads[:-1]} == {size}
    assert 0 < len(payloads[-1]) <= size
    if whole[0] >> 4 == 4:
        numbers = [struct.unpack_from("!H", piece, 4)[0] for piece in pieces]
        step = 0 if whole[6] & 0x40 else 1
        assert numbers == [(numbers[0] + step * n) % 2**16 for n in range(len(pieces))]
    if offset == 16:
        sequences = [struct.unpack_from("!I", piece, start + 4)[0] for piece in pieces]
        assert sequences == [(sequences[0] + size * n) % 2**32 for n in range(len(pieces))]
        fin_psh_cwr = [piece[start + 13] & 0x89 for piece in pieces]
        flags = whole[start + 13]
        between = [0] * (len(pieces) - 2)
        assert fin_psh_cwr == [flags & 0x80, *between, flags & 0x09]


@given(super_packets())
def test_what_was_cut_is_joined_again(made: tuple[bytes, int, int]) -> None:
    frame, _, _ = made
    (joined,) = frames.join(as_opened(frames.cut(frame)), udp=True)
    assert b"".join(joined) == frame


@given(st.lists(super_packets(), min_size=1, max_size=3), st.booleans(), st.data())
def test_whatever_comes_is_written_once_and_in_order(
    made: list[tuple[bytes, int, int]], udp: bool, data: st.DataObject
) -> None:
    noted = [piece for frame, _, _ in made for piece in frames.cut(frame)]
    opened = as_opened(noted)
    chosen = data.draw(st.lists(st.sampled_from(opened), unique=True) | st.just(opened))
    written = [b"".join(parts) for parts in frames.join(chosen, udp=udp)]
    again = [bytes(packet) for frame in written for packet, _ in frames.cut(frame)]
    assert again == [packet for packet, _ in chosen]
    if not udp:
        kinds = {frames.VIRTIO.unpack_from(frame)[1] for frame in written}
        assert frames.GSO_UDP_L4 not in kinds


@given(st.lists(st.tuples(st.binary(max_size=90), st.binary(min_size=3, max_size=3))))
def test_whatever_the_peer_says_ends_nothing(said: list[tuple[bytes, bytes]]) -> None:
    opened = as_opened([(packet, bytes((notes[0] | 3, *notes[1:]))) for packet, notes in said])
    size = sum(len(packet) for packet, _ in said)
    for udp in (False, True):
        written = [part for frame in frames.join(opened, udp=udp) for part in frame[1:]]
        assert bool(written) == bool(said)
        assert len(b"".join(written)) <= size + 80 * len(said)
    large = [(bytes([0x45]) + bytes(65_000), bytes((3, 20, 16)))] * 2
    assert len(list(frames.join(as_opened(large), udp=True))) == 2


def test_packet_with_a_whole_checksum_passes_unchanged() -> None:
    for flags in (0, frames.NEEDS_CSUM):
        frame = frames.VIRTIO.pack(flags, frames.GSO_NONE, 0, 0, 20, 16) + b"E" + bytes(39)
        (joined,) = frames.join(as_opened(frames.cut(frame)), udp=True)
        assert b"".join(joined) == frame


def test_headers_that_no_note_can_tell_of_are_refused() -> None:
    frame = frames.VIRTIO.pack(frames.NEEDS_CSUM, frames.GSO_NONE, 0, 0, 300, 16) + bytes(400)
    with pytest.raises(ValueError, match="256"):
        frames.cut(frame)
