# Each function of the compiled part, made ready to be called once: what it is called with, and what
# must have come of it. What fails meanwhile is the business of the tests.

from __future__ import annotations

import _imp
import errno
import importlib
import importlib.util
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from snaptun_trio._kernel import _abi, _sockaddr

from .. import ends, system_calls
from . import sockets

COMPILED = "snaptun_trio._kernel._rows"
SMALL, LARGE = [b"a", b"", b"ccc"], [b"d" * 3000, b"e", b"f" * 3000]

Call = Callable[[], object]
Check = Callable[[Any], object]
Case = tuple[Call, Check]


decode = _sockaddr.decode.__wrapped__
encode = _sockaddr.encode.__wrapped__


def make_trains(rows: Any, first: int, stop: int) -> tuple[object, ...]:  # noqa: ANN401
    """What stands for the real one: without a generator, of whose arguments CPython 3.11 loses
    one where it has no memory for it."""
    trains = []
    for index in range(first, stop):
        trains.append(rows.row(index))  # noqa: PERF401
    return tuple(trains)


def way_back(packet_info: bytes) -> tuple[None, str, None]:
    """The same: what struct in_pktinfo ends with is where a datagram was sent to."""
    data = packet_info[_abi.CMSG_HEADER :]
    return None, socket.inet_ntoa(data[8:12]), None


