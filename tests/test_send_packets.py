# UdpChannel.send_packets: several packets with one wait, of every kind of channel.

from __future__ import annotations

import contextlib
import errno
import sys
from itertools import chain
from mmap import mmap
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from snaptun_trio import SendBatchError, UdpBatchSender, UdpChannel
from snaptun_trio._peer import PeerChannel
from snaptun_trio.testing import ScriptedSocket, impair, memory_channel_pair

from . import ends, serving
from .test_control_c import Interrupter, interrupters
from .test_peer import Route
from .test_sender import check_law

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.usefixtures("backend")

KINDS = ["client", "peer", "memory", "impaired"]


@contextlib.asynccontextmanager
async def pair(kind: str) -> AsyncIterator[tuple[UdpChannel, UdpChannel]]:
    """A channel to send through, and the one where it arrives."""
    if kind in ("memory", "impaired"):
        near, far = memory_channel_pair()
        yield (impair(near, seed=1) if kind == "impaired" else near), far
        return
    async with serving.both_ends() as (client, peer):
        yield (client, peer) if kind == "client" else (peer, client)


async def arrived(channel: UdpChannel, count: int) -> list[bytes]:
    with trio.fail_after(ends.PATIENCE):
        return [await channel.receive_packet() for _ in range(count)]


PACKETS = [
    pytest.param([b"one"], id="one"),
    pytest.param([b"one", b"two", b"four", b"five", b"", b"a"], id="of any size"),
    pytest.param([bytes([n]) * 40 for n in range(100)], id="many"),
    pytest.param([bytes([n]) * 1200 for n in range(5)], id="more than little"),
    pytest.param([bytes(65_507 - 28), b"x"], id="as long as one may be"),
]


@pytest.mark.core
@pytest.mark.parametrize("packets", PACKETS)
@pytest.mark.parametrize("kind", KINDS)
async def test_all_arrive_in_their_order(kind: str, packets: list[bytes]) -> None:
    async with pair(kind) as (channel, far):
        before = channel.statistics().datagrams_sent
        with trio.testing.assert_checkpoints():
            await channel.send_packets(packets)
        assert channel.statistics().datagrams_sent - before == len(packets)
        assert await arrived(far, len(packets)) == packets


@pytest.mark.parametrize("kind", KINDS)
async def test_any_iterable_of_bytes_like_objects(kind: str) -> None:
    async with pair(kind) as (channel, far):
        changed = bytearray(b"two")
        parts = (b"one", changed, memoryview(b"three"))
        await channel.send_packets(part for part in parts)
        changed[:] = b"six"
        assert await arrived(far, 3) == [b"one", b"two", b"three"]


@pytest.mark.parametrize("kind", KINDS)
async def test_none_at_all_is_a_checkpoint(kind: str) -> None:
    async with pair(kind) as (channel, _):
        before = channel.statistics()
        with trio.testing.assert_checkpoints():
            await channel.send_packets([])
        assert channel.statistics() == before


async def test_none_at_all_does_not_wait_for_what_others_send() -> None:
    sock = ScriptedSocket()
    sock.answer = lambda _, address: errno.EAGAIN
    async with serving.server(port=sock) as served:
        await served.feed((b"a", serving.peer(1)), (b"b", serving.peer(2)))
        one, other = served.server.peers
        served.nursery.start_soon(one.send_packet, b"x")
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.send_packets, [])
            await trio.testing.wait_all_tasks_blocked()
            waits = len(nursery.child_tasks)
            nursery.cancel_scope.cancel()
    assert not waits


def breaks() -> Iterator[bytes]:
    yield b"one"
    raise ZeroDivisionError("in the iterable")


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_wrong_is_told_and_nothing_is_sent(kind: str) -> None:
    async with pair(kind) as (channel, _):
        before = channel.statistics()
        wrong: Any
        for wrong, error, named in (
            (b"one packet", TypeError, "not one packet"),
            (bytearray(b"one packet"), TypeError, "not one packet"),
            (memoryview(b""), TypeError, "not one packet"),
            ("text", TypeError, "not one packet"),
            (mmap(-1, 10), TypeError, "not one packet"),
            ([b"one", "text"], TypeError, "bytes-like"),
            ([b"one", None], TypeError, "bytes-like"),
            ([b"one", (b"two", ("192.0.2.1", 9))], TypeError, "bytes-like"),
            (None, TypeError, "iterable"),
            ([b"one", bytes(65_528)], ValueError, "65528 bytes"),
            (breaks(), ZeroDivisionError, "in the iterable"),
        ):
            with pytest.raises(error, match=named):
                await channel.send_packets(wrong)
        assert channel.statistics() == before


@pytest.mark.parametrize("kind", KINDS)
async def test_through_a_closed_channel(kind: str) -> None:
    async with pair(kind) as (channel, _):

        def closes() -> Iterator[bytes]:
            yield b"one"
            channel.close()

        for packets in (closes(), [], [b"one"]):
            with pytest.raises(trio.ClosedResourceError):
                await channel.send_packets(packets)


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_before_it_has_sent_nothing(kind: str) -> None:
    async with pair(kind) as (channel, _):
        before = channel.statistics()
        with trio.CancelScope() as scope:
            scope.cancel()
            await channel.send_packets([b"one", b"two"])
        assert scope.cancelled_caught
        assert channel.statistics() == before


