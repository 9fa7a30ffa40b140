# What the kernel refuses to a relay: nothing is lost but what it refuses for good, nothing goes
# twice, all is counted, and it is the affair of one session.

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import UdpBatchReceiver, UdpBatchSender
from snaptun_trio._relay_account import accounts_of

from . import ends, groups, refusals, relays
from .faults import interposer

if TYPE_CHECKING:
    import socket

    from snaptun_trio import Address

pytestmark = pytest.mark.usefixtures("backend")


def send_train(client: socket.socket, to: Address, packets: list[bytes]) -> None:
    """As one train, where the kernel has them."""
    UdpBatchSender(client).send_nowait(ends.batch_of(packets, to))


def without(packets: list[bytes], lost: list[bytes]) -> list[bytes]:
    return [packet for packet in packets if packet not in lost]


@pytest.mark.needs_gso
@pytest.mark.needs_gro
@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL])
async def test_where_the_kernel_does_not_segment_all_goes_and_that_is_found_out_once(
    udp: ends.MakeSocket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    """Not by each session anew: strangers could fill a log with that."""
    caplog.set_level(logging.WARNING, "snaptun_trio")
    target, clients = udp(), [udp() for _ in range(8)]
    packets = ends.numbered(50, 1200)
    async with relays.running([target]) as relay:
        stage = relays.Stage(relay, clients)
        await stage.send(7, b"there before")
        refused = 0

        def verdict(message: interposer.Message) -> int:
            nonlocal refused
            ours = message.segment_size and not message.name
            refused += bool(ours)
            return code if ours else 0

        interposer.Interposer(monkeypatch, verdict)
        for number, client in enumerate(clients):
            send_train(client, relay.local_address, packets)
            stage.sent += len(packets)
            await stage.settle()
            if number == 1:
                assert refused
                refused = 0
        assert refused == 0, "later ones know"
        monkeypatch.undo()
        got: dict[Address, list[bytes]] = {}
        for packet, address in await relays.receive(target, 1 + 8 * len(packets)):
            got.setdefault(address, []).append(packet)
        assert sorted(got.values()) == sorted([packets] * 7 + [[b"there before", *packets]])
        told = relays.laws(relay)
        assert told.to_targets.dropped == {}
        assert told.to_targets.datagrams_out == 1 + 8 * len(packets)
    assert len([one for one in caplog.records if "does not segment" in one.message]) == 1


@pytest.mark.parametrize("at", [0, 1, 5, 19])
@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EMSGSIZE, errno.EPERM, interposer.SHORT])
async def test_a_refusal_in_the_middle_costs_what_was_refused(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, at: int, code: int
) -> None:
    """Once or for good; what a full socket did not take at once is dropped, and all behind it."""
    target, clients = udp(), [udp(), udp()]
    packets = [bytes([number]) * (number + 1) for number in range(20)]
    async with relays.running([target]) as relay:
        stage = relays.Stage(relay, clients)
        await stage.send(0, b"first")
        bad = packets[at]
        with monkeypatch.context() as patch:
            interposer.Interposer(
                patch, lambda message: code if message.payload.startswith(bad) else 0
            )
            for packet in packets:
                clients[0].sendto(packet, relay.local_address)
                clients[1].sendto(b"other", relay.local_address)
            stage.sent += 40
            if code == interposer.SHORT:
                with trio.move_on_after(0.01):  # as a signal at every try: nothing is lost
                    await stage.settle()
            else:
                await stage.settle()
        told = await stage.settle()
        got = [packet for packet, _ in relays.waiting(target)]
        mine = [packet for packet in got if packet != b"other"]
        assert got.count(b"other") == 20
        assert told.to_targets.datagrams_out == len(got)
        if code == interposer.SHORT:
            assert mine == [b"first", *packets]
        elif code == errno.EAGAIN:
            assert told.to_targets.dropped == {"socket full": 20 - at}
            assert mine == [b"first", *packets[:at]]
        else:
            assert told.to_targets.dropped == {errno.errorcode[code]: 1}
            assert mine == [b"first", *without(packets, [bad])]
        await stage.send(0, b"last")
        assert await relays.payloads(target, 1) == [b"last"]


