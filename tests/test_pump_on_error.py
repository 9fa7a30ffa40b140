# What a pump's program gets wrong, and what a pump makes of it: a handler that raises, an address
# that is none for the socket; and many tasks that put batches into `outgoing`.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from snaptun_trio import (
    BatchPump,
    PacketBatch,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
    open_batch_pump,
)

from . import ends
from .test_pump import Sink, Source, batch
from .test_pump_account import check_law

if TYPE_CHECKING:
    from snaptun_trio import Address

HERE: Address = ("127.0.0.1", 9)


async def test_on_error_is_asked_and_the_pump_goes_on(nursery: trio.Nursery) -> None:
    asked: list[tuple[Exception, list[bytes]]] = []
    slip = ValueError("no such packet")

    def handler(received: PacketBatch[Address]) -> PacketBatch:
        if [bytes(packet) for packet, _ in received] == [b"bad"]:
            raise slip
        return received

    def on_error(error: Exception, received: PacketBatch[Address]) -> None:
        asked.append((error, [packet for packet, _ in received]))

    sink = Sink()
    source = Source(batch(b"good"), batch(b"bad"), batch(b"better"))
    pump = BatchPump(source, sink, handler=handler, on_error=on_error)
    await pump.run()
    assert asked == [(slip, [b"bad"])]
    statistics = pump.statistics()
    check_law(statistics)
    assert (statistics.datagrams_sent, statistics.datagrams_discarded) == (2, 1)
    assert statistics.batches_discarded == 1


async def test_on_error_is_asked_about_an_answer_of_the_wrong_type_too() -> None:
    asked: list[Exception] = []
    wrong: Any = lambda received: b"bytes"  # noqa: E731
    pump = BatchPump(
        Source(batch(b"x")), Sink(), handler=wrong, on_error=lambda e, b: asked.append(e)
    )
    await pump.run()
    assert [type(error) for error in asked] == [TypeError]
    assert "a handler returns a PacketBatch or None, not b'bytes'" in str(asked[0])


async def test_what_on_error_raises_ends_the_pump() -> None:
    def fail(*_: object) -> PacketBatch:
        raise ValueError("handler")

    def fail_too(error: Exception, received: PacketBatch[Address]) -> None:
        raise LookupError("on_error") from error

    pump = BatchPump(Source(batch(b"x")), Sink(), handler=fail, on_error=fail_too)
    with pytest.raises(LookupError, match="on_error"):
        await pump.run()
    check_law(pump.statistics())


def test_on_error_is_a_plain_function_beside_a_handler() -> None:
    async def late(*_: object) -> None: ...

    slip: Any = late
    with pytest.raises(TypeError, match="on_error is a plain function, not an async one"):
        BatchPump(Source(), Sink(), handler=lambda b: b, on_error=slip)
    with pytest.raises(ValueError, match="there is no handler"):
        BatchPump(Source(), Sink(), on_error=lambda e, b: None)


@pytest.mark.core
@pytest.mark.parametrize("bad", [("::1", 9), ("localhost", 9)])
@pytest.mark.parametrize("handled", [False, True])
async def test_one_bad_address_fails_what_is_for_it_and_nothing_else(
    backend: str, udp: ends.MakeSocket, bad: Address, handled: bool
) -> None:
    source, inside, last = udp(), udp(), udp()
    good = ends.address_of(last)
    answer = PacketBatch(
        [PacketTrain(b"1", 1, good), PacketTrain(b"bad", 3, bad), PacketTrain(b"2", 1, good)]
    )
    handler = (lambda received: answer) if handled else None
    async with open_batch_pump(inside, handler=handler) as pump:
        if handled:
            source.sendto(b"question", inside.getsockname())
        else:
            await pump.outgoing.send(answer)
        while pump.statistics().datagrams_sent < 2:
            await trio.lowlevel.checkpoint()
        assert ends.read_plainly(last, 2) == [b"1", b"2"]
        await pump.drain()
        statistics = pump.statistics()
        check_law(statistics)
        assert dict(statistics.failures) == {errno.EINVAL: 1}
        assert statistics.sender.datagrams_submitted == 2


async def test_what_many_tasks_put_into_outgoing_leaves_in_one_go(
    backend: str, udp: ends.MakeSocket
) -> None:
    last = udp()
    sender = UdpBatchSender(udp())
    pump = BatchPump(Source(ends=False), sender, capacity=2)
    packets = ends.numbered(30, 50)
    async with trio.open_nursery() as nursery:
        for packet in packets:
            train = PacketTrain(packet, len(packet), ends.address_of(last))
            nursery.start_soon(pump.outgoing.send, PacketBatch([train]))
            await trio.testing.wait_all_tasks_blocked()
        await nursery.start(pump.run)
        while pump.statistics().batches_sent < 30:
            await trio.lowlevel.checkpoint()
        assert ends.read_plainly(last, 30) == packets
        check_law(pump.statistics())
        pump.close()


async def test_a_pump_tells_where_it_can_be_reached(udp: ends.MakeSocket) -> None:
    async with open_batch_pump(("127.0.0.1", 0)) as pump:
        assert pump.local_address == pump.receiver.socket.getsockname()
        assert pump.local_address == pump.receiver.local_address == pump.sender.local_address
    with pytest.raises(trio.ClosedResourceError):
        pump.local_address  # noqa: B018
    inside, outside = udp(), udp()
    receiver, sender = UdpBatchReceiver(inside), UdpBatchSender(outside)
    assert BatchPump(receiver, Sink()).local_address == inside.getsockname()
    assert BatchPump(Source(), sender).local_address == outside.getsockname()
    with pytest.raises(RuntimeError, match="a UDP socket at neither end"):
        BatchPump(Source(), Sink()).local_address  # noqa: B018
