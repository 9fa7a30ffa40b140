# On a wildcard address a relay answers from the address that it was asked at.
#
# A machine has many: the whole of 127/8 is loopback's. A client that asked one and is answered by
# another one throws the answer away, or its firewall does.

from __future__ import annotations

import errno
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from snaptun_trio import _relay_sessions
from snaptun_trio._relay_sessions import RelaySession

from . import ends, relays

if TYPE_CHECKING:
    from snaptun_trio import Address
    from snaptun_trio._relay_account import TargetAccount
    from snaptun_trio._train import Way

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the address"),
]


@pytest.mark.core
@pytest.mark.parametrize("local", ["0.0.0.0", "::", None])
@pytest.mark.parametrize("there", ["127.0.0.1", "::1"])
async def test_answers_leave_from_the_address_that_was_asked(
    udp: ends.MakeSocket, local: str | None, there: str
) -> None:
    if local == "::" or there == "::1":
        udp("::1").close()  # which skips where there is no IPv6
    target = udp(there)
    asked = [f"127.0.0.{number}" for number in range(2, 6)] + ["::1"] * (local != "0.0.0.0")
    async with relays.running([target], (local, 0)) as relay:
        stage = relays.Stage(relay, [udp("::1" if ":" in host else "127.0.0.1") for host in asked])
        port = relay.local_address[1]
        for number, host in enumerate(asked):
            await stage.send(number, b"%d" % number, b"%d" % number, to=(host, port))
        for packet, address in await relays.receive(target, 2 * len(asked)):
            target.sendto(b"for " + packet, address)
        for client, host in zip(stage.clients, asked):
            (one, first), (two, second) = await relays.receive(client, 2)
            assert one == two == b"for %d" % asked.index(host)
            assert first[:2] == second[:2] == (host, port)


async def test_it_is_the_address_of_the_first_datagram(udp: ends.MakeSocket) -> None:
    """A client that asks two addresses has one session."""
    target, client = udp(), udp()
    async with relays.running([target], ("0.0.0.0", 0)) as relay:
        stage = relays.Stage(relay, [client])
        hosts: list[Address] = [
            (host, relay.local_address[1]) for host in ("127.0.0.7", "127.0.0.8")
        ]
        for host in hosts:
            await stage.send(0, b"x", to=host)
        for packet, address in await relays.receive(target, 2):
            target.sendto(packet, address)
        assert await relays.receive(client, 2) == [(b"x", hosts[0])] * 2
        assert relays.laws(relay).sessions_created == 1


async def test_one_address_needs_no_word_about_it(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    async with relays.running([target], ("127.0.0.9", 0)) as relay:
        await relays.Stage(relay, [client]).send(0, b"x")
        ((_, address),) = await relays.receive(target, 1)
        target.sendto(b"y", address)
        assert await relays.receive(client, 1) == [(b"y", relay.local_address)]


@pytest.mark.parametrize("local", ["0.0.0.0", "127.0.0.1"])
async def test_what_was_said_of_a_clients_datagram_is_not_said_to_its_target(
    udp: ends.MakeSocket, local: str
) -> None:
    """Neither the address that it came to nor its ECN bits."""
    target, client = udp(), udp()
    target.setsockopt(socket.SOL_IP, socket.IP_RECVTOS, 1)
    client.setsockopt(socket.SOL_IP, socket.IP_TOS, 3)
    async with relays.running([target], (local, 0)) as relay:
        to = ("127.0.0.1" if local == "0.0.0.0" else local, relay.local_address[1])
        await relays.Stage(relay, [client]).send(0, b"x", b"y", to=to)
        for _ in range(2):
            _, controls, _, address = target.recvmsg(10, 100)
            assert controls == [(socket.SOL_IP, socket.IP_TOS, b"\0")]
            assert address[0] == "127.0.0.1"


async def test_trains_of_answers_leave_from_there_as_well(udp: ends.MakeSocket) -> None:
    """Segmentation and the address are asked for beside each other."""
    packets = ends.numbered(200, 1000)
    with ends.make_pair(udp(), udp()) as pair:
        target = pair.sender.socket
        assert isinstance(target, socket.socket)
        async with relays.running([target], ("0.0.0.0", 0)) as relay:
            client = pair.receiver.socket
            assert isinstance(client, socket.socket)
            here: Address = ("127.0.0.3", relay.local_address[1])
            await relays.Stage(relay, [client]).send(0, b"x", to=here)
            ((_, address),) = await relays.receive(target, 1)
            pair.sender.send_nowait(ends.batch_of(packets, address))
            await relays.until(relay, lambda seen: seen.to_clients.datagrams_out == 200)
            assert ends.collect(pair.receiver, 200) == [(packet, here) for packet in packets]


async def test_an_address_that_is_gone_costs_its_own_client_only(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses to send from it: that is counted, and others are answered meanwhile."""

    def opened(
        target: Address,
        account: TargetAccount,
        client: Address,
        way: Way,
        *rest: Any,  # noqa: ANN401
    ) -> RelaySession:
        gone = (None, "192.0.2.77", None) if way[1] == "127.0.0.2" else way
        return RelaySession(target, account, client, gone, *rest)

    monkeypatch.setattr(_relay_sessions, "RelaySession", opened)
    target, clients = udp(), [udp() for _ in range(2)]
    async with relays.running([target], ("0.0.0.0", 0)) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(2):
            host = f"127.0.0.{2 + number}"
            await stage.send(number, b"%d" % number, to=(host, relay.local_address[1]))
        for packet, address in await relays.receive(target, 2):
            for _ in range(3):
                target.sendto(packet, address)
        assert await relays.payloads(clients[1], 3) == [b"1"] * 3
        told = await relays.until(relay, lambda seen: seen.to_clients.datagrams_in == 6)
        (refused,) = told.to_clients.dropped
        assert told.to_clients.dropped[refused] == 3
        assert refused in {errno.errorcode[n] for n in (errno.EINVAL, errno.ENETUNREACH)}
        assert relays.waiting(clients[0]) == []
