# serve_udp: when more is received: after the handlers had their turns, or at once where more waits.

from __future__ import annotations

import socket
from collections import defaultdict
from typing import TYPE_CHECKING

from snaptun_trio import PacketBatch
from snaptun_trio.testing import ScriptedSocket

from . import serving
from .serving import peer

if TYPE_CHECKING:
    from snaptun_trio import UdpChannel

OFFERED = 256  # messages, by a receiver that has seen small ones


async def left_when_handlers_run(*batches: range, buffer: int = 0) -> dict[int, list[int]]:
    """How many batches the kernel still has, each time that the handler of a peer takes one.

    They are one byte of each of these peers; then comes one more of peer 0.
    """
    left: defaultdict[int, list[int]] = defaultdict(list)
    sock = ScriptedSocket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)

    async def handler(channel: UdpChannel) -> None:
        async for batch in channel:
            left[channel.address[1] - peer(0)[1]].append(len(sock.receives))
            await channel.send(batch)

    async with serving.server(handler, sock) as served:
        for number in set().union(*batches):
            await served.feed((b"x", peer(number)))  # from now on all handlers wait
        left.clear()
        sock.sent.clear()
        for numbers in batches:
            sock.receives.append(PacketBatch.pack([(b"x", peer(n)) for n in numbers]))
        await served.feed((b"y", peer(0)))
        assert len(sock.sent) == sum(map(len, batches)) + 1
    return left


async def test_handlers_have_their_turn_before_more_is_received() -> None:
    for count in (1, OFFERED - 1):
        left = await left_when_handlers_run(range(count))
        assert left == {number: [1, 0] if number == 0 else [1] for number in range(count)}


async def test_where_a_call_took_all_that_it_was_offered_more_is_received_at_once() -> None:
    left = await left_when_handlers_run(range(OFFERED))
    assert left == {number: [0, 0] if number == 0 else [0] for number in range(OFFERED)}


async def test_what_was_left_over_after_a_full_call_says_nothing_of_what_comes_next() -> None:
    left = await left_when_handlers_run(range(1, 1 + OFFERED), range(1))
    assert left[0] == [0, 0]


async def test_but_the_next_that_is_not_full_does() -> None:
    left = await left_when_handlers_run(range(2, 2 + OFFERED), range(1, 2), range(1))
    assert left[0] == [1, 0]


async def test_where_thrice_as_much_might_not_fit_the_buffer_more_is_received_at_once() -> None:
    """Or what a program's long turns let come would be dropped, though it could be received."""
    takes_up = 5 * (768 + 2 * 1)
    for buffer, first in ((4 * takes_up, 1), (4 * takes_up - 1, 0)):
        left = await left_when_handlers_run(range(5), buffer=buffer)
        assert left == {number: [first, 0] if number == 0 else [first] for number in range(5)}
