from __future__ import annotations

import trio

from snaptun_trio import BatchPump, PacketBatch, PacketTrain

PEER = ("192.0.2.1", 9000)  # an address for documentation: nothing is sent to it here


def shout(batch: PacketBatch) -> PacketBatch | None:
    """The program under test: answers every datagram in capitals."""
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
    from_network, incoming = trio.open_memory_channel[PacketBatch](1)
    outgoing, to_network = trio.open_memory_channel[PacketBatch](1)
    pump = BatchPump(incoming, outgoing, handler=shout)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        await from_network.send(PacketBatch(PacketTrain.pack([b"hello"], PEER)))
        answer = await to_network.receive()
        await from_network.aclose()  # the receiving side ends, and so does the pump
    assert list(answer) == [(b"HELLO", PEER)]