@pytest.mark.parametrize("code", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENOBUFS])
async def test_an_error_that_passes_costs_nothing(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    target, client = udp(), udp()
    async with relays.running([target]) as relay:
        stage = relays.Stage(relay, [client])
        await stage.send(0, b"first")
        with monkeypatch.context() as patch:
            script = iter([0, code])
            interposer.Interposer(patch, interposer.from_script(script))
            for number in range(5):
                await stage.send(0, b"%d" % number)
        assert await relays.payloads(target, 6) == [b"first", *[b"%d" % n for n in range(5)]]
        told = relays.laws(relay)
        assert told.to_targets.asynchronous_errors == {errno.errorcode[code]: 1}
        assert told.to_targets.dropped == {}


async def test_a_target_socket_that_takes_nothing_holds_up_nobody(
    udp: ends.MakeSocket, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, clients = udp(), [udp() for _ in range(5)]
    async with relays.running([target]) as relay:
        stage = relays.Stage(relay, clients)
        await stage.send(0, b"0")
        (full,) = relays.forwarding_of(relay).upstreams()
        codes = {full.io.sock.fileno(): errno.EAGAIN}
        refusals.refuse_by_descriptor(monkeypatch, backend, codes)
        for _ in range(10):
            for number, client in enumerate(clients):
                client.sendto(b"%d" % number, relay.local_address)
            stage.sent += 5
        told = await stage.settle()
        assert told.to_targets.dropped == {"socket full": 10}
        got = [packet for packet, _ in relays.waiting(target)]
        assert got.count(b"0") == 1
        assert {got.count(b"%d" % number) for number in range(1, 5)} == {10}
        codes.clear()
        await stage.send(0, b"0")
        assert await relays.payloads(target, 1) == [b"0"]


@pytest.mark.parametrize("some", [0, 2])
async def test_a_clients_socket_that_takes_nothing_drops_answers_and_goes_on(
    udp: ends.MakeSocket, backend: str, monkeypatch: pytest.MonkeyPatch, some: int
) -> None:
    """All of them, or those behind the first few."""
    target, clients = udp(), [udp() for _ in range(3)]
    async with relays.running([target]) as relay:
        stage = relays.Stage(relay, clients)
        for number in range(3):
            await stage.send(number, b"%d" % number)
        came = await relays.receive(target, 3)
        took = 0

        def verdict(message: interposer.Message) -> int:
            nonlocal took
            took += 1
            return errno.EAGAIN if took > some else 0

        with monkeypatch.context() as patch:
            interposer.Interposer(patch, verdict)
            for packet, address in came:
                target.sendto(b"answer " + packet, address)
            await relays.until(relay, lambda seen: seen.to_clients.datagrams_in == 3)
            await trio.lowlevel.checkpoint()
        told = relays.laws(relay)
        arrived = sum(len(relays.waiting(client)) for client in clients)
        assert told.to_clients.datagrams_out == arrived <= some
        assert told.to_clients.dropped == {"socket full": 3 - arrived}
        for packet, address in came:
            target.sendto(b"again " + packet, address)
        for number, client in enumerate(clients):
            assert await relays.payloads(client, 1) == [b"again %d" % number]


@pytest.mark.needs_gso
@pytest.mark.needs_gro
@pytest.mark.parametrize("nbytes", [65_474, 65_494, 65_507, 65_508, 65_520, 65_527])
async def test_trains_over_what_a_family_takes_arrive_whole(
    udp: ends.MakeSocket, nbytes: int
) -> None:
    """A whole IPv6 packet full of datagrams is more than an IPv4 packet holds."""
    four, six = udp("127.0.0.1"), udp("::1")
    clients = [udp("::1") for _ in range(2)]
    data = bytes(n % 251 for n in range(nbytes))
    packets = [data[at : at + 1200] for at in range(0, nbytes, 1200)]
    control = [(ends.SOL_UDP, ends.UDP_SEGMENT, (1200).to_bytes(2, "little"))]
    async with relays.running([six], ("::1", 0)) as relay:
        stage = relays.Stage(relay, clients)
        await stage.send(0, b"first")
        assert len(await relays.receive(six, 1)) == 1
        # From here on one fan has both families: the first client's session stays.
        forwarding = relays.forwarding_of(relay)
        forwarding._targets = [ends.address_of(four)]
        forwarding.accounts |= accounts_of(
            forwarding._targets, relays.front_of(relay)._to_targets, {}
        )
        for client, target in zip(clients, (six, four)):
            client.sendmsg([data], control, 0, relay.local_address)
            stage.sent += len(packets)
            told = await stage.settle()
            with UdpBatchReceiver(target) as receiver:
                assert ends.payloads(receiver, len(packets)) == packets
        assert told.to_targets.dropped == {}


async def test_a_dead_target_of_many_keeps_no_task_waiting(udp: ends.MakeSocket) -> None:
    """Hundreds of errors are told at once, one by one. Each is read with one call."""
    count = 400
    with groups.room_for(3 * count):
        target, live = udp(), udp()
        clients = [udp() for _ in range(count)]
        async with relays.running([target], max_sessions=2 * count) as relay:
            stage = relays.Stage(relay, clients)
            for client in clients:
                client.sendto(b"x", relay.local_address)
            stage.sent += count
            await stage.settle()
            where = ends.address_of(target)
            target.close()
            live.close()
            for client in clients:
                client.sendto(b"y", relay.local_address)
            stage.sent += count
            await stage.settle()
            told = await relays.until(
                relay,
                lambda seen: seen.to_targets.asynchronous_errors.get("ECONNREFUSED", 0) >= count,
            )
            assert told.sessions == count
            assert told.to_targets.datagrams_out == 2 * count
            assert where in relay.targets
