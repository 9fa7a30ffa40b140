# A relay with functions: what they return goes on, in order, whoever it is addressed to, and what
# does not is counted.
#
# What they are called with and what they return is the program's business; what becomes of it is
# counted, and `relays.laws` holds whenever a function looks.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from snaptun_trio import (
    ECN,
    Address,
    PacketBatch,
    PacketTrain,
    RelayClient,
    UdpBatchReceiver,
    UdpBatchSender,
)
from snaptun_trio._messages import TrainMessages

from . import ends, relays

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("backend")

IDLE = 64.0
NOWHERE: Address = ("192.0.2.1", 9)
Batch = PacketBatch[Address]


def strip(batch: Batch, client: RelayClient) -> PacketBatch:
    return PacketBatch.pack([(packet[1:], None) for packet, _ in batch])


def add(batch: Batch, client: RelayClient) -> PacketBatch:
    return PacketBatch.pack([(b"D" + packet, NOWHERE) for packet, _ in batch])


def same(batch: Batch, client: RelayClient) -> PacketBatch:
    return batch


def packets_of(batch: PacketBatch) -> list[bytes]:
    return [packet for packet, _ in batch]


# -- what goes on


@pytest.mark.parametrize("local", [("127.0.0.1", 0), ("0.0.0.0", 0), ("::", 0)])
async def test_what_functions_return_goes_on_whoever_it_is_addressed_to(
    udp: ends.MakeSocket, local: Address
) -> None:
    target, clients = udp(), [udp() for _ in range(5)]
    async with relays.running([target], local, from_client=strip, from_target=add) as relay:
        there = ("127.0.0.1", relay.local_address[1])
        stage = relays.Stage(relay, clients)
        for number, client in enumerate(clients):
            client.connect(there)
            client.send(b"D%d one" % number)
            client.send(b"D%d two" % number)
        stage.sent += 10
        await stage.settle()
        came = await relays.receive(target, 10)
        assert sorted(packet for packet, _ in came) == sorted(
            b"%d %s" % (number, word) for number in range(5) for word in (b"one", b"two")
        )
        assert len({address for _, address in came}) == 5
        for packet, address in came:
            target.sendto(packet.upper(), address)
        for number, client in enumerate(clients):
            assert await relays.payloads(client, 2) == [b"D%d ONE" % number, b"D%d TWO" % number]
        told = relays.laws(relay)
        for flow in (told.to_targets, told.to_clients):
            assert (flow.datagrams_in, flow.datagrams_out, flow.dropped) == (10, 10, {})
            assert flow.datagrams_added == 0
        assert told.to_targets.bytes_in - told.to_targets.bytes_out == 10
        assert told.to_clients.bytes_out - told.to_clients.bytes_in == 10
        assert told.targets[0].datagrams_out == 10


async def test_what_many_clients_are_sent_leaves_by_one_call(udp: ends.MakeSocket) -> None:
    target, clients = udp(), [udp() for _ in range(10)]

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        client.answer([b"heard"])
        return batch

    async with relays.running([target], from_client=from_client, from_target=add) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(10):
            await stage.send(number, b"x")
        came = relays.waiting(target)
        before = relays.laws(relay).to_clients
        await trio.testing.wait_all_tasks_blocked()  # what comes now comes together
        for (_, address), client in zip(came, clients):
            target.sendto(b"y", address)
            client.sendto(b"z", relay.local_address)
        told = await relays.until(relay, lambda seen: seen.to_clients.datagrams_out == 30)
        assert told.to_clients.send_calls - before.send_calls == 2
        for client in clients:
            assert await relays.payloads(client, 3) == [b"heard", b"Dy", b"heard"]


@pytest.mark.parametrize("given", ["from_client", "from_target"])
async def test_one_function_alone_is_enough(udp: ends.MakeSocket, given: str) -> None:
    target, client = udp(), udp()
    seen: list[list[bytes]] = []

    def look(batch: Batch, client: RelayClient) -> PacketBatch:
        seen.append(packets_of(batch))
        return batch

    async with relays.running([target], **{given: look}) as relay:
        client.sendto(b"question", relay.local_address)
        ((packet, address),) = await relays.receive(target, 1)
        assert packet == b"question"
        target.sendto(b"answer", address)
        assert await relays.payloads(client, 1) == [b"answer"]
    assert seen == [[b"question" if given == "from_client" else b"answer"]]


