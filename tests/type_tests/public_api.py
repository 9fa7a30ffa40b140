# What a type checker must see of the public names: mypy and pyright read this file, and nothing
# runs it. It uses only what `snaptun_trio` exports, as a program would.

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import assert_type

import trio

from snaptun_trio import (
    ECN,
    MAX_BATCH_SIZE,
    Address,
    BatchPump,
    Packet,
    PacketBatch,
    PacketBufPool,
    PacketTooLargeError,
    PacketTrain,
    PoolStatistics,
    PumpStatistics,
    QueueFullError,
    QueuePacketError,
    ReceiverClosedError,
    ReceiverFailedError,
    ReceiverGroupError,
    ReceiverStatistics,
    RelayClient,
    SendBatchError,
    SenderStatistics,
    SendFailure,
    UdpBatchReceiver,
    UdpBatchSender,
    UdpReceiverGroup,
    UdpRelay,
    open_batch_pump,
    open_udp_socket,
)
from snaptun_trio.testing import (
    ImpairedChannel,
    MemoryChannel,
    ScriptedSocket,
    check_batch_channel,
    impair,
    memory_channel_pair,
)


def values() -> None:
    train = PacketTrain(b"onetwo", 3, ("192.0.2.1", 9), ecn=1)
    assert_type(train.data, bytes | memoryview)
    assert_type(train.address, Address | None)
    assert_type(train, PacketTrain[Address | None])  # may be for the connected peer
    assert_type(train.timestamp_ns, int | None)
    assert_type(train.ecn, ECN | None)
    PacketTrain(b"one", 3, None, ecn=ECN.CE)
    assert_type(iter(train), Iterator[bytes])
    assert_type(train.to(("2001:db8::1", 9, 0, 0)), PacketTrain[Address])
    assert_type(PacketTrain.pack([b"one", bytearray(2)], None), list[PacketTrain])
    batch = PacketBatch([train])
    assert_type(batch.trains, tuple[PacketTrain, ...])
    assert_type(PacketBatch.pack([(b"one", None), (bytearray(2), ("192.0.2.1", 9))]), PacketBatch)
    assert_type(batch.by_address(), dict[Address | None, PacketBatch])
    assert_type(batch.packets(), list[tuple[bytes, Address | None]])
    assert_type(batch.detach(), PacketBatch)
    assert_type(batch.to(None), PacketBatch)
    assert_type(len(batch) + batch.nbytes + batch.truncated + MAX_BATCH_SIZE, int)
    for packet, address in batch:
        assert_type(packet, bytes)
        assert_type(address, Address | None)
    train.address = None  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    PacketTrain("text", 1, None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def received(train: PacketTrain[Address], batch: PacketBatch[Address]) -> None:
    assert_type(train.address, Address)  # never None: the kernel says where it came from
    assert_type(batch.trains, tuple[PacketTrain[Address], ...])
    assert_type([address for _, address in batch], list[Address])
    assert_type(batch.by_address(), dict[Address, PacketBatch[Address]])
    assert_type(batch.packets(), list[tuple[bytes, Address]])
    assert_type(batch.detach(), PacketBatch[Address])
    either: PacketBatch = batch
    PacketBatch([train, PacketTrain(b"one", 3, None), *either.trains])
    assert_type(batch.to(None), PacketBatch)
    assert_type(train.to(None), PacketTrain)
    batch = batch.to(("192.0.2.1", 9))
    train = train.to(train.address)
    connected: PacketTrain[None] = train  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    del connected


def buffers() -> None:
    pool = PacketBufPool(65_536, capacity=8)
    assert_type(pool.get(), memoryview)
    assert_type(pool.statistics(), PoolStatistics)
    assert_type(pool.statistics().slabs_in_use, int)


async def receiver_group(sock: trio.socket.SocketType) -> None:
    receiver = UdpBatchReceiver(sock, report_errors=True)
    assert_type(receiver.report_errors, bool)
    with UdpReceiverGroup([receiver]) as group:
        channel: trio.abc.ReceiveChannel[tuple[UdpBatchReceiver, PacketBatch[Address]]] = group
        assert_type(await channel.receive(), tuple[UdpBatchReceiver, PacketBatch[Address]])
        assert_type(group.receive_nowait(), tuple[UdpBatchReceiver, PacketBatch[Address]])
        assert_type(iter(group), Iterator[UdpBatchReceiver])
        assert_type(len(group), int)
        group.add(receiver)
        group.discard(receiver)
        try:
            async for one, batch in group:
                assert_type(one, UdpBatchReceiver)
                assert_type(batch, PacketBatch[Address])
        except ReceiverGroupError as error:
            assert_type(error.receiver, UdpBatchReceiver)
    closed: type[trio.ClosedResourceError] = ReceiverClosedError
    failed: type[OSError] = ReceiverFailedError
    del closed, failed


async def receiver(sock: trio.socket.SocketType) -> None:
    def look_at(packet: bytes, address: Address) -> None: ...
    def look_at_any(packet: bytes, address: Address | None) -> None: ...

    with UdpBatchReceiver(sock, PacketBufPool(), batch_size=64, gro=True, ecn=True) as receiver:
        channel: trio.abc.ReceiveChannel[PacketBatch] = receiver
        narrower: trio.abc.ReceiveChannel[PacketBatch[Address]] = receiver
        BatchPump(channel, narrower)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
        assert_type(await receiver.receive(), PacketBatch[Address])
        assert_type(receiver.receive_nowait(), PacketBatch[Address])
        async for batch in receiver:
            assert_type(batch.trains[0].address, Address)
        await receiver.recv_batch(look_at)
        await receiver.recv_batch(look_at_any)
        assert_type(receiver.statistics(), ReceiverStatistics)
        assert_type(receiver.statistics().buffers_dropped_by_kernel, int | None)


async def sender(sock: trio.socket.SocketType, packet: Packet, batch: PacketBatch) -> None:
    with UdpBatchSender(sock, batch_size=64, max_packet_size=1200, max_segments=9) as sender:
        channel: trio.abc.SendChannel[PacketBatch] = sender
        await channel.send(batch)
        try:
            sender.try_queue_packet(packet, ("192.0.2.1", 9))
            sender.try_queue_train(batch.trains[0])
        except QueueFullError as full:
            assert_type(full.address, Address | None)
        except PacketTooLargeError as large:
            assert_type(large.packet_len, int)
            refused: QueuePacketError = large
            assert_type(refused.packet, Packet)
        try:
            sender.try_flush_best_effort()
            await sender.flush()
        except SendBatchError as error:
            assert_type(error.failures, list[SendFailure])
            assert_type(error.failures[0].train, PacketTrain)
            assert_type(error.failures[0].error, OSError)
        assert_type((sender.is_empty, sender.is_full), tuple[bool, bool])
        assert_type(sender.statistics(), SenderStatistics)
        assert_type(sender.statistics().failures, Mapping[int, int])


def show(statistics: PumpStatistics) -> None:
    assert_type(statistics.receiver, ReceiverStatistics | None)


async def pump(nursery: trio.Nursery) -> None:
    def drop_or_keep(batch: PacketBatch) -> PacketBatch | None:
        return batch if len(batch) > 1 else None

    def to_connected(batch: PacketBatch[Address]) -> PacketBatch | None:
        assert_type(batch.trains[0].address, Address)
        return batch.to(None)

    to_pump, incoming = trio.open_memory_channel[PacketBatch](1)
    outgoing, from_pump = trio.open_memory_channel[PacketBatch](1)
    await nursery.start(BatchPump(incoming, outgoing, handler=drop_or_keep, capacity=2).run)
    await to_pump.send(await from_pump.receive())
    async with open_batch_pump(("::1", 0), gro=False) as pump:
        assert_type(pump, BatchPump)
        async for batch in pump.incoming:
            assert_type(batch, PacketBatch[Address])
            await pump.outgoing.send(batch.to(None))
            await pump.outgoing.send(batch)
        assert_type(pump.statistics(), PumpStatistics[ReceiverStatistics, SenderStatistics])
        assert_type(pump.statistics().receiver, ReceiverStatistics)
        assert_type(pump.statistics().sender, SenderStatistics)
        show(pump.statistics())
        in_part = BatchPump(pump.receiver, outgoing, handler=to_connected)
        assert_type(in_part.statistics().receiver, ReceiverStatistics)
        assert_type(in_part.statistics().sender, SenderStatistics | None)
        other_part = BatchPump(incoming, pump.sender)
        assert_type(other_part.statistics().receiver, ReceiverStatistics | None)
        assert_type(other_part.statistics().sender, SenderStatistics)
    assert_type(BatchPump(incoming, outgoing).statistics(), PumpStatistics)
    BatchPump(outgoing, incoming)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


def to_target(batch: PacketBatch[Address], client: RelayClient) -> PacketBatch | None:
    assert_type(client.address, Address)
    assert_type(client.target, Address)
    client.answer(batch)
    client.answer([b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview")])
    client.close()
    return batch if client.state else batch.to(None)


def to_client(batch: PacketBatch[Address], client: RelayClient) -> list[bytes]:
    return [packet for packet, _ in batch]


async def late(batch: PacketBatch[Address], client: RelayClient) -> None: ...


def relays() -> None:
    here, there = ("::1", 0), [("::1", 53)]
    UdpRelay(here, there, from_client=to_target, from_target=to_client)
    UdpRelay(here, there, from_target=lambda batch, client: batch, on_error=print)
    UdpRelay(here, there, from_client=late)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def sockets() -> None:
    assert_type(await open_udp_socket(), trio.socket.SocketType)
    for local in (("localhost", 0), (None, 53), ("fe80::1", 53, 0, 2), 3, None):
        await open_udp_socket(local, remote=("localhost", 53), reuse_port=False, fragment=True)
    async with open_batch_pump(remote=("localhost", 53)) as pump:
        assert_type(pump, BatchPump[UdpBatchReceiver, UdpBatchSender])
    await open_udp_socket("localhost")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def testing() -> None:
    one, other = memory_channel_pair(capacity=10)
    assert_type(one, MemoryChannel)
    assert_type(await other.receive(), PacketBatch[Address])
    assert_type(await other.receive_packet(), bytes)
    lossy = impair(one, loss=0.1, seed=1)
    assert_type(lossy, ImpairedChannel)
    assert_type([datagram.flipped_bit for datagram in lossy.log], list[int | None])
    BatchPump(other, lossy)
    sock = ScriptedSocket()
    impair(UdpBatchSender(sock), duplicate=1)
    UdpBatchReceiver(sock)
    sock.answer = lambda packets, address: len(packets)

    @contextlib.asynccontextmanager
    async def make() -> AsyncGenerator[tuple[MemoryChannel, ImpairedChannel]]:
        yield one, lossy

    await check_batch_channel(make)
