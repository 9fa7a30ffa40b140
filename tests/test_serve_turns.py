# serve_udp: when more is received: after the handlers had their turns, or at once where more waits.

from __future__ import annotations

from typing import TYPE_CHECKING

from snaptun_trio import PacketBatch
from snaptun_trio.testing import ScriptedSocket

from . import serving
from .serving import peer

if TYPE_CHECKING:
    from snaptun_trio import UdpChannel

OFFERED = 256  # messages, by a receiver that has seen small ones


async def left_when_a_handler_runs(first: int) -> list[int]:
    """How many batches the kernel still has, each time that a handler takes one.

    The first of them has so many messages, and there are two.
    """
    left: list[int] = []
    sock = ScriptedSocket()

    async def handler(channel: UdpChannel) -> None:
        async for batch in channel:
            left.append(len(sock.receives))
            await channel.send(batch)

    async with serving.server(handler, sock) as served:
        batch = PacketBatch.pack([(b"x", peer(n)) for n in range(first)])
        await served.feed(*batch)  # from now on all handlers wait
        left.clear()
        sock.receives.append(batch)
        await served.feed((b"y", peer(0)))
        assert len(sock.sent) == 2 * first + 1
    return left


async def test_handlers_have_their_turn_before_more_is_received() -> None:
    assert await left_when_a_handler_runs(1) == [1, 0]
    few = await left_when_a_handler_runs(OFFERED - 1)
    assert few == [1] * (OFFERED - 1) + [0]


async def test_where_a_call_took_all_that_it_was_offered_more_is_received_at_once() -> None:
    assert set(await left_when_a_handler_runs(OFFERED)) == {0}
