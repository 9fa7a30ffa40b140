# The functions of the compiled part that serve many sockets, made ready as in `compiled`.

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Any

from .compiled import LARGE, SMALL, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from .compiled import Case, Scene


def receive_each(scene: Scene, payloads: list[bytes], error: int) -> Case:
    """Nothing that came in may be lost, whatever fails: it is for whom it was said to be for."""
    scene.send(payloads)
    client = ("192.0.2.1", 7)
    control = bytes(bytearray(b"\x14" + bytes(23)))
    fds = [scene.into.fileno(), scene.out.fileno(), *([-1] if error else [])]
    names = [encode(client, 2) for _ in fds]

    def check(rows: Any) -> None:  # noqa: ANN401
        assert (rows.served, rows.error) == (len(fds), error)
        assert rows.packets() == [(payload, client) for payload in payloads]
        assert [rows.row(index)[4] for index in range(len(payloads))] == [control] * len(payloads)
        assert scene.queued() == []
        assert scene.pool.statistics()[0] == 1

    return partial(scene.pool.receive_each, fds, names, [control] * len(fds)), check


def receive_from_each(scene: Scene) -> Case:
    return receive_each(scene, LARGE, 0)


def receive_little_from_each(scene: Scene) -> Case:
    return receive_each(scene, SMALL, 0)


def receive_from_each_up_to_an_error(scene: Scene) -> Case:
    return receive_each(scene, SMALL, errno.EBADF)


def receive_from_nobody(scene: Scene) -> Case:
    def check(rows: Any) -> None:  # noqa: ANN401
        assert (rows.served, rows.error, rows.count) == (0, 0, 0)

    return partial(scene.pool.receive_each, [], [], []), check


def batches(scene: Scene) -> list[Any]:
    return [
        scene.rows.rows([payload], [2], [None], None, [None]) for payload in (b"abcd", b"ef", b"gh")
    ]


def send_each(scene: Scene) -> Case:
    """The memory of the call before is in use, so that the first one needs some.

    Where it ends in the middle the others are sent by another call. A batch that went is not.
    """
    scene.out.connect(scene.here)
    some = batches(scene)
    holder = scene.rows.outgoing(some[0], None, 2)
    assert holder.send(-1, 1, 64, False) == errno.EBADF
    fds = [-1, scene.out.fileno(), scene.out.fileno()]

    def call() -> object:
        scene.queued()  # what the try before got to
        return scene.rows.send_each(some, fds, 9, 0, 2)

    def check(told: Any) -> None:  # noqa: ANN401
        sums, rest, served = told[:4], told[4], told[0] + len(told[4])
        assert served
        if served < len(some):
            more = scene.rows.send_each(some[served:], fds[served:], 9, 0, 2)
            sums, rest = tuple(map(sum, zip(sums, more))), rest + more[4]
        assert sums == (2, 2, 2, 4)
        ((place, code, outgoing),) = rest
        assert (place, code, outgoing.content) == (0, errno.EBADF, some[0])
        assert scene.queued() == [b"ef", b"gh"]
        assert outgoing.send(scene.out.fileno(), 9, 0, False) == 0
        assert scene.queued() == [b"ab", b"cd"]

    return call, check


def send_nothing_to_each(scene: Scene) -> Case:
    def check(told: object) -> None:
        assert told == (0, 0, 0, 0, [])

    return partial(scene.rows.send_each, [], [], 9, 64, 2), check


MANY: dict[str, Callable[[Scene], Case]] = {
    case.__name__: case
    for case in (
        receive_from_each,
        receive_little_from_each,
        receive_from_each_up_to_an_error,
        receive_from_nobody,
        send_each,
        send_nothing_to_each,
    )
}
