# UdpRelay: what is wrong is told at once, before any system call.

from __future__ import annotations

import math
import re
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

from snaptun_trio import UdpRelay
from snaptun_trio._kernel import _sockets
from snaptun_trio._relay_in_process import sessions_for

if TYPE_CHECKING:
    from snaptun_trio import Address

    from . import ends

HERE = ("127.0.0.1", 0)
THERE = [("127.0.0.1", 9)]


async def late(*_: object) -> None: ...


def plain(*_: object) -> None: ...


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"local": "127.0.0.1"}, TypeError, "a socket, an address"),
    ({"local": 1.5}, TypeError, "a socket, an address"),
    ({"local": True}, TypeError, "descriptor"),
    ({"local": -1}, ValueError, "descriptor"),
    ({"local": ("127.0.0.1",)}, (TypeError, ValueError), "local"),  # type: ignore[list-item]
    ({"local": ("127.0.0.1", 65_536)}, ValueError, "local"),
    ({"local": ("", 1)}, ValueError, "local"),
    ({"targets": []}, ValueError, "at least one target"),
    ({"targets": ()}, ValueError, "at least one target"),
    ({"targets": None}, TypeError, "targets"),
    ({"targets": 53}, TypeError, "targets"),
    ({"targets": ("127.0.0.1", 9)}, TypeError, "targets is an iterable"),
    ({"targets": "127.0.0.1"}, TypeError, "targets"),
    ({"targets": [None]}, TypeError, "not None"),
    ({"targets": ["127.0.0.1"]}, TypeError, "target"),
    ({"targets": [("127.0.0.1", 0)]}, ValueError, "port 0"),
    ({"targets": [("127.0.0.1", 65_536)]}, ValueError, "target"),
    ({"targets": [("127.0.0.1", "9")]}, TypeError, "target"),
    ({"targets": [("", 9)]}, ValueError, "target"),
    ({"duplicate": 1}, TypeError, "duplicate"),
    ({"max_sessions": 0}, ValueError, "max_sessions"),
    ({"max_sessions": 1.5}, TypeError, "max_sessions"),
    ({"max_sessions": True}, TypeError, "max_sessions"),
    ({"idle_timeout": 0}, ValueError, "idle_timeout is a number of seconds over 0, not 0"),
    ({"idle_timeout": math.nan}, ValueError, "idle_timeout"),
    ({"idle_timeout": None}, TypeError, "idle_timeout"),
    ({"idle_timeout": True}, TypeError, "idle_timeout"),
    ({"grace": -1}, ValueError, "grace is a number of seconds, 0 or more, not -1"),
    ({"grace": math.nan}, ValueError, "grace"),
    ({"grace": "1"}, TypeError, "grace is a number of seconds, not '1'"),
    ({"grace": True}, TypeError, "grace"),
    ({"reuse_port": 1}, TypeError, "reuse_port"),
    ({"reuse_port": True, "local": 5}, ValueError, "reuse_port"),
    ({"receive_buffer": 0}, ValueError, "receive_buffer"),
    ({"receive_buffer": "big"}, TypeError, "receive_buffer"),
    ({"send_buffer": 2**30}, ValueError, "send_buffer"),
    ({"send_buffer": None}, TypeError, "send_buffer"),
    ({"fragment": None}, TypeError, "fragment"),
    ({"from_client": late}, TypeError, "^from_client is a plain function, not an async one"),
    ({"from_target": late}, TypeError, "^from_target is a plain function, not an async one"),
    ({"from_client": plain, "on_error": late}, TypeError, "^on_error is a plain function, not an"),
    ({"from_client": b"x"}, TypeError, "^from_client is a plain function, not b'x'"),
    ({"from_target": 1}, TypeError, "^from_target is a plain function, not 1"),
    ({"on_error": plain}, ValueError, "^on_error is asked when a function raises, and there is no"),
    ({"from_client": plain, "workers": 1}, ValueError, "^workers: a function cannot be handed to"),
    ({"from_target": plain, "workers": 1}, ValueError, "^workers: a function cannot be handed to"),
    ({"from_client": plain, "duplicate": True}, ValueError, "^duplicate: there are no sessions"),
    ({"from_target": plain, "duplicate": True}, ValueError, "^duplicate: there are no sessions"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    WRONG,
    ids=[f"{n}-{next(iter(one[0]))}" for n, one in enumerate(WRONG)],
)
def test_wrong_arguments_are_told_before_anything_is_opened(
    arguments: dict[str, Any],
    error: type[Exception],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "socket", _Never)
    with pytest.raises(error, match=named):
        UdpRelay(**{"local": HERE, "targets": THERE, **arguments})


class _Never(socket.socket):
    def __init__(self, *arguments: object, **more: object) -> None:
        pytest.fail("a socket was opened")


