# A handler that raises, at whichever datagram: what it did not get to comes next, exactly that, and
# nothing that nobody sent.

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import PacketBatch, PacketTrain

from . import ends

if TYPE_CHECKING:
    from snaptun_trio import Address

# Trains of several shapes, among them single, empty and short-tailed ones; the sizes differ, so
# that no two of them become one on the way.
SHAPES = [[b"aaaa", b"bbbb"], [b"c"], [b""], [b"dddddd", b"eeeeee", b"fff"], [b"gg"]]
PACKETS = [packet for shape in SHAPES for packet in shape]


class Fault(Exception):
    """A fault of the program."""


@pytest.mark.parametrize("raise_at", range(len(PACKETS)))
async def test_nothing_is_lost_doubled_or_invented_wherever_a_handler_raises(
    pair: ends.Pair, raise_at: int
) -> None:
    trains = [train for shape in SHAPES for train in PacketTrain.pack(shape, pair.target)]
    await pair.sender.send(PacketBatch(trains))
    found: list[bytes] = []

    def handler(packet: bytes, address: Address | None) -> None:
        assert address == pair.source
        found.append(packet)
        if len(found) == raise_at + 1:
            raise Fault

    with trio.fail_after(ends.PATIENCE):
        with pytest.raises(Fault):
            while True:
                await pair.receiver.recv_batch(handler)
        while len(found) < len(PACKETS):
            await pair.receiver.recv_batch(handler)
    assert found == PACKETS
    assert ends.nothing_waits(pair.receiver), "not even a batch of nothing"
    ends.expect_only(pair, [])
    statistics = pair.receiver.statistics()
    assert statistics.datagrams_held == 0
    assert statistics.datagrams_delivered == len(PACKETS) + 1, "and the fence behind them"


@pytest.mark.parametrize("raise_at", range(len(PACKETS)))
async def test_nor_where_it_raises_what_would_end_a_loop(pair: ends.Pair, raise_at: int) -> None:
    """StopIteration, of a forgotten `next` for one: it is an error, as in a generator (PEP 479)."""
    trains = [train for shape in SHAPES for train in PacketTrain.pack(shape, pair.target)]
    await pair.sender.send(PacketBatch(trains))
    found: list[bytes] = []

    def handler(packet: bytes, address: Address | None) -> None:
        found.append(packet)
        if len(found) == raise_at + 1:
            next(iter(()))

    with trio.fail_after(ends.PATIENCE):
        with pytest.raises(RuntimeError, match="handler raised StopIteration"):
            while True:
                await pair.receiver.recv_batch(handler)
        assert len(found) == raise_at + 1
        while len(found) < len(PACKETS):
            await pair.receiver.recv_batch(handler)
    assert found == PACKETS
    ends.expect_only(pair, [])


async def test_a_handler_that_raises_at_every_datagram_still_gets_each_once(
    pair: ends.Pair,
) -> None:
    trains = [train for shape in SHAPES for train in PacketTrain.pack(shape, pair.target)]
    await pair.sender.send(PacketBatch(trains))
    found: list[bytes] = []

    def handler(packet: bytes, address: Address | None) -> None:
        found.append(packet)
        raise Fault

    with trio.fail_after(ends.PATIENCE):
        while len(found) < len(PACKETS):
            with pytest.raises(Fault):
                await pair.receiver.recv_batch(handler)
    assert found == PACKETS
    assert ends.nothing_waits(pair.receiver), "not even a batch of nothing"
    ends.expect_only(pair, [])
