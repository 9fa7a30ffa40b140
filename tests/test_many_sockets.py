# The two functions of the compiled part that serve many sockets with one call: `receive_each` and
# `send_each`, with good arguments and with hostile ones.

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from snaptun_trio import UdpBatchSender
from snaptun_trio._kernel import _sockaddr, choose_backend

from . import ends, groups, system_calls
from .recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("linux_backend")

Compiled: TypeAlias = Any
"""The compiled part, and what it gives."""
SLOTS, MOST = 256, 64
"""Messages of one call of `receive_each`, and of these the most for one socket."""
NAME = _sockaddr.encode(("127.0.0.1", 9), 2)


@pytest.fixture
def rows() -> Compiled:
    system_calls.require_extension()
    choose_backend()  # which tells the compiled part how addresses and trains are made
    from snaptun_trio._kernel import _rows

    return _rows


@pytest.fixture
def many() -> Iterator[list[socket.socket]]:
    with groups.many_sockets(300) as made:
        yield made


def name(number: int) -> bytes:
    return _sockaddr.encode(("127.0.0.1", 1 + number), 2)


def read(pool: Compiled, sockets: list[socket.socket]) -> Compiled:
    return pool.receive_each(
        [sock.fileno() for sock in sockets],
        [name(number) for number in range(len(sockets))],
        [None] * len(sockets),
    )


def by_socket(rows: Compiled) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for packet, address in rows.packets():
        found.setdefault(address[1] - 1, []).append(packet)
    return found


# -- receive_each


def test_each_socket_has_its_turn_and_the_others_are_said_to_be_left(
    rows: Compiled, many: list[socket.socket], udp: ends.MakeSocket
) -> None:
    out, pool = udp(), rows.Pool(65_536, 2)
    for number, sock in enumerate(many):
        out.sendto(b"%d" % number, sock.getsockname())
    first = read(pool, many)
    assert (first.served, first.error, first.count) == (SLOTS, 0, SLOTS)
    second = read(pool, many[SLOTS:])
    assert (second.served, second.count) == (len(many) - SLOTS, len(many) - SLOTS)
    assert by_socket(first) == {n: [b"%d" % n] for n in range(SLOTS)}
    assert by_socket(second) == {n: [b"%d" % (SLOTS + n)] for n in range(len(many) - SLOTS)}


@pytest.mark.parametrize("sockets", [1, 2, 3, 4, 5, 100, 255, 256, 257])
@pytest.mark.parametrize("at", ["first", "last"])
def test_a_busy_socket_takes_no_others_share(
    rows: Compiled, many: list[socket.socket], udp: ends.MakeSocket, sockets: int, at: str
) -> None:
    out, pool = udp(), rows.Pool(65_536, 2)
    some = many[:sockets]
    busy = 0 if at == "first" else min(sockets, SLOTS) - 1
    for number, sock in enumerate(some):
        for _ in range(20 if number == busy else 1):  # what a small buffer holds, at least
            out.sendto(b"%d" % number, sock.getsockname())
    got = read(pool, some)
    served = min(sockets, SLOTS)
    assert got.served == served
    counts = {number: len(packets) for number, packets in by_socket(got).items()}
    assert set(counts) == set(range(served))
    share = SLOTS // served if at == "first" else SLOTS - served + 1
    assert counts[busy] == min(share, MOST, 20)
    assert sum(counts.values()) == got.count <= SLOTS


def test_the_most_of_one_socket(rows: Compiled, udp: ends.MakeSocket) -> None:
    out, into, other = udp(), udp(), udp()
    for number in range(300):
        out.sendto(b"%d" % number, into.getsockname())
    out.sendto(b"other", other.getsockname())
    pool = rows.Pool(65_536, 2)
    got = by_socket(read(pool, [into, other]))
    assert got == {0: [b"%d" % number for number in range(MOST)], 1: [b"other"]}
    rest = []
    while more := by_socket(read(pool, [into])):
        rest += more[0]
    assert rest == [b"%d" % number for number in range(MOST, 300)]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_error_ends_the_call_and_what_came_before_it_is_there(
    rows: Compiled, udp: ends.MakeSocket, at: int
) -> None:
    out, pool, some = udp(), rows.Pool(65_536, 2), [udp() for _ in range(3)]
    for sock in some:
        out.sendto(b"x", sock.getsockname())
    fds = [sock.fileno() for sock in some]
    fds[at] = -1
    got = pool.receive_each(fds, [NAME] * 3, [None] * 3)
    assert (got.served, got.error, got.count) == (at + 1, errno.EBADF, at)
    got = pool.receive_each(fds[at + 1 :], [NAME] * (2 - at), [None] * (2 - at))
    assert (got.served, got.error, got.count) == (2 - at, 0, 2 - at)


