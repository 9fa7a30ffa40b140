# What moves datagrams between one socket and many is written down twice: socket by socket in
# Python, and all of them at once in C. Both do the same, on the same traffic.

from __future__ import annotations

import contextlib
import errno
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, strategies as st

from snaptun_trio import PacketBufPool, PacketTrain, UdpBatchReceiver, UdpBatchSender
from snaptun_trio._batch import messages_of
from snaptun_trio._kernel import _portable, socket_io
from snaptun_trio._kernel._fan import Fan, Link
from snaptun_trio._messages import TrainMessages

from . import ends, refusals

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from snaptun_trio import Address
    from snaptun_trio._kernel._interface import SocketIO
    from snaptun_trio._kernel._pieces import IncomingMessage
    from snaptun_trio._messages import Messages

pytestmark = pytest.mark.usefixtures("linux_backend")

LINKS = 4
WAYS = [None, (None, "127.0.0.5", None), None, (None, "127.0.0.6", None)]
HOSTS = ["127.0.0.1", "::1", "127.0.0.1", "127.0.0.1"]
bursts = st.lists(
    st.tuples(st.integers(0, LINKS - 1), st.integers(1, 40), st.sampled_from([0, 1, 100, 1200])),
    max_size=12,
)
"""Which link, how many datagrams, and of what size."""


class Side:
    """One kind of fan, with links of its own."""

    def __init__(self, stack: contextlib.ExitStack, io: Any, gso: bool) -> None:  # noqa: ANN401
        self.front = stack.enter_context(ends.bound_socket())
        front: SocketIO = io(self.front)
        self.fan = type(front).fan(front, type(front).memory(65_536, 4), gro=True, gso=gso)
        self.peers: list[socket.socket] = []
        self.links: list[Link] = []
        self.pool = PacketBufPool()
        for number, (way, host) in enumerate(zip(WAYS, HOSTS)):
            peer = stack.enter_context(ends.bound_socket(host))
            sock = stack.enter_context(ends.bound_socket(host))
            sock.connect(peer.getsockname())
            link = Link(io(sock), ("127.0.0.1", 5000 + number))
            self.fan.prepare(link, way)
            self.peers.append(peer)
            self.links.append(link)

    def feed(self, traffic: list[tuple[int, int, int]]) -> None:
        """What the peers send to the links; each datagram has its number."""
        at = 0
        for number, count, size in traffic:
            packets = ends.numbered(count, size, start=at) if size else [b""] * count
            at += count
            UdpBatchSender(self.peers[number]).send_nowait(
                ends.batch_of(packets, self.links[number].io.sock.getsockname())
            )

    def read(self, order: Sequence[int]) -> tuple[dict[Address, list[bytes]], Counter[int], int]:
        """All that the links have, in calls until none has anything; and the errors."""
        found: dict[Address, list[bytes]] = {}
        errors: Counter[int] = Counter()
        nbytes = 0
        for _ in range(1000):
            ready = [self.links[number] for number in order]
            something = False
            while ready:
                messages, served, error = self.fan.receive(ready)
                assert 1 <= served <= len(ready)
                assert served == len(ready) or error
                nbytes += messages.nbytes
                for train in messages.trains():
                    assert train.address is not None
                    number = train.address[1] - 5000
                    way = WAYS[number]
                    assert train.local_address == (way and way[1])
                    assert train.ecn is None
                    found.setdefault(train.address, []).extend(train)
                assert messages.datagrams == len(messages.packets())
                errors[error] += error != 0
                something = something or bool(error) or messages.datagrams > 0
                ready = ready[served:]
            if not something:
                return found, +errors, nbytes
        raise AssertionError("there is no end to it")


@contextlib.contextmanager
def both(gso: bool = True) -> Iterator[tuple[Side, Side]]:
    with contextlib.ExitStack() as stack:
        yield Side(stack, socket_io, gso), Side(stack, _portable.PortableIO, gso)


@example(traffic=[(n % LINKS, 1, 100) for n in range(300)], order=[3, 2, 1, 0])
@given(traffic=bursts, order=st.permutations(range(LINKS)))
def test_both_receive_the_same(traffic: list[tuple[int, int, int]], order: list[int]) -> None:
    with both() as sides:
        told = []
        for side in sides:
            side.feed(traffic)
            told.append(side.read(order))
        assert told[0] == told[1]
        expected: Counter[int] = Counter()
        for number, count, _ in traffic:
            expected[5000 + number] += count
        assert {address[1]: len(got) for address, got in told[0][0].items()} == expected


