# A function of a relay that raises, or returns what it must not: who is told, what becomes of the
# datagrams, and how the relay ends.

from __future__ import annotations

import gc
import signal
import sys
import traceback
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from snaptun_trio import Address, PacketBatch, RelayClient, UdpRelay

from . import ends, relays
from .test_relay_control_c import interrupters, run_interrupted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("backend")

Batch = PacketBatch[Address]


class Fault(Exception):
    """A fault of the program."""


def fail_at(word: bytes, calls: list[bytes] | None = None) -> Callable[..., PacketBatch]:
    """A function that raises when this is the last of what came."""

    def fail(batch: Batch, client: RelayClient) -> PacketBatch:
        *_, (packet, _) = batch
        if calls is not None:
            calls.append(packet)
        if packet == word:
            raise Fault(word)
        return batch

    return fail


async def open_sessions(relay: UdpRelay, target: socket.socket, clients: Any) -> list[Address]:  # noqa: ANN401
    """A session for each client; returns whom the target saw, in that order."""
    stage = relays.Stage(relay, clients)
    for number in range(len(clients)):
        await stage.send(number, b"hello")
    return [address for _, address in await relays.receive(target, len(clients))]


class Running:
    """Runs a relay, and keeps what it raises, with its traceback."""

    def __init__(self, relay: UdpRelay) -> None:
        self._relay = relay
        self.raised: list[tuple[Exception, str]] = []

    async def run(
        self, *, task_status: trio.TaskStatus[UdpRelay] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await self._relay.run(task_status=task_status)
        except Exception as error:
            self.raised.append((error, "".join(traceback.format_tb(error.__traceback__))))


# -- nobody is asked


@pytest.mark.parametrize("way", ["from_client", "from_target"])
async def test_an_exception_ends_the_relay_and_all_is_accounted_for(
    udp: ends.MakeSocket, way: str
) -> None:
    target, clients = udp(), [udp() for _ in range(5)]
    calls: list[bytes] = []
    functions: Any = {way: fail_at(b"2", calls)}
    relay = UdpRelay(("127.0.0.1", 0), [ends.address_of(target)], **functions)
    running = Running(relay)
    with relays.same_descriptors():
        async with trio.open_nursery() as nursery:
            await nursery.start(running.run)
            seen = await open_sessions(relay, target, clients)
            calls.clear()
            await trio.testing.wait_all_tasks_blocked()  # what comes now comes together
            for number, client in enumerate(clients):
                if way == "from_client":
                    client.sendto(b"%d" % number, relay.local_address)
                else:
                    target.sendto(b"%d" % number, seen[number])
        ((error, shown),) = running.raised
        assert (type(error), error.args, error.__context__) == (Fault, (b"2",), None)
        assert "in fail" in shown
        running.raised.clear()
        del error
    assert calls == [b"0", b"1", b"2"], "none is called any more"
    told = relays.laws(relay)
    flow = told.to_targets if way == "from_client" else told.to_clients
    assert flow.dropped == {"handler": 1, "closed": 2}
    assert flow.datagrams_waiting == 0
    assert told.sessions_closed == 5
    assert told.targets[0].dropped == ({"handler": 1} if way == "from_client" else {})
    if way == "from_client":
        assert [packet for packet, _ in relays.waiting(target)] == [b"0", b"1"]
    else:
        answers = [[packet for packet, _ in relays.waiting(client)] for client in clients]
        assert answers == [[b"0"], [b"1"], [], [], []]


@pytest.mark.parametrize("way", ["from_client", "from_target"])
@pytest.mark.parametrize("parts", [[Fault(1)], [Fault(1), Fault(2)], [SystemExit(3)]])
async def test_a_group_that_a_function_raises_stays_the_group_that_it_is(
    udp: ends.MakeSocket, way: str, parts: list[BaseException]
) -> None:
    """It is the program's, and no nursery's."""
    group = BaseExceptionGroup("of the program", parts)

    def fail(batch: Batch, client: RelayClient) -> PacketBatch:
        raise group

    target, client = udp(), udp()
    functions: Any = {way: fail}
    relay = UdpRelay(("127.0.0.1", 0), [ends.address_of(target)], **functions)
    raised: list[BaseException] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_echo, target)
        try:
            await relay.run(task_status=_Send(client, relay))
        except BaseExceptionGroup as error:
            raised.append(error)
        nursery.cancel_scope.cancel()
    assert raised == [group]
    assert group.__context__ is None
    group.__traceback__ = None


