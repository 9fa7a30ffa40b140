# A relay's ``admit``: it is asked of each new client, once, before anything is done for it.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from snaptun_trio import PacketBatch, RelayClient, UdpRelay

from . import ends, relays
from .test_relay_functions_raise import Running, one_round

if TYPE_CHECKING:
    from snaptun_trio import Address

pytestmark = pytest.mark.usefixtures("backend")

TARGET = ("192.0.2.1", 9)


def knows_the_word(address: Address, first: PacketBatch[Address]) -> bool:
    return all(packet.startswith(b"word") for packet, _ in first)


async def test_who_is_refused_has_no_session_and_is_counted(udp: ends.MakeSocket) -> None:
    target, good, bad = udp(), udp(), udp()
    asked: list[tuple[Address, list[bytes]]] = []

    def admit(address: Address, first: PacketBatch[Address]) -> bool:
        asked.append((address, [packet for packet, _ in first]))
        relays.laws(relay)
        return knows_the_word(address, first)

    async with relays.running([target], admit=admit) as relay:
        for number in range(3):
            bad.sendto(b"junk", relay.local_address)
            while relays.laws(relay).sessions_shed == number:
                await trio.lowlevel.checkpoint()
        good.sendto(b"word", relay.local_address)
        assert await relays.payloads(target, 1) == [b"word"]
        good.sendto(b"no word", relay.local_address)
        assert await relays.payloads(target, 1) == [b"no word"]
        told = relays.laws(relay)
        assert (told.sessions, told.sessions_created) == (1, 1)
        assert told.to_targets.dropped == {"refused": 3}
        assert told.targets[0].dropped == {}
    three = [(ends.address_of(bad), [b"junk"])] * 3
    assert asked == [*three, (ends.address_of(good), [b"word"])]


async def test_nobody_has_to_go_for_who_is_refused(udp: ends.MakeSocket) -> None:
    target, one, bad, other = udp(), udp(), udp(), udp()
    async with relays.running([target], admit=knows_the_word, max_sessions=1) as relay:
        one.sendto(b"word 1", relay.local_address)
        await relays.receive(target, 1)
        bad.sendto(b"junk", relay.local_address)
        told = await relays.until(relay, lambda seen: seen.sessions_shed)
        assert (told.sessions, told.sessions_evicted) == (1, 0)
        other.sendto(b"word 2", relay.local_address)
        await relays.receive(target, 1)
        assert relays.laws(relay).sessions_evicted == 1


async def test_a_relay_that_ends_does_not_ask(udp: ends.MakeSocket) -> None:
    target, client, late = udp(), udp(), udp()
    asked: list[Address] = []

    def admit(address: Address, _: object) -> bool:
        asked.append(address)
        return True

    async with relays.running([target], admit=admit) as relay:
        client.sendto(b"question", relay.local_address)
        await relays.receive(target, 1)
        relay.stop()  # it waits for the answer
        late.sendto(b"question", relay.local_address)
        told = await relays.until(relay, lambda seen: seen.sessions_shed)
        assert told.to_targets.dropped == {"stopping": 1}
    assert asked == [ends.address_of(client)]


class FaultError(Exception):
    """What a function raises."""


def fails(address: Address, first: PacketBatch[Address]) -> bool:
    raise FaultError(address)


async def test_what_it_raises_ends_the_relay(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    relay = UdpRelay(("127.0.0.1", 0), [ends.address_of(target)], admit=fails)
    running = Running(relay)
    async with trio.open_nursery() as nursery:
        await nursery.start(running.run)
        client.sendto(b"question", relay.local_address)
    ((error, _),) = running.raised
    assert isinstance(error, FaultError)
    assert relays.laws(relay).to_targets.dropped == {"refused": 1}


async def test_on_error_is_asked_of_what_it_raises(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    told: list[tuple[Exception, Address, Address]] = []

    def note(error: Exception, client: RelayClient) -> None:
        told.append((error, client.address, client.target))
        client.answer([b"there is no session for it"])
        client.close()

    async with relays.running([target], admit=fails, on_error=note) as relay:
        client.sendto(b"question", relay.local_address)
        seen = await relays.until(relay, lambda seen: seen.to_targets.dropped)
        assert seen.to_targets.dropped == {"refused": 1}
        assert seen.to_clients.dropped == {"closed": 1}
    ((error, *addresses),) = told
    assert isinstance(error, FaultError)
    assert addresses == [ends.address_of(client), ends.address_of(target)]


async def test_what_is_wrong_is_told(udp: ends.MakeSocket) -> None:
    async def waits(address: Address, first: PacketBatch[Address]) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    wrong: Any
    for wrong in (1, waits):
        with pytest.raises(TypeError, match=r"^admit is a plain function"):
            UdpRelay(None, [TARGET], admit=wrong)

    def hidden(address: Address, first: PacketBatch[Address]) -> Any:  # noqa: ANN401
        return waits(address, first)

    with pytest.raises(TypeError, match=r"^admit is a plain function, not an async one: it ret"):
        await one_round(udp, admit=hidden)
    for more in ({"workers": 2}, {"duplicate": True}):
        options: Any = more
        with pytest.raises(ValueError, match=next(iter(more))):
            UdpRelay(("127.0.0.1", 0), [TARGET], admit=knows_the_word, **options)