async def test_a_function_sees_what_one_client_sent_and_whose_it_is(udp: ends.MakeSocket) -> None:
    targets, clients = [udp(), udp()], [udp() for _ in range(4)]
    asked: list[tuple[Batch, RelayClient]] = []
    answered: list[tuple[Batch, RelayClient]] = []

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        asked.append((batch, client))
        return batch

    def from_target(batch: Batch, client: RelayClient) -> PacketBatch:
        answered.append((batch, client))
        return batch

    async with relays.running(targets, from_client=from_client, from_target=from_target) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(4):
            await stage.send(number, b"%d" % number)
        known = {client.address: client for _, client in asked}
        assert len(known) == 4
        for target in targets:
            for packet, address in relays.waiting(target):
                target.sendto(packet, address)
        for number, sock in enumerate(clients):
            mine = ends.address_of(sock)
            assert await relays.payloads(sock, 1) == [b"%d" % number]
            ((batch, client),) = [one for one in answered if one[1].address == mine]
            assert batch.packets() == [(b"%d" % number, mine)]
            assert client is known[mine]
            assert client.target in relay.targets
            assert repr(client) == f"<RelayClient {mine}, to {client.target}>"
        for batch, client in asked:
            assert {address for _, address in batch} == {client.address}


async def test_trains_stay_trains_and_each_clients_order_is_kept(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    packets = [b"D%05d" % number for number in range(300)]
    async with relays.running([target], from_client=strip, from_target=add) as relay:
        sender = UdpBatchSender(client)
        for start in range(0, 300, 50):
            sender.send_nowait(ends.batch_of(packets[start : start + 50], relay.local_address))
            await relays.Stage(relay, [client]).settle()
        came = await relays.receive(target, 300)
        assert [packet for packet, _ in came] == [packet[1:] for packet in packets]
        back = UdpBatchSender(target)
        back.send_nowait(ends.batch_of([packet for packet, _ in came[:50]], came[0][1]))
        assert await relays.payloads(client, 50) == packets[:50]


async def test_ecn_that_a_program_asks_for_is_sent(
    udp: ends.MakeSocket, linux_backend: None
) -> None:
    target, client = udp(), udp()

    def mark(batch: Batch, client: RelayClient) -> PacketBatch:
        return PacketBatch([PacketTrain(b"marked", 6, NOWHERE, ecn=ECN.ECT_0)])

    at_target, at_client = (UdpBatchReceiver(sock, ecn=True) for sock in (target, client))
    where = ("0.0.0.0", 0)
    async with relays.running([target], where, from_client=mark, from_target=mark) as relay:
        client.sendto(b"x", ("127.0.0.1", relay.local_address[1]))
        question = await at_target.receive()
        assert [(train.data, train.ecn) for train in question.trains] == [(b"marked", ECN.ECT_0)]
        target.sendto(b"y", question.trains[0].address)
        answer = await at_client.receive()
        assert [(train.data, train.ecn) for train in answer.trains] == [(b"marked", ECN.ECT_0)]


async def test_on_a_wildcard_address_all_leaves_from_where_the_client_sent_to(
    udp: ends.MakeSocket, linux_backend: None
) -> None:
    target, client = udp(), udp()

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        client.answer([b"at once"])
        client.answer([b"as", b"several trains", b""])
        client.answer(batch)
        return batch

    def from_target(batch: Batch, client: RelayClient) -> PacketBatch:
        if b"whole" in packets_of(batch):
            return batch
        return PacketBatch([PacketTrain(b"made", 4, NOWHERE, local_address="127.0.0.9")])

    async with relays.running(
        [target], ("0.0.0.0", 0), from_client=from_client, from_target=from_target
    ) as relay:
        there = ("127.0.0.5", relay.local_address[1])
        client.sendto(b"question", there)
        ((_, address),) = await relays.receive(target, 1)
        answers = [b"at once", b"as", b"several trains", b"", b"question"]
        assert await relays.receive(client, 5) == [(answer, there) for answer in answers]
        for answer, expected in ((b"whole", b"whole"), (b"other", b"made")):
            target.sendto(answer, address)
            assert await relays.receive(client, 1) == [(expected, there)]


async def test_what_came_from_a_target_may_go_to_one(
    udp: ends.MakeSocket, linux_backend: None
) -> None:
    """Where it says which address of the relay's it would leave from, which is no way there."""
    target, client = udp(), udp()
    kept: list[Batch] = []

    def from_target(batch: Batch, client: RelayClient) -> None:
        kept.append(batch)

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        return kept[0] if kept else batch

    async with relays.running(
        [target], ("0.0.0.0", 0), from_client=from_client, from_target=from_target
    ) as relay:
        there = ("127.0.0.5", relay.local_address[1])
        client.sendto(b"question", there)
        ((_, address),) = await relays.receive(target, 1)
        target.sendto(b"answer", address)
        await relays.until(relay, lambda seen: kept)
        client.sendto(b"again", there)
        assert await relays.receive(target, 1) == [(b"answer", address)]


async def test_what_is_made_and_what_goes_on_as_it_came_go_together(udp: ends.MakeSocket) -> None:
    target, clients = udp(), [udp() for _ in range(6)]

    def every_other(batch: Batch, client: RelayClient) -> PacketBatch:
        ((packet, _),) = batch
        return PacketBatch.pack([(packet + b"!", None)]) if int(packet) % 2 else batch

    async with relays.running([target], from_client=every_other) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(6):
            await stage.send(number, b"%d" % number)
        await trio.testing.wait_all_tasks_blocked()  # what comes now comes together
        for number, client in enumerate(clients):
            client.sendto(b"%d" % number, relay.local_address)
        expected = [b"0", b"1!", b"2", b"3!", b"4", b"5!"] * 2
        assert await relays.payloads(target, 12) == expected


async def test_batches_may_be_kept(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    kept: list[Batch] = []

    def keep(batch: Batch, client: RelayClient) -> PacketBatch:
        kept.append(batch)
        return batch

    async with relays.running([target], from_client=keep, from_target=keep) as relay:
        stage = relays.Stage(relay, [client])
        packets = [bytes([number]) * 1200 for number in range(60)]
        for number in range(0, 60, 6):  # more than have memory of their own
            await stage.send(0, *packets[number : number + 6])
        came = await relays.receive(target, 60)
        assert [packet for packet, _ in came] == packets
        for packet, address in came:
            target.sendto(packet[::-1] + b"!", address)
            assert await relays.payloads(client, 1) == [packet[::-1] + b"!"]
    found = [packet for batch in kept for packet, _ in batch]
    assert found == packets + [packet[::-1] + b"!" for packet in packets]


# -- what does not, and what is beyond it


RETURNED: list[Callable[[list[bytes]], Any]] = [
    lambda packets: PacketBatch.pack([(packet, NOWHERE) for packet in packets]),
    lambda packets: packets,
    tuple,
    iter,
    lambda packets: [memoryview(packet) for packet in packets],
    lambda packets: [bytearray(packet) for packet in packets],
]


@pytest.mark.parametrize("returned", RETURNED)
@pytest.mark.parametrize("packets", [[b""], [b"one"], [b"one", b"two", b"", b"a longer one"]])
async def test_packets_may_be_returned_in_any_way(
    udp: ends.MakeSocket, returned: Callable[[list[bytes]], Any], packets: list[bytes]
) -> None:
    target, client = udp(), udp()
    count = len(packets)

    def make(batch: Batch, client: RelayClient) -> Any:  # noqa: ANN401
        return returned(packets)

    async with relays.running([target], from_client=make, from_target=make) as relay:
        client.sendto(b"x", relay.local_address)
        came = await relays.receive(target, count)
        assert [packet for packet, _ in came] == packets
        target.sendto(b"y", came[0][1])
        assert await relays.payloads(client, count) == packets
        told = relays.laws(relay)
        assert told.to_targets.datagrams_added == told.to_clients.datagrams_added == count - 1


@pytest.mark.parametrize("what", [None, PacketBatch([]), [], ()])
async def test_what_a_function_keeps_is_counted(
    udp: ends.MakeSocket,
    what: Any,  # noqa: ANN401
) -> None:
    target, client = udp(), udp()

    def keep(batch: Batch, client: RelayClient) -> Any:  # noqa: ANN401
        return what if b"keep" in packets_of(batch) else batch

    async with relays.running([target], from_client=keep, from_target=keep) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"pass")
        await stage.send(0, b"keep", b"keep")
        ((packet, address),) = await relays.receive(target, 1)
        assert packet == b"pass"
        for answer in (b"keep", b"keep", b"pass"):
            target.sendto(answer, address)
            await relays.until(relay, lambda seen: not seen.to_clients.datagrams_waiting)
            await trio.testing.wait_all_tasks_blocked()
        assert await relays.payloads(client, 1) == [b"pass"]
        told = relays.laws(relay)
        assert told.to_targets.dropped == told.to_clients.dropped == {"handler": 2}
        assert told.targets[0].dropped == {"handler": 2}
        assert (told.to_targets.datagrams_out, told.to_clients.datagrams_out) == (1, 1)
        assert told.sessions == 1


async def test_what_a_function_adds_is_counted(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()

    def thrice(batch: Batch, client: RelayClient) -> PacketBatch:
        return PacketBatch.pack([(packet, NOWHERE) for packet, _ in batch for _ in range(3)])

    async with relays.running([target], from_client=thrice, from_target=thrice) as relay:
        client.sendto(b"x", relay.local_address)
        came = await relays.receive(target, 3)
        target.sendto(b"y", came[0][1])
        assert await relays.payloads(client, 3) == [b"y"] * 3
        told = relays.laws(relay)
        for flow in (told.to_targets, told.to_clients):
            assert (flow.datagrams_in, flow.datagrams_added, flow.datagrams_out) == (1, 2, 3)
        assert told.targets[0].datagrams_out == 3


async def test_what_is_too_large_is_refused_and_counted(
    udp: ends.MakeSocket, linux_backend: None
) -> None:
    target, client = udp(), udp()
    large = PacketBatch.pack([(bytes(65_520), None)])

    def swell(batch: Batch, client: RelayClient) -> PacketBatch:
        client.answer(large)
        return large

    async with relays.running([target], from_client=swell) as relay:
        await relays.Stage(relay, [client]).send(0, b"x")
        told = relays.laws(relay)
        assert told.to_targets.dropped == told.to_clients.dropped == {"EMSGSIZE": 1}
        assert told.targets[0].dropped == {"EMSGSIZE": 1}


async def test_a_client_that_is_shed_is_never_seen(udp: ends.MakeSocket) -> None:
    target, clients = udp(), [udp() for _ in range(3)]
    seen: list[Address] = []

    def look(batch: Batch, client: RelayClient) -> PacketBatch:
        seen.append(client.address)
        return batch

    async with relays.running([target], from_client=look, max_sessions=2) as relay:
        stage = relays.Stage(relay, clients)
        for number in (0, 1, 2):
            await stage.send(number, b"one", b"two")
        told = relays.laws(relay)
        assert told.to_targets.dropped == {"table full": 2}
        assert told.sessions_shed == 1
    assert set(seen) == {ends.address_of(client) for client in clients[:2]}


async def test_a_session_that_makes_room_has_its_last_answers_handled(
    udp: ends.MakeSocket,
) -> None:
    target, clients = udp(), [udp(), udp()]
    async with relays.running(
        [target], from_client=strip, from_target=add, max_sessions=1
    ) as relay:
        # Both are read before the relay has a turn: the answers are looked for as the first goes.
        forwarding = relays.forwarding_of(relay)
        stage = relays.Stage(relay, clients)
        await stage.send(0, b"Dx")
        ((_, address),) = await relays.receive(target, 1)
        (session,) = forwarding._table
        target.sendto(b"last", address)
        forwarding.counts.evicted += forwarding._let_go(session)
        assert await relays.payloads(clients[0], 1) == [b"Dlast"]
        assert relays.laws(relay).sessions_evicted == 1


async def test_a_session_that_ends_of_silence_has_its_last_answers_handled(
    udp: ends.MakeSocket, mock_clock: trio.testing.MockClock
) -> None:
    target, client = udp(), udp()
    async with relays.running(
        [target], from_client=strip, from_target=add, idle_timeout=IDLE
    ) as relay:
        await relays.Stage(relay, [client]).send(0, b"Dx")
        ((_, address),) = await relays.receive(target, 1)
        target.sendto(b"last", address)
        (session,) = relays.forwarding_of(relay)._table
        relays.forwarding_of(relay)._expire(session)
        assert await relays.payloads(client, 1) == [b"Dlast"]
        assert relays.laws(relay).sessions_expired == 1


@pytest.mark.parametrize("packet", [b"", b"x", bytes(1200)])
def test_a_packet_that_is_made_ready_at_half_the_price_is_the_same(packet: bytes) -> None:
    found, usual = TrainMessages.of_packet(packet), TrainMessages([packet], [len(packet)], [None])
    for name in TrainMessages.__slots__:
        assert getattr(found, name) == getattr(usual, name), name