def test_no_sockets_and_sockets_without_anything(rows: Compiled, udp: ends.MakeSocket) -> None:
    pool = rows.Pool(65_536, 2)
    for sockets in ([], [udp()], [udp(), udp()]):
        got = read(pool, sockets)
        assert (got.served, got.error, got.count, got.datagrams) == (len(sockets), 0, 0, 0)
        assert got.packets() == []
        assert got.by_address() == {}
        assert not rows.outgoing(got, True, 2).more
        del got
    assert pool.statistics()[0] == 0


def test_interruptions_are_nobodys_affair(
    rows: Compiled, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ctypes

    out, into, calls = udp(), udp(), 0

    def interrupted(real: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: int) -> int:
            nonlocal calls
            calls += 1
            if calls % 3:
                ctypes.set_errno(errno.EINTR)
                return -1
            return real(*arguments)

        return call

    both = system_calls.replace(monkeypatch)
    system_calls.replace(monkeypatch, *map(interrupted, both))
    out.connect(into.getsockname())
    batch = rows.rows([b"one", b"two"], [3, 3], [None] * 2, None, [None] * 2)
    assert rows.send_each([batch], [out.fileno()], 9, 0, 2) == (1, 2, 2, 6, [])
    got = rows.Pool(65_536, 1).receive_each([into.fileno()], [NAME], [None])
    assert [packet for packet, _ in got.packets()] == [b"one", b"two"]
    assert calls == 6


def test_what_came_in_goes_on_with_the_words_that_were_given_and_no_others(
    rows: Compiled, udp: ends.MakeSocket
) -> None:
    """Nothing of what the kernel said of it is said to it again."""
    source, into, front, client = udp(), udp(), udp("0.0.0.0"), udp()
    into.setsockopt(socket.SOL_IP, socket.IP_RECVTOS, 1)
    source.setsockopt(socket.SOL_IP, socket.IP_TOS, 2)
    source.sendto(b"x", into.getsockname())
    from snaptun_trio._kernel import _cmsg

    control = _cmsg.serialise(_cmsg.encode(0, None, "127.0.0.9", None, True))
    to = _sockaddr.encode(client.getsockname(), 2)
    pool = rows.Pool(65_536, 1)
    got = pool.receive_each([into.fileno()], [to], [control])
    assert got.row(0)[4] == control
    client.setsockopt(socket.SOL_IP, socket.IP_RECVTOS, 1)
    outgoing = rows.outgoing(got, True, 2)
    assert outgoing.send(front.fileno(), 9, 64, False) == 0
    ends.wait_until_readable(client)
    data, controls, _, address = client.recvmsg(10, 100)
    assert (data, address[0]) == (b"x", "127.0.0.9")
    assert controls == [(socket.SOL_IP, socket.IP_TOS, b"\0")]


class Evil:
    """A number that does something when it is asked for its value."""

    def __init__(self, value: int, deed: Callable[[], object]) -> None:
        self.value, self.deed = value, deed

    def __index__(self) -> int:
        self.deed()
        return self.value


BAD_LISTS: list[tuple[Any, Any, Any]] = [
    ((), [], []),
    ([], (), []),
    ([], [], None),
    ([1], [], []),
    ([], [NAME], []),
    ([1], [NAME], []),
    (["1"], [NAME], [None]),
    ([None], [NAME], [None]),
    ([2**80], [NAME], [None]),
    ([1], ["name"], [None]),
    ([1], [bytearray(NAME)], [None]),
    ([1], [b"n" * 33], [None]),
    ([1], [NAME], ["control"]),
    ([1], [NAME], [b"c" * 105]),
    ([1, "1"], [NAME, NAME], [None, None]),
]


@pytest.mark.parametrize("lists", BAD_LISTS, ids=range(len(BAD_LISTS)))
def test_receive_each_refuses_what_it_cannot_use(
    rows: Compiled, udp: ends.MakeSocket, lists: tuple[Any, Any, Any]
) -> None:
    pool = rows.Pool(65_536, 2)
    with pytest.raises((TypeError, ValueError, OverflowError)):
        pool.receive_each(*lists)
    assert pool.statistics()[0] == 0
    with pytest.raises(TypeError):
        pool.receive_each(*lists[:2])


def test_the_longest_that_may_be_said_may_be_said(rows: Compiled, udp: ends.MakeSocket) -> None:
    into = udp()
    into.sendto(b"x", into.getsockname())
    got = rows.Pool(65_536, 2).receive_each([into.fileno()], [b"n" * 32], [b"c" * 104])
    assert got.row(0)[4] == b"c" * 104


def test_lists_that_change_meanwhile_do_no_harm(rows: Compiled, udp: ends.MakeSocket) -> None:
    into = udp()
    pool = rows.Pool(65_536, 2)
    for which in range(3):
        lists: list[list[Any]] = [[0, into.fileno()], [bytes(NAME)] * 2, [b"c" * 8] * 2]
        lists[0][0] = Evil(into.fileno(), lists[which].clear)
        with contextlib.suppress(SystemError, TypeError, ValueError, IndexError):
            got = pool.receive_each(*lists)
            assert got.served == 2
    for which in range(2):
        batch = rows.rows([bytes(bytearray(b"x"))], [1], [None], None, [None])
        both: list[list[Any]] = [[batch] * 2, [0, into.fileno()]]
        both[1][0] = Evil(into.fileno(), both[which].clear)
        del batch
        with contextlib.suppress(SystemError, TypeError, ValueError, IndexError):
            rows.send_each(*both, 9, 0, 2)


# -- send_each


def test_each_goes_by_its_own_socket_and_what_is_refused_is_in_the_rest(
    rows: Compiled, udp: ends.MakeSocket
) -> None:
    peers, outs = [udp() for _ in range(4)], [udp() for _ in range(4)]
    for out, peer in zip(outs, peers):
        out.connect(peer.getsockname())
    batches = [
        rows.rows([b"%d" % n] * (n + 1), [1] * (n + 1), [None] * (n + 1), None, [None] * (n + 1))
        for n in range(4)
    ]
    fds = [out.fileno() for out in outs]
    fds[2] = -1
    calls, messages, datagrams, nbytes, rest = rows.send_each(batches, fds, 100, 0, 2)
    assert (calls, messages, datagrams, nbytes) == (3, 7, 7, 7)
    ((place, code, outgoing),) = rest
    assert (place, code, outgoing.messages, outgoing.content) == (2, errno.EBADF, 0, batches[2])
    assert outgoing.send(outs[2].fileno(), 100, 0, False) == 0
    for number, peer in enumerate(peers):
        assert ends.read_plainly(peer, number + 1) == [b"%d" % number] * (number + 1)


@pytest.mark.parametrize("budget", [1, 2, 3, 10, 11])
def test_a_budget_leaves_the_rest(rows: Compiled, udp: ends.MakeSocket, budget: int) -> None:
    peer, out = udp(), udp()
    out.connect(peer.getsockname())
    packets = [b"%d" % n for n in range(10)]
    batch = rows.rows(packets, [1] * 10, [None] * 10, None, [None] * 10)
    told = rows.send_each([batch, batch], [out.fileno()] * 2, budget, 0, 2)
    if budget >= 10:
        assert told == (2, 20, 20, 20, [])
        return
    assert told[:4] == (0, 0, 0, 0)
    assert [(place, code) for place, code, _ in told[4]] == [(0, 0), (1, 0)]
    assert [outgoing.datagrams for _, _, outgoing in told[4]] == [budget] * 2
    assert ends.read_plainly(peer, 2 * budget) == packets[:budget] * 2
    for _, _, outgoing in told[4]:
        assert outgoing.send(out.fileno(), 100, 0, False) == 0
        assert not outgoing.more
    assert ends.read_plainly(peer, 20 - 2 * budget) == packets[budget:] * 2


def test_batches_of_nothing_and_none(rows: Compiled, udp: ends.MakeSocket) -> None:
    nothing = rows.rows([], [], [], None, [])
    assert rows.send_each([], [], 1, 64, 2) == (0, 0, 0, 0, [])
    assert rows.send_each([nothing], [-1], 1, 64, 2)[1:] == (0, 0, 0, [])


@pytest.mark.needs_gso
def test_it_is_segmented_as_far_as_it_is_told(rows: Compiled, udp: ends.MakeSocket) -> None:
    peer, out = udp(), udp()
    out.connect(peer.getsockname())
    packets = ends.numbered(10, 100)
    batch = rows.rows([b"".join(packets)], [100], [None], None, [None])
    for segments, messages in ((64, 1), (10, 1), (9, 2), (3, 4), (1, 10), (0, 10)):
        told = rows.send_each([batch], [out.fileno()], 100, segments, 2)
        assert told == (1, messages, 10, 1000, [])
        assert ends.read_plainly(peer, 10) == packets


@pytest.mark.parametrize(("family", "most"), [(socket.AF_INET, 5), (socket.AF_INET6, 4)])
def test_a_train_is_cut_at_the_limit_of_the_family(
    rows: Compiled, monkeypatch: pytest.MonkeyPatch, family: int, most: int
) -> None:
    """Five of these are 65 480 bytes: an IPv4 train, and too much for an IPv6 one."""
    recorder = Recorder(monkeypatch)
    recorder.pretend = True
    packets = ends.numbered(20, 13_096)
    batch = rows.rows([b"".join(packets)], [13_096], [None], None, [None])
    assert rows.send_each([batch], [1], 1000, 64, int(family))[2:] == (20, 20 * 13_096, [])
    assert {len(message.datagrams()) for message in recorder.messages} == {most}
    assert [packet for one in recorder.messages for packet in one.datagrams()] == packets


def test_where_memory_lacks_what_was_sent_is_told(rows: Compiled, udp: ends.MakeSocket) -> None:
    system_calls.require_hooks()
    peer, out = udp(), udp()
    out.connect(peer.getsockname())
    some = [rows.rows([payload], [2], [None], None, [None]) for payload in (b"ab", b"cd", b"ef")]
    fds = [out.fileno(), -1, out.fileno()]
    rows.send_each(some[:1], fds[:1], 9, 0, 2)  # which leaves room for one that is refused
    system_calls.fail_allocation(0)
    *told, ((place, code, refused),) = rows.send_each(some, fds, 9, 0, 2)
    assert system_calls.fail_allocation(0)[0] < 0, "it came to it"
    assert (told, place, code, refused.content) == ([1, 1, 1, 2], 1, errno.EBADF, some[1])
    with pytest.raises(MemoryError):  # there is nothing to tell of before it
        rows.send_each(some[2:], fds[2:], 9, 0, 2)
    assert rows.send_each(some[2:], fds[2:], 9, 0, 2) == (1, 1, 1, 2, [])
    assert ends.read_plainly(peer, 3) == [b"ab", b"ab", b"ef"]


def test_send_each_refuses_what_it_cannot_use(rows: Compiled, udp: ends.MakeSocket) -> None:
    batch = rows.rows([b"x"], [1], [None], None, [None])
    good: list[Any] = [[batch], [1], 1, 64, 2]
    for at, bad in (
        (0, (batch,)),
        (0, []),
        (0, [None]),
        (0, ["x"]),
        (1, []),
        (1, (1,)),
        (1, ["1"]),
        (1, [2**80]),
        (2, "1"),
        (2, None),
        (3, 65),
        (3, -1),
        (3, "64"),
        (4, None),
        (4, 2**80),
    ):
        arguments = [*good]
        arguments[at] = bad
        with pytest.raises((TypeError, ValueError, OverflowError)):
            rows.send_each(*arguments)
    with pytest.raises(TypeError):
        rows.send_each(*good[:4])


def test_several_peers_datagrams_go_to_one_target_in_their_order(
    rows: Compiled, udp: ends.MakeSocket
) -> None:
    """Whom they came from is nothing to whom they go to."""
    into, peer, out, sources = udp(), udp(), udp(), [udp() for _ in range(3)]
    out.connect(peer.getsockname())
    packets = ends.numbered(30, 200)
    for number, packet in enumerate(packets):
        UdpBatchSender(sources[number % 3]).send_nowait(
            ends.batch_of([packet], ends.address_of(into))
        )
    got = rows.Pool(65_536, 1).receive(into.fileno(), 64, 64)
    assert rows.send_each([got], [out.fileno()], 100, 64, 2)[2:] == (30, 6000, [])
    assert ends.read_plainly(peer, 30) == packets
    assert sys.getrefcount(got) == 2