async def test_what_was_raised_is_gone_with_whoever_caught_it(udp: ends.MakeSocket) -> None:
    """And the client that it was about: nothing waits for the garbage collector."""
    target, client = udp(), udp()
    known: list[weakref.ref[RelayClient]] = []

    def fail(batch: Batch, client: RelayClient) -> PacketBatch:
        known.append(weakref.ref(client))
        raise Fault

    gc.collect()
    gc.disable()
    try:
        relay = UdpRelay(("127.0.0.1", 0), [ends.address_of(target)], from_client=fail)
        try:
            await relay.run(task_status=_Send(client, relay))
        except Fault:
            assert known[0]() is not None, "in a frame of the traceback"
        assert [ref() for ref in known] == [None]
    finally:
        gc.enable()


async def _echo(sock: socket.socket) -> None:
    for packet, address in await relays.receive(sock, 1):
        sock.sendto(packet, address)


WRONG: list[tuple[object, str]] = [
    (b"bytes", "NAME returns a PacketBatch, the packets or None, not b'bytes'"),
    (bytearray(b"x"), r"NAME returns a PacketBatch, the packets or None, not bytearray\(b'x'\)"),
    ("text", "NAME returns a PacketBatch, the packets or None, not 'text'"),
    (True, "NAME returns a PacketBatch, the packets or None, not True"),
    ([1], "of what NAME returned: a packet is a bytes-like object, not 1"),
    ([b"x", "y"], "of what NAME returned: a packet is a bytes-like object, not 'y'"),
    ((None,), "of what NAME returned: a packet is a bytes-like object, not None"),
]


@pytest.mark.parametrize("way", ["from_client", "from_target"])
@pytest.mark.parametrize(("result", "told"), WRONG)
async def test_a_wrong_result_is_named(
    udp: ends.MakeSocket, way: str, result: object, told: str
) -> None:
    wrong: Any = lambda batch, client: result  # noqa: E731
    with pytest.raises(TypeError, match=f"^{told.replace('NAME', way)}$"):
        await one_round(udp, **{way: wrong})


@pytest.mark.parametrize("count", [1, 2])
async def test_a_packet_that_no_datagram_can_hold_is_told_of(
    udp: ends.MakeSocket, count: int
) -> None:
    wrong: Any = lambda batch, client: [bytes(65_528)] * count  # noqa: E731
    with pytest.raises(ValueError, match="65528 bytes is larger than any UDP datagram"):
        await one_round(udp, from_client=wrong)


@pytest.mark.parametrize("way", ["from_client", "from_target"])
async def test_an_async_function_in_disguise_is_named(udp: ends.MakeSocket, way: str) -> None:
    async def late(*_: object) -> None: ...

    hidden: Any = lambda *arguments: late(*arguments)  # noqa: E731
    with pytest.raises(TypeError, match=f"^{way} is a plain function, not an async one: it ret"):
        await one_round(udp, **{way: hidden})


