from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from snaptun_trio import BatchPump, PacketBatch, PacketTrain, SendBatchError, UdpBatchSender
from snaptun_trio.testing import ScriptedSocket, impair, memory_channel_pair

PEER = ("192.0.2.1", 9000)  # an address for documentation: nothing is sent to it here


def shout(batch: PacketBatch) -> PacketBatch | None:
    """A program under test: answers every datagram in capitals."""
    answers: list[PacketTrain] = []
    for train in batch.trains:
        answers += PacketTrain.pack([packet.upper() for packet in train], train.address)
    return PacketBatch(answers)


def test_handler_alone() -> None:
    batch = PacketBatch(PacketTrain.pack([b"one", b"two", b"three"], PEER))
    answer = shout(batch)
    assert answer is not None
    assert list(answer) == [(b"ONE", PEER), (b"TWO", PEER), (b"THREE", PEER)]


async def test_pump_without_a_socket() -> None:
    client, server = memory_channel_pair()
    pump = BatchPump(server, server, handler=shout)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        await client.send_packet(b"hello")
        assert await client.receive_packet() == b"HELLO"
        client.close()  # the server's receiving ends, and so does the pump


async def ask(channel: trio.abc.Channel[PacketBatch], question: bytes) -> bytes:
    """Another program under test: repeats its question each second until there is an answer."""
    batch = PacketBatch(PacketTrain.pack([question], None))
    while True:
        await channel.send(batch)
        with trio.move_on_after(1):
            async for received in channel:
                for answer, _ in received:
                    if answer == question.upper():  # and not damaged on its way
                        return answer


async def serve(channel: trio.abc.Channel[PacketBatch]) -> None:
    """Its other side."""
    async for batch in channel:
        answer = shout(batch)
        if answer is not None:
            await channel.send(answer)


async def test_questions_on_a_bad_network(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_channel_pair()
    client = impair(near, loss=0.5, delay=0.1, seed=1)
    server = impair(far, loss=0.3, corrupt=0.3, duplicate=0.3, delay=0.1, seed=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, server)
        answer = await ask(client, b"hello")
        nursery.cancel_scope.cancel()
    assert answer == b"HELLO"
    # It asked as often as it had to, and no more. No second of that was waited for.
    got_through = [said for said in server.log if said.copies and said.flipped_bit is None]
    assert len(got_through) == 1
    repeated = client.counts["submitted"] - 1
    assert trio.current_time() == pytest.approx(repeated + 0.2)


async def test_one_peer_cannot_be_reached() -> None:
    sock = ScriptedSocket()
    sock.answer = lambda packets, address: errno.EHOSTUNREACH if address == PEER else 0
    sender = UdpBatchSender(sock)
    other = ("192.0.2.2", 9000)
    trains = [PacketTrain(b"hello", 5, address) for address in (PEER, other)]
    with pytest.raises(SendBatchError, match="No route to host"):
        await sender.send(PacketBatch(trains))
    assert sock.sent == [(b"hello", other)]
