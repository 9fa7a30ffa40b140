# Nothing that the compiled part is asked for leaves anything behind: each of its functions, in a
# loop, with good arguments and with bad ones, and Python's allocator holds what it held before.
#
# What is not Python's is counted by the compiled part itself, where it is built for the tests; and
# the pool tells of its slabs.

from __future__ import annotations

import contextlib
import errno
import gc
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from snaptun_trio import PacketBatch, PacketTrain
from snaptun_trio._batch import messages_of
from snaptun_trio._kernel import choose_backend, socket_io
from snaptun_trio._messages import PER_TRAIN_ADDRESS, TrainMessages

from . import ends, system_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

if sys.platform == "linux":
    from snaptun_trio._kernel import _sockaddr

pytestmark = [
    pytest.mark.usefixtures("linux_backend"),
    pytest.mark.skipif(
        sys.implementation.name != "cpython", reason="only CPython counts its blocks"
    ),
]

ROUNDS = 500


def fresh(data: bytes) -> bytes:
    """Bytes that nobody else holds: a reference to them that is lost shows."""
    return bytes(bytearray(data))


class Scene:
    """Two sockets, a pool, and rows of each kind."""

    def __init__(self, sock: socket.socket, out: socket.socket) -> None:
        from snaptun_trio._kernel import _rows

        choose_backend()  # which tells the compiled part how addresses and trains are made
        self.rows = _rows
        self.sock, self.out = sock, out
        self.here = sock.getsockname()
        self.name = _sockaddr.name_of(self.here, int(sock.family))
        self.pool = _rows.Pool(65_536, 2)

    def made(self, payloads: list[Any]) -> Any:  # noqa: ANN401
        """Rows of what a program made."""
        count = len(payloads)
        controls = [None, *[fresh(b"\x14" + bytes(23)) for _ in payloads[1:]]]
        names: list[bytes | None] = [fresh(self.name) for _ in payloads]
        return self.rows.rows(
            payloads, [10] * count, names, controls, [(*self.here,) for _ in payloads]
        )

    def received(self, *sizes: int) -> Any:  # noqa: ANN401
        """Rows of datagrams that came in."""
        for size in sizes:
            self.out.sendto(bytes(size), self.here)
        ends.wait_until_readable(self.sock)
        return self.pool.receive(self.sock.fileno(), 16, 16)

    def look_at_everything(self, rows: Any) -> None:  # noqa: ANN401
        for index in range(rows.count):
            rows.row(index)
            rows.train(index)
        for bad in (-1, rows.count, 2**100, "0"):
            with contextlib.suppress(IndexError, OverflowError, TypeError):
                rows.row(bad)
                pytest.fail("it was to be refused")
            with contextlib.suppress(IndexError, OverflowError, TypeError):
                rows.train(bad)
                pytest.fail("it was to be refused")
        rows.packets()
        rows.trains()
        for part in (*rows.by_address().values(), rows.detached()):
            assert part.trains()
        outgoing = self.rows.outgoing(rows, True, int(self.sock.family))
        outgoing.content.packets()
        assert (rows.count, rows.losses) == (len(rows.trains()), None)
        assert rows.plain in (True, False)
        assert rows.cut in (True, False)
        assert rows.family in (0, socket.AF_INET)


def receive_copied(scene: Scene) -> None:
    scene.look_at_everything(scene.received(5, 0, 5, 7))


def receive_lent(scene: Scene) -> None:
    rows = scene.received(5000, 10, 5000)
    scene.look_at_everything(rows)
    kept = memoryview(rows.row(0)[0])[5:]
    del rows
    assert not any(kept)


def receive_nothing(scene: Scene) -> None:
    assert scene.pool.receive(scene.sock.fileno(), 1, 1) is None


def receive_errors(scene: Scene) -> None:
    for bad in ((-1, 1, 1), (scene.sock.fileno(), 2, 1), (1, 2), ("x", 1, 1), (2**80, 1, 1)):
        with pytest.raises((OSError, ValueError, TypeError, OverflowError)):
            scene.pool.receive(*bad)


def get_buffers(scene: Scene) -> None:
    views = [scene.pool.get() for _ in range(4)]
    views[0][:3] = b"abc"
    assert len(scene.pool.statistics()) == 6


def make_pools(scene: Scene) -> None:
    pool = scene.rows.Pool(2000, 1)
    views = [pool.get(), pool.get()]
    del pool
    assert len(views[1]) == 2000
    for bad in ((0, 1), (1, 0), ("x", 1), (1,), (2**17, 1)):
        with pytest.raises((ValueError, TypeError)):
            scene.rows.Pool(*bad)


def make_rows(scene: Scene) -> None:
    rows = scene.made([b"x" * 25, memoryview(bytearray(10)), bytearray(5), b""])
    scene.look_at_everything(rows)


def make_a_cycle_of_rows(scene: Scene) -> None:
    address: list[Any] = []
    rows = scene.rows.rows([b"x"], [1], [None], None, [address])
    address.append(rows)