@pytest.mark.parametrize("kind", ["blocking", "tcp", "closed"])
def test_a_socket_that_is_not_fit_is_told_at_once(kind: str) -> None:
    with socket.socket(type=socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
        sock.setblocking(kind == "blocking")
        if kind == "closed":
            sock.close()
        with pytest.raises(ValueError, match="socket"):
            UdpRelay(sock, THERE)
        assert (sock.fileno() < 0) == (kind == "closed")


def test_a_socket_that_is_given_has_its_port_shared_or_not(udp: ends.MakeSocket) -> None:
    with pytest.raises(ValueError, match=r"reuse_port=True.*taken as its owner set it up"):
        UdpRelay(udp(), THERE, reuse_port=True)


def limit_descriptors(monkeypatch: pytest.MonkeyPatch, now: int | None, ever: int | None) -> None:
    limits = _sockets.DescriptorLimits(now, ever)
    monkeypatch.setattr("snaptun_trio._relay.descriptor_limits", lambda: limits)


@pytest.mark.parametrize(("limit", "sessions"), [(100, 70), (1, 1), (None, 10_000)])
def test_sessions_get_their_share_of_the_descriptors(limit: int | None, sessions: int) -> None:
    assert sessions_for(limit) == sessions


def test_more_sessions_than_there_can_ever_be_descriptors_are_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit_descriptors(monkeypatch, 100, 500)
    UdpRelay(HERE, THERE, max_sessions=500)  # the soft one can be raised
    told = "max_sessions=501: a process may have at most 500 open files here"
    with pytest.raises(ValueError, match=f"^{told}$"):
        UdpRelay(HERE, THERE, max_sessions=501)


def test_where_the_system_knows_no_limit_there_may_be_any_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert _sockets.descriptor_limits() == (None, None)
    UdpRelay(HERE, THERE, max_sessions=2**31)


def test_the_limit_of_descriptors_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    asked: list[int] = []

    def limits(of: int) -> tuple[int, int]:
        asked.append(of)
        return told

    monkeypatch.setattr(resource, "getrlimit", limits)
    told = (123, 456)
    assert _sockets.descriptor_limits() == (123, 456)
    told = (123, resource.RLIM_INFINITY)
    assert _sockets.descriptor_limits() == (123, None)
    told = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert _sockets.descriptor_limits() == (None, None)
    assert asked == [resource.RLIMIT_NOFILE] * 3


@pytest.mark.parametrize(
    "fine",
    [
        {"local": None},
        {"local": 0},
        {"local": (None, 0)},
        {"local": ("name.invalid", 53)},
        {"idle_timeout": 0.01},
        {"idle_timeout": math.inf},
        {"grace": 0},
        {"grace": math.inf},
    ],
)
def test_what_is_unusual_is_not_wrong(fine: dict[str, Any]) -> None:
    UdpRelay(**{"local": HERE, "targets": THERE, **fine})


@pytest.mark.parametrize("targets", [THERE, iter(THERE), dict.fromkeys(THERE)])
def test_targets_are_any_iterable(targets: Any) -> None:  # noqa: ANN401
    assert "1 targets" in repr(UdpRelay(HERE, targets))


@pytest.mark.parametrize(
    ("targets", "error"), [([], ValueError), ([None], TypeError), (None, TypeError)]
)
async def test_new_targets_are_looked_at_as_well(
    targets: Any,  # noqa: ANN401
    error: type[Exception],
) -> None:
    relay = UdpRelay(HERE, THERE)
    with trio.fail_after(1), pytest.raises(error):
        await relay.set_targets(targets)


SPELLINGS: list[tuple[Any, Any]] = [
    (("127.0.0.1", 9), ("127.0.0.1", 9)),
    (("Example.ORG", 9), ("example.org", 9)),
    (("::1", 9), ("0:0::1", 9)),
    (("2001:DB8::a", 9), ("2001:db8::A", 9, 0, 0)),
    (("127.0.0.1", 9), ("::ffff:127.0.0.1", 9)),
]


@pytest.mark.parametrize(("one", "again"), SPELLINGS)
async def test_a_target_that_is_given_twice_is_told(one: Any, again: Any) -> None:  # noqa: ANN401
    targets = [one, ("127.0.0.2", 9), again]
    for given in (targets, iter(targets)):
        with pytest.raises(ValueError, match=rf"^target={re.escape(str(again))} is given twice$"):
            UdpRelay(HERE, given)
    relay = UdpRelay(HERE, THERE)
    with trio.fail_after(1), pytest.raises(ValueError, match="is given twice"):
        await relay.set_targets(targets)


def test_targets_that_differ_are_not_one() -> None:
    targets: list[Address] = [
        ("127.0.0.1", 9),
        ("127.0.0.1", 10),
        ("::1", 9),
        ("name.invalid", 9),
        ("other.invalid", 9),
        ("fe80::1", 9, 0, 1),
        ("fe80::1", 9, 0, 2),
        ("fe80::1%lo", 9),
    ]
    assert "8 targets" in repr(UdpRelay(HERE, targets))