async def one_round(udp: ends.MakeSocket, **functions: Any) -> None:  # noqa: ANN401
    """A question and an answer, or what the relay raises instead."""
    target, client = udp(), udp()
    relay = UdpRelay(("127.0.0.1", 0), [ends.address_of(target)], **functions)
    running = Running(relay)
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            client.sendto(b"question", relay.local_address)
            ((_, address),) = await relays.receive(target, 1)
            target.sendto(b"answer", address)
            await relays.receive(client, 1)
            relay.stop()

        async def run(*, task_status: trio.TaskStatus[UdpRelay]) -> None:
            await running.run(task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(run)
        nursery.start_soon(ask)
    relays.laws(relay)
    for error, _ in running.raised:
        raise error


# -- on_error


@pytest.mark.parametrize("way", ["from_client", "from_target"])
async def test_on_error_is_asked_and_the_relay_goes_on(udp: ends.MakeSocket, way: str) -> None:
    target, clients = udp(), [udp() for _ in range(3)]
    asked: list[tuple[Exception, RelayClient]] = []

    def on_error(error: Exception, client: RelayClient) -> None:
        asked.append((error, client))
        client.answer([b"sorry"])
        relays.laws(relay)
        client.close()

    functions: Any = {way: fail_at(b"1"), "on_error": on_error}
    async with relays.running([target], **functions) as relay:
        seen = await open_sessions(relay, target, clients)
        await trio.testing.wait_all_tasks_blocked()  # what comes now comes together
        for number, client in enumerate(clients):
            if way == "from_client":
                client.sendto(b"%d" % number, relay.local_address)
            else:
                target.sendto(b"%d" % number, seen[number])
        told = await relays.until(relay, lambda seen: seen.sessions_closed == 1)
        assert await relays.payloads(clients[1], 1) == [b"sorry"]
        if way == "from_client":
            assert await relays.payloads(target, 2) == [b"0", b"2"]
        else:
            assert await relays.payloads(clients[0], 1) == [b"0"]
            assert await relays.payloads(clients[2], 1) == [b"2"]
        flow = told.to_targets if way == "from_client" else told.to_clients
        assert flow.dropped == {"handler": 1}
        assert told.sessions == 2
    ((error, about),) = asked
    assert error.args == (b"1",)
    assert about.address == ends.address_of(clients[1])


async def test_on_error_is_asked_about_a_wrong_result_too(udp: ends.MakeSocket) -> None:
    asked: list[str] = []
    wrong: Any = lambda batch, client: client.answer([b"x"]) or b"bytes"  # noqa: E731

    def note(error: Exception, client: RelayClient) -> None:
        asked.append(str(error))

    target, client = udp(), udp()
    async with relays.running([target], from_client=wrong, on_error=note) as relay:
        client.sendto(b"question", relay.local_address)
        assert await relays.payloads(client, 1) == [b"x"]
    assert asked == ["from_client returns a PacketBatch, the packets or None, not b'bytes'"]


async def test_what_on_error_raises_ends_the_relay(udp: ends.MakeSocket) -> None:
    def fail(error: Exception, client: RelayClient) -> None:
        raise LookupError("on_error") from error

    with pytest.raises(LookupError, match="on_error") as caught:
        await one_round(udp, from_client=fail_at(b"question"), on_error=fail)
    assert isinstance(caught.value.__cause__, Fault)

    async def late(*_: object) -> None: ...

    hidden: Any = lambda *arguments: late(*arguments)  # noqa: E731
    with pytest.raises(TypeError, match=r"^on_error is a plain function, not an async one: "):
        await one_round(udp, from_client=fail_at(b"question"), on_error=hidden)


async def test_on_error_is_not_asked_about_what_is_no_fault(udp: ends.MakeSocket) -> None:
    asked: list[Exception] = []

    def leave(batch: Batch, client: RelayClient) -> PacketBatch:
        sys.exit(3)

    target, client = udp(), udp()
    where = [ends.address_of(target)]
    relay = UdpRelay(
        ("127.0.0.1", 0), where, from_client=leave, on_error=lambda error, _: asked.append(error)
    )
    with pytest.raises(SystemExit):
        await relay.run(task_status=_Send(client, relay))
    assert asked == []
    assert relays.laws(relay).to_targets.dropped == {"handler": 1}


# -- wherever it happens


@pytest.mark.parametrize("ending", ["stop", "cancel"])
@pytest.mark.parametrize("way", ["from_client", "from_target"])
async def test_a_function_that_raises_in_the_last_moment_is_told_of_too(
    udp: ends.MakeSocket, way: str, ending: str
) -> None:
    """And everything is closed."""
    target, clients = udp(), [udp() for _ in range(3)]
    functions: Any = {way: fail_at(b"last")}
    with relays.same_descriptors():
        relay = UdpRelay(("127.0.0.1", 0), [ends.address_of(target)], grace=0, **functions)
        running = Running(relay)
        async with trio.open_nursery() as nursery:
            await nursery.start(running.run)
            seen = await open_sessions(relay, target, clients)
            await trio.testing.wait_all_tasks_blocked()
            for number, client in enumerate(clients):
                if way == "from_client":
                    client.sendto(b"last", relay.local_address)
                else:
                    target.sendto(b"last", seen[number])
            if ending == "stop":
                relay.stop()
            else:
                nursery.cancel_scope.cancel()
        assert [(type(error), error.args) for error, _ in running.raised] == [(Fault, (b"last",))]
        running.raised.clear()
    told = relays.laws(relay)
    flow = told.to_targets if way == "from_client" else told.to_clients
    assert flow.dropped == {"handler": 1, "closed": 2}
    assert (told.sessions, told.sessions_closed) == (0, 3)
    assert relay.statistics().to_clients.datagrams_waiting == 0


@pytest.mark.parametrize("where", ["set_targets", "close"])
async def test_run_raises_what_a_function_raises_while_another_task_ends_its_session(
    udp: ends.MakeSocket, where: str
) -> None:
    target, client = udp(), udp()
    known: list[RelayClient] = []

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        known.append(client)
        return batch

    relay = UdpRelay(
        ("127.0.0.1", 0),
        [ends.address_of(target)],
        from_client=from_client,
        from_target=fail_at(b"last"),
    )
    running = Running(relay)
    async with trio.open_nursery() as nursery:
        await nursery.start(running.run)
        (address,) = await open_sessions(relay, target, [client])
        await trio.testing.wait_all_tasks_blocked()
        target.sendto(b"last", address)
        if where == "close":
            known[0].close()
        else:
            await relay.set_targets([("127.0.0.1", 9)])
    assert [type(error) for error, _ in running.raised] == [Fault]
    told = relays.laws(relay)
    assert told.sessions_created == 1
    assert told.to_clients.dropped == {"handler": 1}


# -- Control-C


@pytest.mark.parametrize("answers", [False, True])
def test_control_c_interrupts_a_function(udp: ends.MakeSocket, answers: bool) -> None:
    target, client = udp(), udp()

    def endless() -> Iterator[bytes]:
        signal.raise_signal(signal.SIGINT)
        while True:  # it is the signal that ends it
            yield from ()

    def forever(batch: Batch, client: RelayClient) -> Iterator[bytes]:
        if answers:
            client.answer(endless())
        return endless()

    relay = UdpRelay(("127.0.0.1", 0), [ends.address_of(target)], from_client=forever)

    async def main() -> None:
        await relay.run(task_status=_Send(client, relay))

    with relays.same_descriptors(), pytest.raises(KeyboardInterrupt):
        trio.run(main)
    told = relays.laws(relay)
    assert told.to_targets.dropped == {"handler": 1}


class _Send:
    """Sends something once the relay has begun."""

    def __init__(self, client: socket.socket, relay: UdpRelay) -> None:
        self._client, self._relay = client, relay

    def started(self, value: object = None) -> None:
        self._client.sendto(b"x", self._relay.local_address)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="only CPython traces bytecodes")
