# Memory lacks while a relay sends to many sockets with one call, between two of them.
#
# What was sent by then is counted as sent, and goes once. The others go by another call; if there
# is no memory for that either, the relay ends, and they are counted as dropped.
#
# Or while a function of a relay, or a task of the program's, answers a client.

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio

from snaptun_trio import UdpRelay

from . import ends, relays

if TYPE_CHECKING:
    from snaptun_trio import Address, PacketBatch, RelayClient

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("lasts", [False, True])
@pytest.mark.parametrize("duplicate", [False, True])
async def test_memory_that_lacks_between_two_sockets_costs_what_was_not_sent_by_then(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, duplicate: bool, lasts: bool
) -> None:
    targets, clients = [udp() for _ in range(3)], [udp(f"127.0.0.{n}") for n in range(1, 12)]
    where = [ends.address_of(target) for target in targets]
    relay = UdpRelay(("0.0.0.0", 0), where, duplicate=duplicate)
    calls: list[int] = []
    ended = pytest.RaisesGroup(MemoryError) if lasts else contextlib.nullcontext()
    with relays.same_descriptors(), ended:
        async with trio.open_nursery() as nursery:
            await nursery.start(relay.run)
            stage = relays.Stage(relay, clients)
            to: Address = ("127.0.0.1", relay.local_address[1])
            for number in range(len(clients)):
                await stage.send(number, b"x", to=to)
            fan = relays.forwarding_of(relay)._fan
            real = fan.send

            def send(links: Any, batches: Any, budget: int) -> object:  # noqa: ANN401
                calls.append(len(links))
                if lasts and len(calls) > 1:
                    raise MemoryError
                served = 1 if len(calls) == 1 else len(links)
                return real(links[:served], batches[:served], budget)

            monkeypatch.setattr(fan, "send", send)
            for client in clients:
                client.sendto(b"y", to)
            stage.sent += len(clients)
            await stage.settle()
            nursery.cancel_scope.cancel()
    assert calls[1] == calls[0] - 1, "the others"
    told = relays.laws(relay)
    came = [len(relays.waiting(target)) for target in targets]
    assert [one.datagrams_out for one in told.targets] == came
    assert told.to_targets.datagrams_out == sum(came)
    assert (told.to_targets.dropped.get("closed", 0) > 0) == lasts


async def test_an_answer_that_there_is_no_memory_to_send_does_not_wait_for_ever(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, client = udp(), udp()
    known: list[RelayClient] = []

    def from_client(batch: PacketBatch[Address], client: RelayClient) -> None:
        known.append(client)

    async with relays.running([target], from_client=from_client) as relay:
        await relays.Stage(relay, [client]).send(0, b"x")
        with monkeypatch.context() as patch:
            patch.setattr(type(relays.front_of(relay).sender._io), "gathered", _no_memory)
            with pytest.raises(MemoryError):
                known[0].answer([b"never", b"never"])
        told = relays.laws(relay).to_clients
        assert (told.dropped, told.datagrams_waiting) == ({"ENOMEM": 2}, 0)
        known[0].answer([b"later"])
        assert await relays.payloads(client, 1) == [b"later"]


def _no_memory(*_: object) -> NoReturn:
    raise MemoryError
