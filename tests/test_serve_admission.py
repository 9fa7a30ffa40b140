# serve_udp: who is let in, who has to go, and who was silent for too long.
#
# On a scripted socket and by trio's mock clock, so that who is heard when is the test's choice.

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from snaptun_trio import PacketBatch, serve_udp
from snaptun_trio.testing import ScriptedSocket

from . import serving
from .serving import RefusedError, echo, fail, finish, peer

if TYPE_CHECKING:
    from snaptun_trio import Address, UdpChannel, UdpServer


def addresses(served: serving.Served) -> set[int]:
    return {channel.address[1] - 1000 for channel in served.server.peers}


# -- who is let in


async def test_whom_admit_refuses_gets_no_handler() -> None:
    asked: list[tuple[Address, list[bytes]]] = []

    def admit(address: Address, first: PacketBatch[Address]) -> bool:
        asked.append((address, [packet for packet, _ in first]))
        return address != peer(1)

    async with serving.server(port=ScriptedSocket(), admit=admit) as served:
        seen = await served.feed((b"a", peer(1)), (b"b", peer(2)), (b"c", peer(1)))
        assert asked == [(peer(1), [b"a", b"c"]), (peer(2), [b"b"])]
        assert (seen.peers_refused, seen.datagrams_refused, seen.peers) == (1, 2, 1)
        await served.feed((b"d", peer(1)), (b"e", peer(2)))
        assert len(asked) == 3, "a peer is not asked about again"


async def test_an_admit_that_raises_ends_the_server_and_all_is_counted() -> None:
    sock = ScriptedSocket()
    servers: list[UdpServer] = []

    class Status:
        def started(self, server: UdpServer) -> None:
            servers.append(server)

    sock.receives.append(PacketBatch.pack([(b"a", peer(n)) for n in range(5)]))
    with pytest.raises(RefusedError):
        await serve_udp(echo, sock, admit=fail, task_status=Status())  # type: ignore[arg-type]
    seen = serving.check_law(servers[0].statistics())
    assert (seen.datagrams_received, seen.datagrams_discarded) == (5, 5)
    assert sock.fileno() == -1


async def test_an_admit_that_raises_refuses_where_there_is_on_error() -> None:
    told: list[tuple[type[Exception], Address]] = []

    def on_error(error: Exception, channel: UdpChannel) -> None:
        told.append((type(error), channel.address))

    async with serving.server(port=ScriptedSocket(), admit=fail, on_error=on_error) as served:
        seen = await served.feed((b"a", peer(1)), (b"b", peer(2)))
        assert (seen.peers_refused, seen.datagrams_refused) == (2, 2)
        assert told == [(RefusedError, peer(1)), (RefusedError, peer(2))]


async def test_an_async_admit_in_disguise_is_told_of() -> None:
    async def admit(address: Address, first: object) -> bool:
        return True

    told: list[Exception] = []
    async with serving.server(
        port=ScriptedSocket(),
        admit=lambda address, first: admit(address, first),
        on_error=lambda error, channel: told.append(error),
    ) as served:
        await served.feed((b"a", peer(1)))
        assert [type(error) for error in told] == [TypeError]
        assert "admit is a plain function" in str(told[0])
        assert served.statistics().peers_refused == 1


async def test_an_admit_may_make_room_itself() -> None:
    def admit(address: Address, first: object) -> bool:
        for channel in served.server.peers:
            channel.close()
        return True

    async with serving.server(port=ScriptedSocket(), admit=admit, max_peers=1) as served:
        await served.feed((b"a", peer(1)))
        seen = await served.feed((b"b", peer(2)))
        assert (seen.peers, seen.peers_evicted) == (1, 0)
        assert addresses(served) == {2}


# -- who has to go


async def come(served: serving.Served, *numbers: int) -> None:
    """Each in a call of its own, so that who was silent for longest is plain."""
    for number in numbers:
        await served.feed((b"x", peer(number)))


