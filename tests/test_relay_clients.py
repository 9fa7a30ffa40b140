# What the functions of a relay do beside what they return: they answer, end sessions, stop the
# relay and look at its statistics, in the middle of a batch or from elsewhere.

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import trio
import trio.testing

from snaptun_trio import (
    Address,
    PacketBatch,
    RelayClient,
    UdpRelay,
    _relay_sessions,
)

from . import ends, relays
from .test_relay_functions import add, packets_of, same, strip

pytestmark = pytest.mark.usefixtures("backend")

NOWHERE: Address = ("192.0.2.1", 9)
Batch = PacketBatch[Address]


# -- answer


async def test_a_function_answers_by_itself(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch | None:
        pings = [packet for packet, _ in batch if packet.startswith(b"P")]
        client.answer(pings)
        rest = [(packet, None) for packet, _ in batch if packet not in pings]
        return PacketBatch.pack(rest)

    async with relays.running([target], from_client=from_client) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"P1", b"D1", b"P2")
        assert await relays.payloads(client, 2) == [b"P1", b"P2"]
        assert await relays.payloads(target, 1) == [b"D1"]
        told = relays.laws(relay)
        assert told.to_targets.dropped == {"handler": 2}
        assert (told.to_clients.datagrams_in, told.to_clients.datagrams_added) == (0, 2)
        assert told.to_clients.datagrams_out == 2


async def test_answers_and_what_is_passed_on_are_in_the_order_of_the_calls(
    udp: ends.MakeSocket,
) -> None:
    target, clients = udp(), [udp(), udp()]
    known: list[RelayClient] = []

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        known.append(client)
        return batch

    def from_target(batch: Batch, client: RelayClient) -> PacketBatch:
        for one in known:
            one.answer([b"%d hears of %s" % (known.index(one), packet) for packet, _ in batch])
        return batch

    async with relays.running([target], from_client=from_client, from_target=from_target) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(2):
            await stage.send(number, b"%d" % number)
        came = dict(await relays.receive(target, 2))
        await trio.testing.wait_all_tasks_blocked()  # what comes now comes together
        for packet, address in came.items():
            target.sendto(packet, address)
        for number, client in enumerate(clients):
            first = b"%d hears of %d" % (number, number)
            found = await relays.payloads(client, 3)
            assert found.index(b"%d" % number) == found.index(first) + 1


