"""A few lines for each public name that no program of the tutorial needs."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

import pytest
import trio

import snaptun_trio
from snaptun_trio import (
    ECN,
    MAX_BATCH_SIZE,
    BatchPump,
    ChannelStatistics,
    IncomingChannel,
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
    RelayFlow,
    RelayStatistics,
    RelayTarget,
    SendBatchError,
    SenderStatistics,
    SendFailure,
    ServerStatistics,
    UdpBatchReceiver,
    UdpBatchSender,
    UdpChannel,
    UdpReceiverGroup,
    UdpRelay,
    UdpServer,
    open_batch_pump,
    open_udp_channel,
    open_udp_socket,
    serve_udp,
)
from snaptun_trio.testing import (
    ImpairedChannel,
    ImpairedDatagram,
    MemoryChannel,
    ScriptedSocket,
    check_batch_channel,
    impair,
    memory_channel_pair,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from snaptun_trio import Address, Packet

PEER: Address = ("192.0.2.1", 9000)


def packets() -> None:
    greeting = bytearray(b"hello")
    some: list[Packet] = [b"one", greeting, memoryview(b"three")]
    assert [len(train) for train in PacketTrain.pack(some, PEER)] == [1, 2]  # two sizes


def trains() -> None:
    train = PacketTrain(b"abcdefgh", 3, PEER)  # two datagrams of 3 bytes, and a last one of 2
    assert list(train) == [b"abc", b"def", b"gh"]
    elsewhere = train.to(("192.0.2.2", 9000))
    assert elsewhere.data == train.data


def batches() -> None:
    other: Address = ("192.0.2.2", 9000)
    batch = PacketBatch.pack([(b"one", PEER), (b"two", other), (b"four", PEER)])
    assert len(batch) == 3
    assert batch.by_address()[PEER].packets() == [(b"one", PEER), (b"four", PEER)]


def congestion() -> None:
    trains = PacketTrain.pack([b"one"], PEER, ecn=ECN.ECT_0)
    assert trains[0].ecn is not None
    assert trains[0].ecn != ECN.CE  # no router on the way was congested


async def largest_receiver() -> None:
    with await open_udp_socket(("127.0.0.1", 0)) as sock:
        receiver = UdpBatchReceiver(sock, batch_size=MAX_BATCH_SIZE)
        assert receiver.batch_size == MAX_BATCH_SIZE


async def pool_of_two_receivers() -> None:
    pool = PacketBufPool(capacity=2)
    here = ("127.0.0.1", 0)
    with await open_udp_socket(here) as one, await open_udp_socket(here) as other:
        _, receiver = UdpBatchReceiver(one, pool), UdpBatchReceiver(other, pool)
        await UdpBatchSender(one).send_packet(b"hello", other.getsockname())
        assert (await receiver.receive()).packets() == [(b"hello", one.getsockname())]
    assert pool.statistics().allocated == 1  # the receiver that waits for nothing has none


async def receiver_of_one_batch() -> None:
    with await open_udp_socket(("127.0.0.1", 0)) as sock:
        receiver = UdpBatchReceiver(sock, packet_info=True)
        await UdpBatchSender(sock).send_packet(b"hello", sock.getsockname())  # to itself
        async for batch in receiver:
            assert [bytes(train.data) for train in batch.trains] == [b"hello"]
            assert batch.trains[0].local_address == "127.0.0.1"  # which was asked for
            break


async def group_of_receivers() -> None:
    here = ("127.0.0.1", 0)
    with await open_udp_socket(here) as one, await open_udp_socket(here) as other:
        group = UdpReceiverGroup(UdpBatchReceiver(sock) for sock in (one, other))
        await UdpBatchSender(one).send_packet(b"hello", other.getsockname())
        receiver, batch = await group.receive()
        assert (receiver.socket, len(batch)) == (other, 1)


async def sender_of_a_queue() -> None:
    with await open_udp_socket(("127.0.0.1", 0)) as sock:
        sender = UdpBatchSender(sock)
        for number in range(10):
            sender.try_queue_packet(b"packet %d" % number, sock.getsockname())
        await sender.flush()  # with one system call
        assert sender.statistics().datagrams_sent == 10


async def pump_with_a_handler() -> None:
    def echo(batch: PacketBatch[Address]) -> PacketBatch:
        return batch

    async with open_batch_pump(("127.0.0.1", 0), handler=echo) as pump:
        async with await open_udp_channel(*pump.local_address[:2]) as client:
            await client.send_packet(b"hello")
            assert await client.receive_packet() == b"hello"


async def relay_to_a_server() -> None:
    async with trio.open_nursery() as nursery:
        with await open_udp_socket(("127.0.0.1", 0)) as server:
            relay = UdpRelay(("127.0.0.1", 0), [server.getsockname()])
            await nursery.start(relay.run)
            async with await open_udp_channel(*relay.local_address[:2]) as client:
                await client.send_packet(b"hello")
                question = await UdpBatchReceiver(server).receive()  # from the session's socket
                await UdpBatchSender(server).send(question)
                assert await client.receive_packet() == b"hello"
            relay.stop()


async def relay_that_answers_pings() -> None:
    def from_client(batch: PacketBatch[Address], client: RelayClient) -> list[bytes]:
        client.answer([packet for packet, _ in batch if packet == b"ping"])
        return [packet for packet, _ in batch if packet != b"ping"]

    async with trio.open_nursery() as nursery:
        with await open_udp_socket(("127.0.0.1", 0)) as server:
            targets = [server.getsockname()]
            relay = UdpRelay(("127.0.0.1", 0), targets, from_client=from_client)
            await nursery.start(relay.run)
            async with await open_udp_channel(*relay.local_address[:2]) as client:
                await client.send_packets([b"ping", b"hello"])
                assert await client.receive_packet() == b"ping"
                assert [packet for packet, _ in await UdpBatchReceiver(server).receive()] == [
                    b"hello"
                ]
            relay.stop()


async def sockets() -> None:
    with await open_udp_socket(("127.0.0.1", 0)) as one:
        with await open_udp_socket(remote=one.getsockname()) as other:
            await UdpBatchSender(other).send_packet(b"hello", None)
            batch = await UdpBatchReceiver(one).receive()
            assert batch.packets() == [(b"hello", other.getsockname())]


def backends() -> None:
    about = f"snaptun_trio {snaptun_trio.__version__}, {snaptun_trio.backend}"
    print(f"{about}: {snaptun_trio.backend_reason}")  # for a report of a problem


async def what_a_receiver_counts() -> None:
    with await open_udp_socket(("127.0.0.1", 0)) as sock:
        counted: ReceiverStatistics = UdpBatchReceiver(sock).statistics()
        assert counted.datagrams_received == counted.datagrams_delivered + counted.datagrams_held


async def what_a_sender_counts() -> None:
    with await open_udp_socket(("127.0.0.1", 0)) as sock:
        sender = UdpBatchSender(sock)
        sender.try_queue_packet(b"hello", ("127.0.0.1", 9))
        counted: SenderStatistics = sender.statistics()
        assert (counted.datagrams_submitted, counted.datagrams_queued) == (1, 1)


def what_a_pool_counts() -> None:
    pool = PacketBufPool(capacity=4)
    buffer = pool.get()  # to build a packet in
    buffer[:5] = b"hello"
    counted: PoolStatistics = pool.statistics()
    assert counted.slabs_in_use <= counted.most_in_use <= pool.capacity


async def what_a_pump_counts() -> None:
    async with open_batch_pump(("127.0.0.1", 0)) as pump:
        counted: PumpStatistics = pump.statistics()
        assert counted.datagrams_received == 0


async def pump_of_an_application() -> None:
    async def take(incoming: IncomingChannel) -> list[tuple[bytes, Address]]:
        async for batch in incoming:
            return batch.packets()
        return []

    async with open_batch_pump(("127.0.0.1", 0)) as pump:
        async with await open_udp_channel(*pump.local_address[:2]) as client:
            await client.send_packet(b"hello")
            assert await take(pump.incoming) == [(b"hello", client.local_address)]


async def pump_that_goes_on() -> None:
    def handle(batch: PacketBatch[Address]) -> PacketBatch:
        raise ValueError(f"{len(batch)} datagrams that nobody understands")

    errors: list[Exception] = []
    near, far = memory_channel_pair()
    pump = BatchPump(far, far, handler=handle, on_error=lambda error, batch: errors.append(error))
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        await near.send_packet(b"hello")
        near.close()
    assert str(errors[0]) == "1 datagrams that nobody understands"
    assert pump.statistics().datagrams_discarded == 1


async def full_queue() -> None:
    with await open_udp_socket(("127.0.0.1", 0)) as sock:
        sender = UdpBatchSender(sock, batch_size=2)
        for number in range(3):
            packet = b"packet %d" % number
            try:
                sender.try_queue_packet(packet, sock.getsockname())
            except QueueFullError:
                await sender.flush()
                sender.try_queue_packet(packet, sock.getsockname())
        assert sender.statistics().datagrams_sent == 2


async def packet_that_never_fits() -> None:
    with await open_udp_socket(("127.0.0.1", 0)) as sock:
        sender = UdpBatchSender(sock, max_packet_size=1200)
        with pytest.raises(PacketTooLargeError) as caught:
            await sender.send_packet(bytes(1500), PEER)
        assert caught.value.packet_len - caught.value.max_packet_size == 300


async def packet_that_is_not_queued() -> None:
    with await open_udp_socket(("127.0.0.1", 0)) as sock:
        sender = UdpBatchSender(sock, batch_size=1, max_packet_size=1200)
        refused: list[int] = []
        for size in (100, 1500, 200):
            try:
                sender.try_queue_packet(bytes(size), PEER)
            except QueuePacketError as error:  # too large, or no room
                refused.append(len(error.packet))
        assert refused == [1500, 200]


async def refused_datagrams() -> None:
    def size_and_reason(failure: SendFailure) -> tuple[int, int | None]:
        return failure.datagrams, failure.error.errno

    with await open_udp_socket(("127.0.0.1", 0)) as sock:
        good, bad = sock.getsockname(), ("127.0.0.1", 0)  # there is no port 0
        batch = PacketBatch.pack([(b"one", bad), (b"two", good)])
        with pytest.raises(SendBatchError) as caught:
            await UdpBatchSender(sock).send(batch)
        assert [size_and_reason(one) for one in caught.value.failures] == [(1, errno.EINVAL)]
        assert (await UdpBatchReceiver(sock).receive()).packets() == [(b"two", good)]


async def group_that_loses_one() -> None:
    with await open_udp_socket(("127.0.0.1", 0)) as sock:
        receiver = UdpBatchReceiver(sock)
        with UdpReceiverGroup([receiver]) as group:
            receiver.close()
            with pytest.raises(ReceiverClosedError) as caught:
                await group.receive()
            assert isinstance(caught.value, ReceiverGroupError)
            assert caught.value.receiver is receiver
            assert len(group) == 0


async def group_with_a_dead_peer() -> None:
    with await open_udp_socket(("127.0.0.1", 0)) as peer:
        sock = await open_udp_socket(("127.0.0.1", 0), remote=peer.getsockname())
    with sock, UdpReceiverGroup([UdpBatchReceiver(sock, report_errors=True)]) as group:
        await sock.send(b"is anybody there?")
        with pytest.raises(ReceiverFailedError) as caught:
            await group.receive()
        assert isinstance(caught.value, ConnectionRefusedError)
        assert caught.value.receiver in group  # it was about an earlier datagram


async def client_and_server() -> None:
    async def shout(channel: UdpChannel) -> None:
        while True:
            packet = await channel.receive_packet()
            await channel.send_packet(packet.upper())

    async with trio.open_nursery() as nursery:
        server: UdpServer = await nursery.start(serve_udp, shout, 0)
        async with await open_udp_channel("127.0.0.1", server.local_address[1]) as client:
            await client.send_packet(b"hello")
            assert await client.receive_packet() == b"HELLO"
            of_client: ChannelStatistics = client.statistics()
            assert (of_client.datagrams_sent, of_client.datagrams_delivered) == (1, 1)
        of_server: ServerStatistics = server.statistics()
        assert (of_server.peers, of_server.datagrams_received) == (1, 1)
        assert [peer.address[1] for peer in server.peers] == [client.local_address[1]]
        nursery.cancel_scope.cancel()


async def what_a_relay_counts() -> None:
    async with await open_udp_channel("127.0.0.1", 9) as target:  # which says nothing
        relay = UdpRelay(("127.0.0.1", 0), [target.local_address], max_sessions=100)
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        async with await open_udp_channel(*relay.local_address[:2]) as client:
            await client.send_packet(b"hello")
            while relay.statistics().to_targets.datagrams_out == 0:
                await trio.lowlevel.checkpoint()
        relay.stop()
    counted: RelayStatistics = relay.statistics()
    assert (counted.sessions_created, counted.sessions_closed) == (1, 1)
    to_targets: RelayFlow = counted.to_targets
    assert (to_targets.datagrams_in, to_targets.bytes_out, dict(to_targets.dropped)) == (1, 5, {})
    one: RelayTarget
    (one,) = counted.targets
    assert (one.address, one.datagrams_out) == (target.local_address, 1)


async def lossy_network() -> None:
    near, far = memory_channel_pair()
    lossy: ImpairedChannel = impair(near, loss=0.5, seed=1)
    for number in range(10):
        await lossy.send_packet(b"packet %d" % number)

    def arrived(datagram: ImpairedDatagram) -> bool:
        return datagram.copies > 0

    expected = [one.packet for one in lossy.log if arrived(one)]
    assert [packet for packet, _ in await far.receive()] == expected


async def network_of_memory() -> None:
    async def hang_up(channel: MemoryChannel) -> None:
        await channel.send_packet(b"good-bye")
        channel.close()

    near, far = memory_channel_pair()
    await hang_up(near)
    assert await far.receive_packet() == b"good-bye"


async def socket_that_says_no() -> None:
    sock = ScriptedSocket()
    sock.sends.append(errno.EHOSTUNREACH)
    sock.answer = lambda packets, address: errno.EHOSTUNREACH
    with pytest.raises(OSError, match="No route to host"):
        await UdpBatchSender(sock).send_packet(b"hello", PEER)
    assert sock.sent == []


async def channel_of_your_own() -> None:
    @contextlib.asynccontextmanager
    async def make_pair() -> AsyncGenerator[tuple[MemoryChannel, MemoryChannel]]:
        one, other = memory_channel_pair()  # your own channels in their place
        with one, other:
            yield one, other

    await check_batch_channel(make_pair)