def gather_rows(scene: Scene) -> None:
    names: list[Any] = [
        fresh(_sockaddr.name_of(("127.0.0.1", port), 2)) for port in (1, 2, 1, 3, 2)
    ]
    payloads: list[Any] = [b"aa", memoryview(b"bb"), fresh(b"cc"), b"dd", b"ee"]
    rows = scene.rows.rows(payloads, [2] * 5, names, None, [(n,) for n in range(5)])
    outgoing = scene.rows.outgoing(rows, True, 2)
    del rows
    assert [packet for packet, _ in outgoing.content.packets()] == [
        b"aa",
        b"cc",
        b"bb",
        b"ee",
        b"dd",
    ]


def part_rows(scene: Scene) -> None:
    for size in (10, 4000):
        for source in (scene.out, scene.sock, scene.out):
            source.sendto(fresh(bytes([size & 255]) * size), scene.here)
        ends.wait_until_readable(scene.sock)
        rows = scene.pool.receive(scene.sock.fileno(), 16, 16)
        assert rows is not None
        parts = rows.by_address()
        assert [part.count for part in parts.values()] == [2, 1]
        _, part = parts.popitem()
        del parts, rows
        scene.look_at_everything(part)
        scene.look_at_everything(part.detached())
    names: list[Any] = [b"a", b"b", None, b"a", b"c"]
    addresses: list[Any] = [(1.0, n) for n in (1, 2, 3, 1, 3)]
    made = scene.rows.rows([b"x"] * 5, [1] * 5, names, None, addresses)
    assert [part.count for part in made.by_address().values()] == [2, 1, 2]
    unhashable: list[Any] = [[], [], [], [], []]
    with pytest.raises(TypeError):
        scene.rows.rows([b"x"] * 5, [1] * 5, names, None, unhashable).by_address()
    assert scene.rows.rows([], [], [], None, []).by_address() == {}


def make_bad_rows(scene: Scene) -> None:
    good: list[Any] = [[b"x", b"y"], [1, 1], [None, scene.name], [None, b"c"], [None, None]]
    bad_ones: list[Any] = [["x", b"y"], [1, "1"], [b"n" * 33, None], [None, b"c" * 200], [None]]
    for at, bad in enumerate(bad_ones):
        with pytest.raises((ValueError, TypeError)):
            scene.rows.rows(*good[:at], bad, *good[at + 1 :])
    with pytest.raises((ValueError, TypeError, OverflowError)):
        scene.rows.rows([b"x" * 70_000], [-1], [None], None, [None])
    with pytest.raises((ValueError, TypeError)):
        scene.rows.rows([b"x" * 70_000], [66_000], [None], None, [None])