class Scene:
    """Two sockets, a pool, and a compiled part that has seen no address yet."""

    def __init__(self) -> None:
        self.rows: Any = importlib.import_module(COMPILED)
        system_calls.forget_addresses()
        self.rows.use(decode, make_trains, way_back)
        self.into, self.out = sockets.udp(), sockets.udp()
        self.into.setsockopt(socket.SOL_IP, socket.IP_RECVTOS, 1)
        self.here, self.there = self.into.getsockname(), self.out.getsockname()
        self.pool = self.rows.Pool(65_536, 2)

    def close(self) -> None:
        assert self.pool.statistics()[0] == 0, "slabs are still lent"
        self.into.close()
        self.out.close()

    def send(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.out.sendto(payload, self.here)
        ends.wait_until_readable(self.into)

    def received(self, payloads: list[bytes]) -> Any:  # noqa: ANN401
        """Rows of these, each with a control message."""
        self.send(payloads)
        return self.pool.receive(self.into.fileno(), 8, 16)

    def made(self) -> tuple[Any, ...]:
        """What rows are made of: five lists."""
        names = [encode(("127.0.0.1", port), 2) for port in (1, 2, 1, 2)]
        payloads = [b"aa", memoryview(bytearray(b"bb")), b"cc", b"dddd"]
        return payloads, [2, 2, 2, 4], names, [None, b"c" * 24, None, None], [None, "b", None, "d"]

    def queued(self) -> list[bytes]:
        """What is in the socket's queue."""
        found = []
        while True:
            try:
                found.append(self.into.recv(100))
            except BlockingIOError:
                return found


# -- what is called, and what it must have come to where it worked


def equals(expected: object) -> Check:
    def check(told: object) -> None:
        assert told == expected

    return check


def make_pool(scene: Scene) -> Case:
    return partial(scene.rows.Pool, 100, 1), lambda pool: check_buffer(pool.get())


def get_buffer(scene: Scene) -> Case:
    return scene.pool.get, check_buffer


def get_buffer_of_a_new_pool(scene: Scene) -> Case:
    return scene.rows.Pool(100, 1).get, check_buffer


def check_buffer(view: memoryview) -> None:
    view[:3] = b"abc"
    assert len(view) in (100, 65_536)


def ask_for_statistics(scene: Scene) -> Case:
    def check(told: tuple[int, ...]) -> None:
        assert told == scene.pool.statistics()
        assert told[0] == 0

    return scene.pool.statistics, check


def receive(scene: Scene, payloads: list[bytes], pool: Any) -> Case:  # noqa: ANN401
    """Nothing that came in may be lost, whatever fails: not the call's, nor the next one's."""
    scene.send(payloads)

    def check(rows: Any) -> None:  # noqa: ANN401
        assert rows.packets() == [(payload, scene.there) for payload in payloads]
        assert [rows.row(index)[4][:4] for index in range(3)] == [b"\x11\0\0\0"] * 3
        assert scene.queued() == []
        in_slab = isinstance(rows.row(0)[0], memoryview)
        assert pool.statistics()[0] == in_slab

    return partial(pool.receive, scene.into.fileno(), 8, 16), check


def receive_little(scene: Scene) -> Case:
    scene.received(LARGE)  # there is an idle slab
    return receive(scene, SMALL, scene.pool)


def receive_little_with_a_new_pool(scene: Scene) -> Case:
    return receive(scene, SMALL, scene.rows.Pool(65_536, 2))


def receive_much(scene: Scene) -> Case:
    return receive(scene, LARGE, scene.rows.Pool(65_536, 2))


def receive_beyond_the_capacity(scene: Scene) -> Case:
    pool = scene.rows.Pool(65_536, 1)
    scene.send(LARGE)
    held = pool.receive(scene.into.fileno(), 8, 16)
    call, _ = receive(scene, LARGE, pool)

    def check(rows: Any) -> None:  # noqa: ANN401
        assert rows.packets() == held.packets()
        assert pool.statistics()[0] == 2

    return call, check


def receive_nothing(scene: Scene) -> Case:
    return partial(scene.pool.receive, scene.into.fileno(), 8, 16), equals(None)


def receive_an_error(scene: Scene) -> Case:
    def check(error: object) -> None:
        assert isinstance(error, OSError)
        assert error.errno == errno.EBADF

    return partial(scene.pool.receive, -1, 1, 1), check


def look(scene: Scene, rows: Any, question: str, *arguments: int) -> Case:  # noqa: ANN401
    """Ask rows for something: the second answer is the first one's equal."""

    def check(told: object) -> None:
        assert told == getattr(rows, question)(*arguments)
        assert scene.pool.statistics()[0] == isinstance(rows.row(0)[0], memoryview)

    return partial(getattr(rows, question), *arguments), check


LOOKS: dict[str, Callable[[Scene], Case]] = {
    f"{question} of {kind}": partial(
        lambda scene, rows, question, arguments: look(scene, rows(scene), question, *arguments),
        rows=rows,
        question=question,
        arguments=arguments,
    )
    for kind, rows in (
        ("what was copied", lambda scene: scene.received(SMALL)),
        ("what is in its slab", lambda scene: scene.received(LARGE)),
        ("what a program made", lambda scene: scene.rows.rows(*scene.made())),
    )
    for question, *arguments in (
        ("row", 0),
        ("train", 2),
        ("trains",),
        ("packets",),
    )
}


def make_rows(scene: Scene) -> Case:
    lists = scene.made()
    memory = bytearray(b"bb")
    lists[0][1] = memory

    def check(rows: Any) -> None:  # noqa: ANN401
        expected = [b"aa", b"bb", b"cc", b"dddd"]
        assert rows.packets() == list(zip(expected, [None, "b", None, "d"]))
        with pytest.raises(BufferError):
            memory.append(0)

    return partial(scene.rows.rows, *lists), check


def part_what_came_in(scene: Scene) -> Case:
    """Parts are rows over the same slab, and go with it."""
    scene.into.sendto(b"from itself", scene.here)
    rows = scene.received(LARGE)
    expected = {scene.here: [b"from itself"], scene.there: LARGE}

    def check(parts: dict[Any, Any]) -> None:
        assert list(parts) == list(expected)
        for address, part in parts.items():
            assert part.packets() == [(packet, address) for packet in expected[address]]
        assert scene.pool.statistics()[0] == 1

    return rows.by_address, check


def part_what_a_program_made(scene: Scene) -> Case:
    rows = scene.rows.rows(*scene.made())

    def check(parts: dict[Any, Any]) -> None:
        assert {a: part.packets() for a, part in parts.items()} == {
            None: [(b"aa", None), (b"cc", None)],
            "b": [(b"bb", "b"), (b"dddd", "d")],
        }

    return rows.by_address, check


def part_what_one_peer_sent(scene: Scene) -> Case:
    rows = scene.received(SMALL)
    return rows.by_address, equals({scene.there: rows})


def detach_what_came_in(scene: Scene) -> Case:
    rows = scene.received(LARGE)
    looks = [rows.row(index)[1:] for index in range(3)]

    def check(detached: Any) -> None:  # noqa: ANN401
        assert detached.packets() == rows.packets()
        assert [detached.row(index)[1:] for index in range(3)] == looks
        assert isinstance(detached.row(0)[0], bytes)
        assert detached.detached() is detached

    return rows.detached, check


def ask_for_the_way_back(scene: Scene) -> Case:
    scene.into.setsockopt(socket.SOL_IP, _abi.IP_PKTINFO, 1)
    return scene.received(SMALL).way_back, equals((None, scene.here[0], None))


def prepare_rows(scene: Scene, name: object, order: list[bytes]) -> Case:
    payloads, sizes, names, _, addresses = scene.made()
    rows = scene.rows.rows(payloads, sizes, names, None, addresses)

    def check(outgoing: Any) -> None:  # noqa: ANN401
        assert outgoing.more
        assert [packet for packet, _ in outgoing.content.packets()] == order

    return partial(scene.rows.outgoing, rows, name, 2), check


def gather_rows(scene: Scene) -> Case:
    return prepare_rows(scene, True, [b"aa", b"cc", b"bb", b"dddd"])


def prepare_rows_for_one_peer(scene: Scene) -> Case:
    return prepare_rows(scene, bytes(16), [b"aa", b"bb", b"cc", b"dddd"])


def outgoing_to_here(scene: Scene) -> Any:  # noqa: ANN401
    name = encode(scene.here, 2)
    rows = scene.rows.rows([b"abcd", b"ef"], [2, 2], [name] * 2, None, [None] * 2)
    return scene.rows.outgoing(rows, True, 2)


def send(scene: Scene) -> Case:
    """The memory of the call before is in use, so that this one needs some."""
    holder, outgoing = outgoing_to_here(scene), outgoing_to_here(scene)
    assert holder.send(-1, 1, 64, False) == errno.EBADF

    def check(told: object) -> None:
        assert told == 0
        assert not holder.messages
        while outgoing.more:
            assert outgoing.send(scene.out.fileno(), 9, 0, False) == 0
        assert (outgoing.messages, outgoing.datagrams, outgoing.nbytes) == (3, 3, 6)
        assert scene.queued() == [b"ab", b"cd", b"ef"]

    return partial(outgoing.send, scene.out.fileno(), 9, 0, False), check


def skip(scene: Scene) -> Case:
    outgoing = outgoing_to_here(scene)
    assert outgoing.send(-1, 9, 0, False) == errno.EBADF

    def check(told: object) -> None:
        assert told is None
        assert (outgoing.train, outgoing.offset) == (0, 2)
        assert outgoing.send(scene.out.fileno(), 9, 0, False) == 0
        assert scene.queued() == [b"cd", b"ef"]

    return partial(outgoing.skip, 0, 2), check


def ask_how_far_it_got(scene: Scene) -> Case:
    return partial(getattr, outgoing_to_here(scene), "nbytes"), equals(0)


def use(scene: Scene) -> Case:
    return partial(scene.rows.use, decode, make_trains, way_back), equals(None)


def ask_what_is_forbidden(scene: Scene) -> Case:
    return scene.rows.forbidden, equals(None)


def compiled() -> Any:  # noqa: ANN401
    """The compiled part once more, not yet executed: state and types are its own."""
    spec = importlib.util.find_spec(COMPILED)
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def import_it(scene: Scene) -> Case:
    """A module that there was no memory for is thrown away, and the next import makes another."""
    modules = [compiled() for _ in range(2)]

    def check(told: object) -> None:
        assert told == 0
        for module in modules:
            if hasattr(module, "Outgoing"):  # it was executed to the end
                rows = module.rows([b"x"], [1], [None], None, [None])
                assert module.outgoing(rows, None, 2).send(-1, 1, 64, False) == errno.EBADF

    return partial(next, map(_imp.exec_dynamic, modules)), check


CASES: dict[str, Callable[[Scene], Case]] = {
    case.__name__: case
    for case in (
        make_pool,
        get_buffer,
        get_buffer_of_a_new_pool,
        ask_for_statistics,
        receive_little,
        receive_little_with_a_new_pool,
        receive_much,
        receive_beyond_the_capacity,
        receive_nothing,
        receive_an_error,
        make_rows,
        gather_rows,
        part_what_came_in,
        part_what_a_program_made,
        part_what_one_peer_sent,
        detach_what_came_in,
        ask_for_the_way_back,
        prepare_rows_for_one_peer,
        send,
        skip,
        ask_how_far_it_got,
        use,
        ask_what_is_forbidden,
    )
} | LOOKS


SOMETHING_FAILS = {
    case for case in CASES if case.startswith(("get_", "receive_", "gather_", "part_", "detach_"))
}
"""Those that allocate in both ways."""