@pytest.mark.parametrize("behind", [0, 1, 5, 100])
def test_an_error_about_earlier_datagrams_is_told_and_hides_nothing(behind: int) -> None:
    with both() as sides:
        told = []
        for side in sides:
            side.feed([(n, behind, 100) for n in range(LINKS) if behind])
            for number in (1, 3):
                link, peer = side.links[number], side.peers[number]
                peer.close()
                with link.io.plain() as plain:
                    plain.send(b"into the void")
            found, errors, nbytes = side.read(range(LINKS))
            assert errors == {errno.ECONNREFUSED: 2}
            told.append((found, nbytes))
        assert told[0] == told[1]
        assert told[0][1] == LINKS * 100 * behind


def test_an_error_that_comes_behind_datagrams_is_told_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the portable fan both come of one call; the kernel keeps it for the next, with ours."""
    with both() as (_, side):
        side.feed([(n, 3, 100) for n in range(LINKS)])
        real = _portable._receive_message
        calls: list[int] = []

        def receive(plain: socket.socket, buffer: memoryview) -> IncomingMessage:
            calls.append(plain.fileno())
            if calls.count(side.links[1].io.sock.fileno()) == 2:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
            return real(plain, buffer)

        monkeypatch.setattr(_portable, "_receive_message", receive)
        messages, served, error = side.fan.receive(side.links)
        assert served == 2
        assert error == errno.ECONNREFUSED
        by_link = {address: of.datagrams for address, of in messages.by_address().items()}
        monkeypatch.undo()
        rest = side.fan.receive(side.links)
        assert sum(by_link.values()) + rest.messages.datagrams == LINKS * 3


@pytest.mark.parametrize("at", range(LINKS))
def test_a_socket_that_is_closed_is_an_error_of_its_own(at: int) -> None:
    with both() as sides:
        for side in sides:
            side.feed([(n, 3, 100) for n in range(LINKS)])
            side.links[at].io.sock.close()
            messages, served, error = side.fan.receive(side.links)
            assert (messages.datagrams, served, error) == (3 * at, at + 1, errno.EBADF)
            if after := side.links[at + 1 :]:
                assert side.fan.receive(after)[:2][0].datagrams == 3 * len(after)


# -- sending


def batch_for(side: Side, traffic: tuple[int, int], made: bool) -> Messages:
    """What a client sent, as it came in; or as a program would make it."""
    count, size = traffic
    packets = ends.numbered(count, size) if size else [b""] * count
    if made:
        return TrainMessages.of_trains(tuple(PacketTrain.pack(packets, ("127.0.0.1", 9))))
    with ends.bound_socket() as source, ends.bound_socket() as into:
        UdpBatchSender(source).send_nowait(ends.batch_of(packets, ends.address_of(into)))
        receiver = UdpBatchReceiver(into, side.pool, batch_size=count)
        ends.wait_until_readable(into)
        batch = receiver.receive_nowait()
        return messages_of(batch)[0]


def finish(link: Link, outgoing: Any) -> int:  # noqa: ANN401
    """Send what was left over."""
    while outgoing.more:
        if code := link.io.send(outgoing, 1024):
            return code
    return 0


@given(
    traffic=st.lists(
        st.tuples(st.integers(1, 80), st.sampled_from([0, 1, 100, 1200])),
        min_size=1,
        max_size=LINKS,
    ),
    made=st.booleans(),
    gso=st.booleans(),
    budget=st.sampled_from([1, 3, 1024]),
)
def test_both_send_the_same(
    traffic: list[tuple[int, int]], made: bool, gso: bool, budget: int
) -> None:
    with both(gso) as sides:
        told = []
        for side in sides:
            batches = [batch_for(side, one, made) for one in traffic]
            links = side.links[: len(batches)]
            sent = side.fan.send(links, batches, budget)
            assert all(code == 0 for _, code, _ in sent.rest)
            datagrams, nbytes, made_of = sent.datagrams, sent.nbytes, sent.messages
            for place, _, outgoing in sent.rest:
                assert finish(links[place], outgoing) == 0
                datagrams += outgoing.datagrams
                nbytes += outgoing.nbytes
                made_of += outgoing.messages
            assert datagrams == sum(batch.datagrams for batch in batches)
            assert nbytes == sum(batch.nbytes for batch in batches)
            assert sent.calls + len(sent.rest) == len(batches)
            got = [
                ends.read_plainly(peer, batch.datagrams) for peer, batch in zip(side.peers, batches)
            ]
            assert got == [[packet for packet, _ in batch.packets()] for batch in batches]
            told.append((datagrams, nbytes, made_of, got))
        assert told[0] == told[1]


def test_a_batch_of_nothing_is_nothing_to_send() -> None:
    with both() as sides:
        for side in sides:
            nothing = TrainMessages.of_trains(())
            something = batch_for(side, (3, 10), True)
            sent = side.fan.send(side.links[:3], [nothing, something, nothing], 1024)
            assert (sent.datagrams, sent.nbytes, sent.rest) == (3, 30, [])
            assert ends.read_plainly(side.peers[1], 3) == ends.numbered(3, 10)


@pytest.mark.needs_gso
def test_one_link_that_does_not_segment_speaks_for_all() -> None:
    with both() as sides:
        for side in sides:
            assert side.fan.gso
            sock = side.links[0].io.sock
            sock.setsockopt(0, 10, 5)  # IP_MTU_DISCOVER, IP_PMTUDISC_OMIT: its owner's fragments
            side.fan.prepare(side.links[0], None)
            assert not side.fan.gso
            batches = [batch_for(side, (5, 100), False) for _ in range(LINKS)]
            sent = side.fan.send(side.links, batches, 1024)
            assert (sent.messages, sent.datagrams) == (5 * LINKS, 5 * LINKS)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EPERM, errno.EIO, errno.EINVAL])
@pytest.mark.parametrize("place", range(LINKS))
def test_what_one_socket_refuses_is_told_and_the_others_send(
    monkeypatch: pytest.MonkeyPatch, code: int, place: int
) -> None:
    with both() as sides:
        for side, backend in zip(sides, ("linux", "portable")):
            codes = {side.links[place].io.sock.fileno(): code}
            with monkeypatch.context() as patch:
                refusals.refuse_by_descriptor(patch, backend, codes)
                batches = [batch_for(side, (5, 100), False) for _ in range(LINKS)]
                sent = side.fan.send(side.links, batches, 1024)
            assert (sent.calls, sent.datagrams, sent.nbytes) == (3, 15, 1500)
            ((where, told, outgoing),) = sent.rest
            assert (where, told) == (place, code)
            assert (outgoing.datagrams, outgoing.content.datagrams) == (0, 5)
            assert finish(side.links[place], outgoing) == 0
            for peer in side.peers:
                assert ends.read_plainly(peer, 5) == ends.numbered(5, 100)


@pytest.mark.needs_gso
@pytest.mark.needs_gro
@pytest.mark.parametrize("nbytes", [65_472, 65_473, 65_474, 65_492, 65_493, 65_494, 65_500, 65_507])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_trains_as_long_as_there_are_go_to_both_families(nbytes: int, host: str) -> None:
    """An IPv6 socket among the many lowers what trains may be, for all; nothing is too long."""
    data = bytes(n % 251 for n in range(nbytes))
    size = 1200
    packets = [data[at : at + size] for at in range(0, nbytes, size)]
    with both() as sides:
        for side in sides:
            with ends.bound_socket(host) as source, ends.bound_socket(host) as into:
                receiver = UdpBatchReceiver(into, side.pool)
                half = len(packets) // 2
                for part in (packets[:half], packets[half:]):  # to be joined, if they may be
                    UdpBatchSender(source).send_nowait(ends.batch_of(part, ends.address_of(into)))
                batch = messages_of(ends.collect_batches(receiver, len(packets))[0])[0]
            batch = batch if batch.datagrams == len(packets) else pytest.skip("it came in two")
            sent = side.fan.send(side.links, [batch] * LINKS, 1024)
            assert sent.rest == []
            assert sent.datagrams == LINKS * len(packets)
            assert sent.messages <= 2 * LINKS
            for peer in side.peers:
                assert ends.read_plainly(peer, len(packets)) == packets


@pytest.mark.parametrize("offload", ["GRO", "GSO"])
def test_what_is_switched_off_stays_off(offload: str) -> None:
    with contextlib.ExitStack() as stack:
        for io in (socket_io, _portable.PortableIO):
            front: SocketIO = io(stack.enter_context(ends.bound_socket()))
            options = {"gro": offload != "GRO", "gso": offload != "GSO"}
            fan: Fan = type(front).fan(front, type(front).memory(65_536, 1), **options)
            link = Link(io(stack.enter_context(ends.bound_socket())), ("127.0.0.1", 9))
            fan.prepare(link, None)
            assert link.io.gro == (options["gro"] and ends.kernel_knows(ends.UDP_GRO))
            assert (
                link.io.gso == fan.gso == (options["gso"] and ends.kernel_knows(ends.UDP_SEGMENT))
            )