def send_rows(scene: Scene) -> None:
    payloads: list[Any] = [fresh(b"abcde"), fresh(b"xyz")]
    names: list[Any] = [fresh(scene.name), fresh(scene.name)]
    rows = scene.rows.rows(payloads, [2, 3], names, None, [None] * 2)
    fd = scene.out.fileno()
    for name in (True, fresh(scene.name)):
        sending = scene.rows.outgoing(rows, name, int(scene.sock.family))
        while sending.more:
            assert sending.send(fd, 1, 64, False) == 0
        assert (sending.messages, sending.datagrams, sending.nbytes) == (2, 4, 8)
        assert (sending.train, sending.offset, sending.work) == (2, 0, 1)
        with pytest.raises(ValueError, match="nothing is left"):
            sending.send(fd, 1, 64, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            scene.sock.recv(100)


def send_and_be_refused(scene: Scene) -> None:
    payloads: list[Any] = [fresh(b"abcde"), fresh(b"xyz")]
    rows = scene.rows.rows(payloads, [2, 3], [None] * 2, None, [None] * 2)
    fd = scene.out.fileno()
    sending = scene.rows.outgoing(rows, None, int(scene.sock.family))
    while sending.more:
        assert sending.send(fd, 5, 0, False) == errno.EDESTADDRREQ
        assert sending.end_train in (0, 1, 2)
        sending.skip(sending.end_train, sending.end_offset)
    with pytest.raises(TypeError):
        sending.send(1)
    single = scene.rows.outgoing(rows, None, int(scene.sock.family))
    assert single.send(-1, 1, 64, True) == errno.EBADF
    single.skip(1, 2)  # beyond what was refused
    assert single.send(-1, 1, 64, False) == errno.EBADF
    # It is let go with what is laid out.


def send_badly(scene: Scene) -> None:
    rows = scene.rows.rows([b"abc", b""], [3, 1], [None] * 2, None, [None] * 2)
    bad: Any
    for bad in ((None, None, 2), (rows, "x", 2), (rows, b"n" * 33, 2), (rows, None, "2"), (rows,)):
        with pytest.raises((ValueError, TypeError)):
            scene.rows.outgoing(*bad)
    sending = scene.rows.outgoing(rows, None, 2)
    for bad in ((0, 3), (-1, 0), (3, 0), (2, 1), (1, 1), (0, -1), ("0", 0), (0,), (2**80, 0)):
        with pytest.raises((ValueError, TypeError, IndexError, OverflowError)):
            sending.skip(*bad)
    for bad in (
        ("x", 1, 64, False),
        (2**80, 1, 64, False),
        (1, None, 64, False),
        (1, 1, 65, False),
        (1, 1, -1, False),
        (1, 1, None, False),
        (1,),
    ):
        with pytest.raises((ValueError, TypeError, OverflowError)):
            sending.send(*bad)


def receive_from_each(scene: Scene) -> None:
    for sizes in ((5, 0, 5), (5000, 10)):
        for size in sizes:
            scene.out.sendto(bytes(size), scene.here)
        ends.wait_until_readable(scene.sock)
        fds = [scene.sock.fileno(), scene.out.fileno(), -1]
        names = [fresh(scene.name) for _ in fds]
        controls = [fresh(b"\x14" + bytes(23)), None, None]
        rows = scene.pool.receive_each(fds, names, controls)
        assert (rows.served, rows.error, rows.count) == (3, errno.EBADF, len(sizes))
        scene.look_at_everything(rows)
    assert scene.pool.receive_each([], [], []).count == 0
    bad: Any
    for bad in (
        ([1], [], []),
        (["1"], [fresh(b"n")], [None]),
        ([1, 2], [fresh(b"n"), b"n" * 33], [None, None]),
        ([1], [fresh(b"n")], [b"c" * 105]),
        ([2**80], [fresh(b"n")], [fresh(b"c")]),
        (1, 2, 3),
    ):
        with pytest.raises((ValueError, TypeError, OverflowError)):
            scene.pool.receive_each(*bad)


def send_to_each(scene: Scene) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as out:
        out.connect(scene.here)
        batches: list[Any] = [
            scene.rows.rows([fresh(b"abc"), fresh(b"d")], [2, 1], [None] * 2, None, [None] * 2)
            for _ in range(3)
        ]
        fds = [out.fileno(), -1, out.fileno()]
        told = scene.rows.send_each(batches, fds, 100, 64, 2)
        assert (told[2], told[4][0][:2]) == (6, (1, errno.EBADF))
        told = scene.rows.send_each(batches, fds, 1, 64, 2)
        assert [rest[:2] for rest in told[4]] == [(0, 0), (1, errno.EBADF), (2, 0)]
        for bad in (
            (batches, fds[:2], 1, 64, 2),
            ([*batches[:2], None], fds, 1, 64, 2),
            (batches, [*fds[:2], "1"], 1, 64, 2),
            (batches, fds, 1, 65, 2),
            (batches,),
        ):
            with pytest.raises((ValueError, TypeError)):
                scene.rows.send_each(*bad)
    with contextlib.suppress(BlockingIOError):
        while True:
            scene.sock.recv(100)


def ask_for_what_is_forbidden(scene: Scene) -> None:
    assert scene.rows.forbidden() is None


def prepare_batches(scene: Scene) -> None:
    """Through the Python side: plain ones, ones that ask for something, and received ones."""
    io = socket_io(scene.out)
    plain = PacketTrain(b"abcdef", 2, scene.here)
    asking = PacketTrain(b"abcdef", 2, scene.here, ecn=1)
    for batch in (PacketBatch([plain] * 3), PacketBatch([plain, asking])):
        messages, _ = messages_of(batch)
        assert isinstance(messages, TrainMessages)
        for recipient in (PER_TRAIN_ADDRESS, None, scene.here):
            assert io.outgoing(messages, recipient).more


JOBS: list[Callable[[Scene], None]] = [
    receive_copied,
    receive_lent,
    receive_nothing,
    receive_errors,
    get_buffers,
    make_pools,
    make_rows,
    make_a_cycle_of_rows,
    gather_rows,
    part_rows,
    make_bad_rows,
    send_rows,
    send_and_be_refused,
    send_badly,
    receive_from_each,
    send_to_each,
    ask_for_what_is_forbidden,
    prepare_batches,
]


@pytest.fixture
def scene(linux_backend: None, udp: ends.MakeSocket) -> Iterator[Scene]:
    system_calls.require_extension()
    scene = Scene(udp(), udp())
    yield scene
    gc.collect()
    assert scene.pool.statistics()[0] == 0, "slabs are still lent"


@pytest.mark.parametrize("job", JOBS)
def test_nothing_is_left_behind(scene: Scene, job: Callable[[Scene], None]) -> None:
    def blocks_after(rounds: int) -> int:
        for _ in range(rounds):
            job(scene)
        gc.collect()
        return sys.getallocatedblocks()

    blocks_after(20)  # caches fill
    before, held = blocks_after(20), system_calls.held()
    grown = min(blocks_after(ROUNDS) - before, blocks_after(ROUNDS) - before)
    assert grown < ROUNDS // 10, "one object a round is a leak"
    assert system_calls.held() == held
