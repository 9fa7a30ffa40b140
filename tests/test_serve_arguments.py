# serve_udp: what is wrong is told before any socket is opened.

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from snaptun_trio import PacketBatch, serve_udp
from snaptun_trio.testing import ScriptedSocket

from . import serving
from .serving import echo, peer

if TYPE_CHECKING:
    from collections.abc import Generator

    from snaptun_trio import UdpChannel


# -- arguments


async def generator(channel: UdpChannel) -> Any:  # noqa: ANN401
    yield 1


def plain(channel: UdpChannel) -> None:
    pass


async def coroutine(*arguments: object) -> bool:
    return True


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"handler": None}, TypeError, "handler"),
    ({"handler": generator}, TypeError, "handler"),
    ({"port": "80"}, TypeError, "port"),
    ({"port": True}, TypeError, "port"),
    ({"port": None}, TypeError, "port"),
    ({"port": -1}, ValueError, "port"),
    ({"port": 65_536}, ValueError, "port"),
    ({"host": b"::"}, TypeError, "host"),
    ({"host": ""}, ValueError, "host"),
    ({"handler_nursery": "nursery"}, TypeError, "handler_nursery"),
    ({"max_peers": 0}, ValueError, "max_peers"),
    ({"max_peers": 1.5}, TypeError, "max_peers"),
    ({"evict": "everybody"}, ValueError, "evict"),
    ({"peer_queue": 0}, ValueError, "peer_queue"),
    ({"peer_queue": "1"}, TypeError, "peer_queue"),
    ({"idle_timeout": 0}, ValueError, "idle_timeout"),
    ({"idle_timeout": math.nan}, ValueError, "idle_timeout"),
    ({"idle_timeout": "60"}, TypeError, "idle_timeout"),
    ({"idle_timeout": None}, TypeError, "idle_timeout"),
    ({"idle_timeout": True}, TypeError, "idle_timeout"),
    ({"admit": 1}, TypeError, "admit"),
    ({"admit": coroutine}, TypeError, "admit"),
    ({"on_error": "raise"}, TypeError, "on_error"),
    ({"on_error": coroutine}, TypeError, "on_error"),
    ({"reuse_port": 1}, TypeError, "reuse_port"),
    ({"receive_buffer": 0}, ValueError, "receive_buffer"),
    ({"send_buffer": "big"}, TypeError, "send_buffer"),
    ({"fragment": None}, TypeError, "fragment"),
    ({"gro": 1}, TypeError, "gro"),
    ({"gso": "no"}, TypeError, "gso"),
    ({"ecn": None}, TypeError, "ecn"),
    ({"timestamps": 0}, TypeError, "timestamps"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    WRONG,
    ids=[f"{n}-{next(iter(one[0]))}" for n, one in enumerate(WRONG)],
)
async def test_wrong_arguments_are_told_before_anything_is_opened(
    arguments: dict[str, Any],
    error: type[Exception],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("snaptun_trio._sockets.open_socket", lambda *_: pytest.fail("opened"))
    with pytest.raises(error, match=named):
        await serve_udp(**{"handler": echo, "port": 0, "host": "127.0.0.1", **arguments})


@pytest.mark.parametrize(
    "option", [{"host": "::"}, {"reuse_port": True}, {"receive_buffer": 1}, {"fragment": True}]
)
async def test_a_socket_that_is_given_has_its_options(option: dict[str, Any]) -> None:
    sock = ScriptedSocket()
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.*taken as its owner set it up"):
        await serve_udp(echo, sock, **option)
    assert sock.fileno() != -1, "it is the caller's still"


async def test_a_handler_that_is_no_async_function_is_named_when_it_is_called() -> None:
    wrong: Any = plain
    sock = ScriptedSocket()
    sock.receives.append(PacketBatch.pack([(b"x", peer(1))]))
    with pytest.raises(TypeError, match=r"^handler is an async function, not <function plain"):
        await serve_udp(wrong, sock)


async def test_a_handler_may_return_anything_that_can_be_awaited() -> None:
    ended: list[UdpChannel] = []

    class Ends:
        def __init__(self, channel: UdpChannel) -> None:
            self._channel = channel

        def __await__(self) -> Generator[Any, Any, None]:
            yield from self._channel.aclose().__await__()
            ended.append(self._channel)

    async with serving.server(Ends, ScriptedSocket()) as served:
        seen = await served.feed((b"x", peer(1)))
    assert (seen.peers_admitted, seen.handlers) == (1, 0)
    assert [channel.address for channel in ended] == [peer(1)]