@pytest.mark.parametrize("stride", [pytest.param(13, marks=pytest.mark.slow), 71])
def test_f54_control_c_anywhere_in_a_relay_with_functions_leaves_its_account_in_order(
    udp: ends.MakeSocket, stride: int
) -> None:
    target, clients = udp(), [udp() for _ in range(3)]
    known: list[RelayClient] = []

    def from_client(batch: Batch, client: RelayClient) -> PacketBatch:
        known.append(client)
        client.answer(packet for packet, _ in batch)
        return PacketBatch.pack([(packet + b"!", None) for packet, _ in batch])

    async def main(relay: UdpRelay) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(relay.run)
            for client in clients:
                client.sendto(b"one", relay.local_address)
                client.sendto(b"two", relay.local_address)
            for packet, address in await relays.receive(target, 4):
                target.sendto(packet, address)
            known[0].answer([b"later"])
            known[0].close()
            relay.statistics()
            relay.stop()

    runs = 0
    for interrupter in interrupters(stride):
        runs += 1
        known.clear()
        with relays.same_descriptors():
            relay = UdpRelay(
                ("127.0.0.1", 0),
                [ends.address_of(target)],
                from_client=from_client,
                from_target=fail_at(b"never"),
                max_sessions=2,
            )
            interrupter.run(run_interrupted, main, relay)
            known.clear()
        told = relays.laws(relay)
        assert told.sessions == told.to_targets.datagrams_waiting == 0
        assert told.to_clients.datagrams_waiting == 0
        assert len(relays.waiting(target)) <= told.to_targets.datagrams_out
        for client in clients:
            relays.waiting(client)
    assert runs > 2, "some of it can be interrupted"
