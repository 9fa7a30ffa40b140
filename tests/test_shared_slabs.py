# One pool for sockets of both families and traffic of every shape: F47 of the fault matrix.
#
# A slab that was used before must behave as if it were new. The kernel writes 16 bytes of an IPv4
# name and 28 of an IPv6 one, and only as many control messages as there are: what lies behind them
# belongs to somebody else's datagrams.

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from snaptun_trio import PacketBufPool, UdpBatchReceiver, UdpBatchSender

from . import ends
from .recorder import Incoming, Message, Recorder

if TYPE_CHECKING:
    import socket

pytestmark = pytest.mark.usefixtures("linux_backend")


@pytest.fixture
def recorder(linux_backend: None, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


@pytest.mark.core
def test_equal_ipv4_datagrams_after_ipv6_ones_leave_as_few_messages(
    recorder: Recorder, udp: ends.MakeSocket
) -> None:
    pool = PacketBufPool(capacity=1)
    six, four, outgoing = udp("::1"), udp(), udp()
    for _ in range(20):
        udp("::1").sendto(b"six", six.getsockname())
    before = UdpBatchReceiver(six, pool)
    assert sum(len(before.receive_nowait()) for _ in range(2)) == 20
    receiver, sender = UdpBatchReceiver(four, pool), UdpBatchSender(udp())
    received = 0
    recorder.pretend = True
    for packet in ends.numbered(1000, 1200):
        outgoing.sendto(packet, four.getsockname())
    while received < 1000:
        batch = receiver.receive_nowait()
        received += len(batch)
        sender.send_nowait(batch)
        del batch
    assert pool.statistics().allocated == 1
    assert sum(len(message.datagrams()) for message in recorder.messages) == 1000
    # 54 datagrams of 1200 bytes make a train of 65 kB; a call brings 16 first, hundreds later.
    assert len(recorder.messages) <= 1000 // 54 + 1 + receiver.statistics().receive_calls


def name_of(family: str, host: int, port: int, padding: bytes) -> bytes:
    """A raw name as a kernel might leave it; sin_zero means nothing."""
    if family == "four":
        return struct.pack("=H", 2) + struct.pack("!HI", port, host) + padding
    raw = struct.pack("=H", 10) + struct.pack("!HIQQ", port, 0, 0xFD << 56, host)
    return raw + struct.pack("=I", 0)


def controls_of(size: int, ecn: int | None) -> tuple[tuple[int, int, bytes], ...]:
    gro = ((17, 104, struct.pack("=i", size)),) if size else ()
    return gro if ecn is None else (*gro, (0, 1, bytes([ecn])))


@attrs.frozen
class Shape:
    """What a call brings: ``count`` messages, the last of another length."""

    family: str
    count: int
    length: int
    last_length: int
    segment_size: int
    ecn: int | None
    peers: int
    padding: bytes

    def messages(self) -> list[Incoming]:
        lengths = [self.length] * (self.count - 1) + [self.last_length]
        return [
            Incoming(
                bytes([number]) * size,
                name_of(
                    self.family, number % self.peers, 1000, self.padding if number % 2 else bytes(8)
                ),
                controls_of(self.segment_size if size > self.segment_size else 0, self.ecn),
            )
            for number, size in enumerate(lengths)
        ]


shapes = st.builds(
    Shape,
    family=st.sampled_from(["four", "six"]),
    count=st.integers(1, 40),
    length=st.sampled_from([0, 1, 100, 1200, 5000]),
    last_length=st.sampled_from([0, 1, 100, 1200, 5000]),
    segment_size=st.sampled_from([0, 0, 100, 1200]),
    ecn=st.sampled_from([None, None, 1]),
    peers=st.integers(1, 3),
    padding=st.sampled_from([bytes(8), b"\xff" * 8]),
)


@attrs.frozen
class Forwarded:
    """A batch, and the messages that it left as."""

    trains: list[bytes]
    packets: ends.Datagrams
    messages: list[Message]


class Forwarder:
    """Receives what is handed to it with receivers of one pool, and forwards it."""

    def __init__(self, recorder: Recorder, sockets: dict[str, socket.socket]) -> None:
        self._recorder = recorder
        self._sockets = sockets
        self._senders = {family: UdpBatchSender(sock) for family, sock in sockets.items()}

    def forward(self, pool: PacketBufPool, shape: Shape) -> list[Forwarded]:
        """The same call twice with one receiver: the second may be laid out by the first."""
        receiver = UdpBatchReceiver(self._sockets[shape.family], pool, batch_size=64)
        found: list[Forwarded] = []
        for _ in range(2):
            self._recorder.incoming = shape.messages()
            while self._recorder.incoming:
                batch = receiver.receive_nowait()
                self._recorder.sent.clear()
                self._senders[shape.family].send_nowait(batch)
                messages = [
                    Message(m.name, (), m.payload, m.segment_size, m.other_controls)
                    for m in self._recorder.messages
                ]
                trains = [bytes(train.data) for train in batch.trains]
                found.append(Forwarded(trains, list(batch), messages))
                del batch
        return found


@settings(max_examples=25)
@given(earlier=st.lists(shapes, max_size=3), last=shapes)
def test_a_slab_that_was_used_before_behaves_as_if_it_were_new(
    recorder: Recorder, earlier: list[Shape], last: Shape
) -> None:
    recorder.pretend = True
    with ends.bound_socket() as four, ends.bound_socket("::1") as six:
        forwarder = Forwarder(recorder, {"four": four, "six": six})
        used = PacketBufPool(capacity=1)
        for shape in earlier:
            forwarder.forward(used, shape)
        again = forwarder.forward(used, last)
        assert used.statistics().allocated == 1
        assert again == forwarder.forward(PacketBufPool(capacity=1), last)


def test_the_padding_of_a_name_makes_no_second_peer(
    recorder: Recorder, udp: ends.MakeSocket
) -> None:
    """Eight bytes of a sockaddr_in are called sin_zero, and mean nothing."""
    recorder.pretend = True
    recorder.incoming = [
        Incoming(b"x" * 100, name_of("four", 1, 9, bytes([number]) * 8)) for number in range(10)
    ]
    batch = UdpBatchReceiver(udp(), gro=False).receive_nowait()
    UdpBatchSender(udp()).send_nowait(batch)
    assert len(recorder.messages) == 1
    assert {address for _, address in batch} == {("0.0.0.1", 9)}


@pytest.mark.parametrize("family", ["four", "six"])
@pytest.mark.parametrize("differing", ["host", "port"])
def test_peers_that_differ_in_anything_stay_apart(
    recorder: Recorder, udp: ends.MakeSocket, family: str, differing: str
) -> None:
    recorder.pretend = True
    names = [
        name_of(family, 1, 9, bytes(8)),
        name_of(family, 1 + (differing == "host"), 9 + (differing == "port"), bytes(8)),
    ]
    recorder.incoming = [Incoming(b"x" * 1000, names[number % 2]) for number in range(10)]
    sock = udp("::1" if family == "six" else "127.0.0.1")
    UdpBatchSender(sock).send_nowait(UdpBatchReceiver(sock, gro=False).receive_nowait())
    found = [(message.name, len(message.datagrams())) for message in recorder.messages]
    assert found == [(name, 5) for name in names], "all of one peer's, then all of the other's"