async def test_somebody_else_answers_later(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    send, receive = trio.open_memory_channel[RelayClient](1)

    def from_client(batch: Batch, client: RelayClient) -> None:
        send.send_nowait(client)

    async with relays.running([target], from_client=from_client) as relay:
        client.sendto(b"x", relay.local_address)
        known = await receive.receive()
        known.answer([b"at once", bytearray(b"and"), memoryview(b"more")])
        assert [one for one, _ in relays.waiting(client)] == [b"at once", b"and", b"more"]
        known.answer(PacketBatch.pack([(b"a batch", NOWHERE)]))
        assert [one for one, _ in relays.waiting(client)] == [b"a batch"]
        known.answer([])
        known.answer(PacketBatch([]))
        assert relays.laws(relay).to_clients.datagrams_added == 4
        for slip, error in ((b"one", TypeError), ([1], TypeError), ([bytes(65_528)], ValueError)):
            with pytest.raises(error, match="packet"):
                known.answer(slip)  # type: ignore[arg-type]
        known.close()
        known.answer([b"too late"])
        told = relays.laws(relay)
        assert (told.to_clients.datagrams_added, told.to_clients.dropped) == (5, {"closed": 1})
    known.answer([b"much too late"])
    assert relays.laws(relay).to_clients.dropped == {"closed": 2}
    assert relays.waiting(client) == []


async def test_any_number_of_answers_leaves(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    largest: list[int] = []

    def from_client(batch: Batch, client: RelayClient) -> None:
        for number in range(400):
            client.answer([b"%d" % number])
        largest.append(relay.statistics().to_clients.datagrams_waiting)

    async with relays.running([target], from_client=from_client) as relay:
        client.sendto(b"x", relay.local_address)
        assert await relays.payloads(client, 400) == [b"%d" % number for number in range(400)]
    assert 0 < largest[0] < 400, "they are not kept for ever"


# -- close


async def test_bye_ends_a_session_once_its_last_datagrams_went(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    seen: list[RelayClient] = []

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        seen.append(client)
        if b"bye" in packets_of(batch):
            client.close()
            client.close()
            client.answer([b"bye"])
        return batch

    async with relays.running([target], from_client=from_client, from_target=add) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"hello")
        ((_, address),) = await relays.receive(target, 1)
        await trio.testing.wait_all_tasks_blocked()  # what comes now comes together
        target.sendto(b"last", address)
        client.sendto(b"bye", relay.local_address)
        stage.sent += 1
        told = await relays.until(relay, lambda seen: seen.sessions_closed == 1)
        assert await relays.payloads(client, 2) == [b"Dlast", b"bye"]
        assert relays.waiting(target) == [(b"bye", address)]
        assert (told.sessions, told.targets[0].sessions) == (0, 0)
        seen[0].close()  # there is nothing any more
        await stage.send(0, b"again")
        assert (await relays.receive(target, 1))[0][1] != address
        told = relays.laws(relay)
        assert (told.sessions_created, told.sessions_closed) == (2, 1)
        seen[0].close()  # nor is it the new one
        assert relays.laws(relay).sessions == 1
    assert len({*seen}) == 2
    assert seen[0] is seen[1]
    assert relays.laws(relay).sessions_closed == 2


@pytest.mark.parametrize("from_target", [same, add, None])
async def test_what_a_function_answers_leaves_before_what_comes_after(
    udp: ends.MakeSocket,
    from_target: Any,  # noqa: ANN401
) -> None:
    """The target's last answer comes while the function is called."""
    target, client = udp(), udp()
    addresses: list[Address] = []

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        if addresses:
            target.sendto(b"last", addresses[0])
            client.close()
            client.answer([b"bye"])
        return batch

    functions: Any = {"from_client": from_client, "from_target": from_target}
    async with relays.running([target], **functions) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"hello")
        addresses += [address for _, address in await relays.receive(target, 1)]
        await stage.send(0, b"bye")
        last = b"Dlast" if from_target is add else b"last"
        assert await relays.payloads(client, 2) == [b"bye", last]
        assert relays.laws(relay).sessions_closed == 1


@pytest.mark.parametrize("way", ["from_client", "from_target"])
async def test_each_function_may_end_every_session(udp: ends.MakeSocket, way: str) -> None:
    """While those of others are still to be handed out, and read."""
    target, clients = udp(), [udp() for _ in range(6)]
    known: list[RelayClient] = []

    def end_all(batch: Batch, client: RelayClient) -> PacketBatch:
        if b"end" in packets_of(batch):
            for one in known:
                one.close()
        return batch

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        if client not in known:
            known.append(client)
        return end_all(batch, client) if way == "from_client" else batch

    def from_target(batch: Batch, client: RelayClient) -> PacketBatch:
        return end_all(batch, client)

    async with relays.running([target], from_client=from_client, from_target=from_target) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(6):
            await stage.send(number, b"one", b"two")
        addresses = list(dict.fromkeys(address for _, address in relays.waiting(target)))
        await trio.testing.wait_all_tasks_blocked()  # what comes now comes together
        for number, client in enumerate(clients):
            client.sendto(b"end", relay.local_address)
            target.sendto(b"end", addresses[number])
        told = await relays.until(relay, lambda seen: seen.sessions_closed >= 6)
        assert told.sessions_expired == told.sessions_failed == 0
        assert not told.to_clients.dropped
        assert not told.to_targets.dropped
        for client in clients:
            assert await relays.payloads(client, 1) == [b"end"]


async def test_sessions_that_end_one_another_as_the_relay_ends_are_counted_once(
    udp: ends.MakeSocket,
) -> None:
    target, clients = udp(), [udp() for _ in range(4)]
    known: list[RelayClient] = []

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        known.append(client)
        return batch

    def from_target(batch: Batch, client: RelayClient) -> PacketBatch:
        for one in known:
            if one is not client:
                one.close()
        return batch

    async with relays.running([target], from_client=from_client, from_target=from_target) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(4):
            await stage.send(number, b"x")
        await trio.testing.wait_all_tasks_blocked()
        for packet, address in relays.waiting(target):
            target.sendto(packet, address)
    assert relays.laws(relay).sessions_closed == 4
    for client in clients:
        assert [packet for packet, _ in relays.waiting(client)] == [b"x"]


async def test_a_session_that_is_closed_from_a_task_ends_at_once(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    known: list[RelayClient] = []

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        known.append(client)
        return batch

    async with relays.running([target], from_client=from_client, from_target=add) as relay:
        await relays.Stage(relay, [client]).send(0, b"x")
        ((_, address),) = await relays.receive(target, 1)
        target.sendto(b"last", address)
        known[0].close()
        assert relays.laws(relay).sessions_closed == 1
        assert await relays.payloads(client, 1) == [b"Dlast"]


async def test_a_session_that_ends_its_own_while_it_has_to_go_is_counted_once(
    udp: ends.MakeSocket,
) -> None:
    targets, clients = [udp(), udp()], [udp() for _ in range(4)]
    known: dict[RelayClient, None] = {}

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        known[client] = None
        return batch

    def from_target(batch: Batch, client: RelayClient) -> PacketBatch:
        for one in known:
            one.close()
        return batch

    async with relays.running(targets, from_client=from_client, from_target=from_target) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(4):
            await stage.send(number, b"x")
        came = [one for target in targets for one in relays.waiting(target)]
        for target in targets:
            for _, address in came:
                target.sendto(b"last", address)
        await relay.set_targets([("127.0.0.9", 9)])
        told = relays.laws(relay)
        assert told.sessions == 0
        assert told.sessions_moved + told.sessions_closed == told.sessions_created == 4
    assert relays.laws(relay).sessions_created == 4


async def test_state_is_the_programs_and_goes_with_the_session(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    counted: list[Any] = []

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        client.state = 1 if client.state is None else client.state + 1
        counted.append(client.state)
        if client.state == 3:
            client.close()
        return batch

    async with relays.running([target], from_client=from_client) as relay:
        stage = relays.Stage(relay, [client])
        for _ in range(4):
            await stage.send(0, b"x")
    assert counted == [1, 2, 3, 1]


async def test_a_client_is_gone_when_its_session_is(udp: ends.MakeSocket) -> None:
    """And nothing waits for the garbage collector."""
    target, client = udp(), udp()
    known: list[weakref.ref[RelayClient]] = []

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        known.append(weakref.ref(client))
        client.answer(batch)
        if b"bye" in packets_of(batch):
            client.close()
        return batch

    gc.collect()
    gc.disable()
    try:
        async with relays.running([target], from_client=from_client) as relay:
            stage = relays.Stage(relay, [client])
            await stage.send(0, b"hello")
            assert known[0]() is not None
            await stage.send(0, b"bye")
            await trio.testing.wait_all_tasks_blocked()
            assert known[0]() is None
    finally:
        gc.enable()


async def test_whoever_looks_at_the_statistics_keeps_no_client(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many sessions some are asked at each look, and the others may be gone by the next one."""
    monkeypatch.setattr(_relay_sessions, "_ASKED_AT_ONCE", 1)
    target, clients = udp(), [udp() for _ in range(4)]
    known: list[weakref.ref[RelayClient]] = []

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        known.append(weakref.ref(client))
        return batch

    async with relays.running([target], from_client=from_client) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(4):
            await stage.send(number, b"x")
        relay.statistics()
        for ref in known:
            client = ref()
            assert client is not None
            client.close()
            del client
        assert [ref() for ref in known] == [None] * 4
        await stage.send(0, b"again")
        for _ in range(8):
            assert relays.laws(relay).sessions == 1


# -- stop, and the end


async def test_a_function_stops_the_relay(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()

    def from_client(batch: Batch, client: RelayClient) -> None:
        client.answer([b"bye"])
        relay.stop()

    relay = UdpRelay(
        ("127.0.0.1", 0), [ends.address_of(target)], from_client=from_client, grace=ends.PATIENCE
    )
    with trio.fail_after(ends.PATIENCE / 2):  # nobody waits for an answer
        async with trio.open_nursery() as nursery:
            await nursery.start(relay.run)
            client.sendto(b"stop", relay.local_address)
    assert await relays.payloads(client, 1) == [b"bye"]
    told = relays.laws(relay)
    assert (told.sessions_closed, told.to_targets.dropped) == (1, {"handler": 1})


async def test_a_relay_that_is_stopped_waits_for_answers_to_what_went_on(
    udp: ends.MakeSocket, mock_clock: trio.testing.MockClock
) -> None:
    target, client = udp(), udp()

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch | None:
        return None if b"keep" in packets_of(batch) else batch

    async with relays.running([target], from_client=from_client, grace=50.0) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"question")
        await stage.send(0, b"keep")
        relay.stop()
        for _ in range(20):
            mock_clock.jump(1.0)
            await trio.testing.wait_all_tasks_blocked()
        assert relays.laws(relay).sessions == 1, "the first is not answered"
        ((_, address),) = await relays.receive(target, 1)
        target.sendto(b"answer", address)
        assert await relays.payloads(client, 1) == [b"answer"]
        while not relay._end.is_set():
            mock_clock.jump(0.2)
            await trio.lowlevel.checkpoint()
        assert trio.current_time() < 45.0


async def test_functions_are_called_with_what_the_kernel_has_at_the_end(
    udp: ends.MakeSocket,
) -> None:
    target, client = udp(), udp()
    async with relays.running([target], from_client=strip, from_target=add) as relay:
        await relays.Stage(relay, [client]).send(0, b"Dx")
        ((_, address),) = await relays.receive(target, 1)
        target.sendto(b"last answer", address)
        client.sendto(b"Dlast question", relay.local_address)
    assert [packet for packet, _ in relays.waiting(target)] == [b"last question"]
    assert [packet for packet, _ in relays.waiting(client)] == [b"Dlast answer"]


async def test_statistics_add_up_when_a_function_looks(udp: ends.MakeSocket) -> None:
    target, clients = udp(), [udp() for _ in range(3)]
    looked: list[tuple[int, int]] = []

    def look(batch: Batch, client: RelayClient) -> PacketBatch:
        client.answer([b"x"])
        told = relays.laws(relay)
        looked.append((told.to_targets.datagrams_waiting, told.to_clients.datagrams_waiting))
        return batch

    async with relays.running([target], from_client=look, from_target=look) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(3):
            await stage.send(number, b"x")
        came = relays.waiting(target)
        looked.clear()
        await trio.testing.wait_all_tasks_blocked()  # what comes now comes together
        for (_, address), client in zip(came, clients):
            target.sendto(b"answer", address)
            client.sendto(b"question", relay.local_address)
        await relays.until(relay, lambda seen: seen.to_clients.datagrams_out == 12)
    assert looked == [(0, 4), (0, 5), (0, 6), (3, 1), (3, 2), (3, 3)]