@pytest.mark.parametrize("others", [2, 100], ids=["few", "many"])
@pytest.mark.parametrize("kind", ["client", "peer"])
async def test_one_that_is_refused_keeps_none_of_the_others(kind: str, others: int) -> None:
    good = [bytes([n]) for n in range(others)]
    async with pair(kind) as (channel, far):
        before = channel.statistics().datagrams_sent
        with pytest.raises(SendBatchError) as info:  # over what IPv4 can hold
            await channel.send_packets([*good[:1], bytes(65_520), *good[1:]])
        (failure,) = info.value.failures
        assert (failure.error.errno, failure.datagrams) == (errno.EMSGSIZE, 1)
        assert await arrived(far, others) == good
        if kind == "peer":  # a client counts what its socket sent
            assert channel.statistics().datagrams_sent - before == others


async def test_a_refusal_is_told_to_whom_it_is_about() -> None:
    """And to nobody else who sends in the same turn."""
    refused: list[tuple[UdpChannel, int]] = []

    async def send(channel: UdpChannel) -> None:
        try:
            await channel.send_packets([b"x", b"y"])
        except SendBatchError as error:
            refused.append((channel, sum(failure.datagrams for failure in error.failures)))

    sock = ScriptedSocket()
    sock.answer = lambda _, address: errno.EPERM if address == serving.peer(1) else 0
    async with serving.server(port=sock) as served:
        await served.feed((b"a", serving.peer(1)), (b"b", serving.peer(2)))
        one, other = served.server.peers
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, one)
            nursery.start_soon(send, other)
        assert refused == [(one, 2)]
        assert (one.statistics().datagrams_sent, other.statistics().datagrams_sent) == (0, 2)
        assert sock.sent == [(b"x", serving.peer(2)), (b"y", serving.peer(2))]


async def test_a_handler_that_does_not_expect_it_ends_alone() -> None:
    async def answer(channel: UdpChannel) -> None:
        async for batch in channel:
            await channel.send_packets(packet for packet, _ in batch)

    sock = ScriptedSocket()
    sock.answer = lambda _, address: errno.EPERM if address == serving.peer(1) else 0
    async with serving.server(answer, sock) as served:
        told = await served.feed((b"a", serving.peer(1)), (b"b", serving.peer(2)))
        assert (told.peers_unreachable, told.peers) == (1, 1)
        assert sock.sent == [(b"b", serving.peer(2))]


async def test_through_an_impaired_sender_which_has_no_address() -> None:
    sock = ScriptedSocket(remote_address=serving.peer(1))
    lossy = impair(UdpBatchSender(sock), duplicate=1)
    await lossy.send_packets([b"one", b"three"])
    assert sock.sent == [(packet, None) for packet in (b"one", b"one", b"three", b"three")]


@pytest.mark.parametrize("kind", KINDS)
async def test_control_c_can_interrupt_the_iterable_which_may_have_no_end(kind: str) -> None:
    protected: list[bool] = []

    def packets() -> Iterator[bytes]:
        protected.append(trio.lowlevel.currently_ki_protected())
        yield b"one"

    async with pair(kind) as (channel, _):
        await channel.send_packets(packets())
    assert protected == [False]


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="see test_control_c")
@pytest.mark.parametrize("count", [2, 40], ids=["few", "many"])
def test_f54_control_c_anywhere_sends_and_counts_all_or_nothing(count: int) -> None:
    packets = ends.numbered(count, 4)
    ended: list[int] = []
    # CPython 3.13 tells of a function's bytecodes from its second call on.
    for interrupter in chain([Interrupter(sys.maxsize)], interrupters()):
        sock = ScriptedSocket()
        with UdpBatchSender(sock) as sender:
            channel = PeerChannel(Route(sender=sender), serving.peer(1), 0.0)
            interrupter.run(trio.run, channel.send_packets, iter(packets))
            assert sender.is_empty
            check_law(sender)
        ended.append(len(sock.sent))
        assert channel.statistics().datagrams_sent == len(sock.sent)
    assert set(ended) == {0, count}


async def test_the_answers_of_a_turn_leave_with_one_call(
    backend: str, udp: ends.MakeSocket
) -> None:
    async with serving.server() as served:
        channels = [await served.new_peer(udp()) for _ in range(5)]
        before = served.statistics().sender
        async with trio.open_nursery() as nursery:
            for channel in channels:
                nursery.start_soon(channel.send_packets, [b"one", b"three"])
        after = served.statistics().sender
        if backend == "linux":
            assert after.send_calls - before.send_calls == 1
        assert after.datagrams_sent - before.datagrams_sent == 10


@given(sizes=st.lists(st.integers(0, 1500), max_size=80))
def test_it_sends_what_a_batch_of_them_would(sizes: list[int]) -> None:
    packets = [bytes([n % 256]) * size for n, size in enumerate(sizes)]

    async def main() -> None:
        near, far = memory_channel_pair()
        await near.send_packets(packets)
        near.close()
        assert [packet async for batch in far for packet, _ in batch] == packets

    trio.run(main)