@pytest.mark.parametrize(
    ("evict", "left", "evicted", "shed"),
    [
        ("strangers", {1, 2, 5}, 2, 1),
        ("oldest", {2, 5, 6}, 3, 0),
        ("nobody", {1, 2, 3}, 0, 3),
    ],
)
async def test_who_makes_room(evict: Any, left: set[int], evicted: int, shed: int) -> None:  # noqa: ANN401
    async with serving.server(finish, ScriptedSocket(), max_peers=3, evict=evict) as served:
        await come(served, 1, 2, 3, 1, 2)  # 1 and 2 are established, 3 is a stranger
        await come(served, 4, 5)  # 4 in the place of 3, 5 in that of 4
        await come(served, 5) if evict != "nobody" else None  # now all are established
        await come(served, 6)
        seen = served.statistics()
        assert addresses(served) == left
        assert (seen.peers_evicted, seen.peers_shed, seen.datagrams_shed) == (evicted, shed, shed)
        assert seen.handlers == seen.peers == 3


async def test_who_made_room_gets_what_waits_and_then_the_end() -> None:
    async with serving.server(port=ScriptedSocket(), max_peers=1) as served:
        await served.feed((b"a", peer(1)))
        first = await served.next_channel()
        await served.feed((b"b", peer(2)))
        assert [packet async for batch in first for packet, _ in batch] == [b"a"]
        await first.send_packet(b"a last word")
        seen = served.statistics()
        assert (seen.peers, seen.handlers, seen.peers_evicted) == (1, 2, 1)


@pytest.mark.parametrize(("max_peers", "beyond"), [(1, 64), (800, 100)])
async def test_handlers_of_peers_that_are_gone_are_bounded(max_peers: int, beyond: int) -> None:
    """They do not return. Newcomers are shed, and those that are there stay."""
    async with serving.server(port=ScriptedSocket(), max_peers=max_peers) as served:
        pairs = [(b"x", peer(number)) for number in range(max_peers + beyond + 7)]
        seen = await served.feed(*pairs)
        assert seen.handlers == max_peers + beyond
        assert (seen.peers, seen.peers_evicted) == (max_peers, beyond)
        assert (seen.peers_shed, seen.datagrams_shed) == (7, 7)
        served.dismiss(served.started[0])
        await trio.testing.wait_all_tasks_blocked()
        seen = await served.feed((b"y", peer(5000)))
        assert seen.peers_shed == 7


async def test_other_tasks_have_their_turn_while_hundreds_come_at_once() -> None:
    """And whoever looks at the statistics meanwhile sees them add up."""
    waiting: list[int] = []

    async def look() -> None:
        while True:
            waiting.append(served.statistics().datagrams_waiting)
            await trio.lowlevel.checkpoint()

    async with serving.server(finish, ScriptedSocket(), max_peers=1000) as served:
        served.nursery.start_soon(look)
        served.feed_batch(PacketBatch.pack([(b"x", peer(number)) for number in range(640)]))
        await served.until(lambda seen: seen.datagrams_delivered == 640)
    assert len(set(waiting)) > 5, "64 are started in a turn"


# -- silence


@pytest.mark.parametrize("first", [0.0, 0.3, 1.1, 123.456])
async def test_who_is_silent_for_too_long_gets_the_end(
    autojump_clock: trio.testing.MockClock, first: float
) -> None:
    ended: list[tuple[int, float]] = []

    async def handler(channel: UdpChannel) -> None:
        await finish(channel)
        ended.append((channel.address[1] - 1000, trio.current_time() - first))

    async with serving.server(handler, ScriptedSocket(), idle_timeout=60) as served:
        await trio.sleep(first)
        await served.feed((b"x", peer(1)), (b"x", peer(2)))
        await trio.sleep(30)
        await served.feed((b"x", peer(1)), (b"x", peer(3)))
        await trio.sleep(200)
        assert [number for number, _ in ended] == [2, 1, 3] or [n for n, _ in ended] == [2, 3, 1]
        assert [when for _, when in ended] == pytest.approx([60, 90, 90])
        seen = served.statistics()
        assert (seen.peers, seen.handlers, seen.peers_expired) == (0, 0, 3)
        await served.feed((b"x", peer(1)))
        assert addresses(served) == {1}


async def test_who_speaks_now_and_then_stays(autojump_clock: trio.testing.MockClock) -> None:
    async with serving.server(finish, ScriptedSocket(), idle_timeout=1) as served:
        for _ in range(50):
            await served.feed((b"x", peer(1)))
            await trio.sleep(0.9)
        seen = served.statistics()
        assert (seen.peers_admitted, seen.peers_expired) == (1, 0)


async def test_without_a_timeout_nobody_has_to_speak(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving.server(finish, ScriptedSocket(), idle_timeout=math.inf) as served:
        await served.feed((b"x", peer(1)))
        await trio.sleep(80_000)
        assert addresses(served) == {1}
