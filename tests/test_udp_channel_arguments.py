# open_udp_channel: what is wrong is told before a socket is opened, and none is left open.

from __future__ import annotations

import math
from typing import Any

import pytest

from snaptun_trio import (
    UdpBatchSender,
    open_udp_channel,
)

pytestmark = pytest.mark.usefixtures("backend")

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"host": b"localhost"}, TypeError, "host"),
    ({"host": None}, TypeError, "host"),
    ({"host": ""}, ValueError, "host"),
    ({"port": 0}, ValueError, "port"),
    ({"port": 65_536}, ValueError, "port"),
    ({"port": "80"}, TypeError, "port"),
    ({"port": True}, TypeError, "port"),
    ({"local": "127.0.0.1"}, TypeError, "local"),
    ({"receive_buffer": 0}, ValueError, "receive_buffer"),
    ({"send_buffer": math.inf}, TypeError, "send_buffer"),
    ({"fragment": 1}, TypeError, "fragment"),
    ({"gro": 1}, TypeError, "gro"),
    ({"gso": None}, TypeError, "gso"),
    ({"ecn": "yes"}, TypeError, "ecn"),
    ({"timestamps": 0}, TypeError, "timestamps"),
    ({"report_errors": None}, TypeError, "report_errors"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    WRONG,
    ids=[f"{n}-{next(iter(w[0]))}" for n, w in enumerate(WRONG)],
)
async def test_wrong_arguments_are_told_before_anything_is_opened(
    arguments: dict[str, Any],
    error: type[Exception],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("snaptun_trio._sockets.open_socket", lambda *_: pytest.fail("opened"))
    with pytest.raises(error, match=named):
        await open_udp_channel(**{"host": "127.0.0.1", "port": 9, **arguments})


async def test_what_fails_after_the_socket_is_open_closes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[UdpBatchSender] = []

    def no_sender(sock: Any, **options: object) -> None:  # noqa: ANN401
        made.append(sock)
        raise ValueError("not fit")

    monkeypatch.setattr("snaptun_trio._client.UdpBatchSender", no_sender)
    with pytest.raises(ValueError, match="not fit"):
        await open_udp_channel("127.0.0.1", 9)
    assert [sock.fileno() for sock in made] == [-1]  # type: ignore[attr-defined]
