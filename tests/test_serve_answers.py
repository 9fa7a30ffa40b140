# serve_udp's `answer`: what a plain function settles leaves at once, and needs no peer.

from __future__ import annotations

import errno
import itertools
import logging
import math
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from snaptun_trio import ECN, PacketBatch, PacketTooLargeError, PacketTrain, _answers, serve_udp
from snaptun_trio._answers import _ways_back
from snaptun_trio._peer_table import PeerTable
from snaptun_trio._send_queue import SendQueue
from snaptun_trio.testing import ScriptedSocket

from . import ends, relays, serving
from .test_send_nowait import FullSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from snaptun_trio import Address, UdpChannel, UdpServer

pytestmark = pytest.mark.usefixtures("backend")

A, B = serving.peer(1), serving.peer(2)


def loud(packet: bytes, _: Address) -> bytes | None:
    """Answers what is in small letters, and leaves the rest."""
    return packet.upper() if packet.islower() else None


async def never(channel: UdpChannel) -> NoReturn:
    raise AssertionError(f"{channel} was to have no handler")


@pytest.mark.core
async def test_an_answer_needs_no_peer(udp: ends.MakeSocket) -> None:
    asked: list[tuple[bytes, Address]] = []

    def answer(packet: bytes, address: Address) -> bytes:
        asked.append((packet, address))
        return packet[::-1]

    client = udp()
    async with serving.server(never, answer=answer) as served:
        for packet in (b"abc", b"", b"de"):
            client.sendto(packet, served.address)
        got = await relays.receive(client, 3)
        assert got == [(packet, served.address) for packet in (b"cba", b"", b"ed")]
        assert asked == [(packet, client.getsockname()) for packet in (b"abc", b"", b"de")]
        seen = await served.until(lambda seen: seen.datagrams_answered == 3)
        assert (seen.peers, seen.peers_admitted, seen.sender.datagrams_sent) == (0, 0, 3)
        assert served.server.peers == ()


@pytest.mark.core
async def test_what_is_left_goes_to_the_peers_handler_in_its_order(udp: ends.MakeSocket) -> None:
    clients = [udp() for _ in range(3)]
    async with serving.server(answer=loud) as served:
        channels = {}
        for client in clients:
            channel = await served.new_peer(client, b"HELLO")
            channels[channel.address] = channel
        for number in range(5):
            for client in clients:
                client.sendto(b"a%d" % number, served.address)
                client.sendto(b"B%d" % number, served.address)
        await served.until_received(33)
        for client in clients:
            channel = channels[client.getsockname()]
            left = [await channel.receive_packet() for _ in range(6)]
            assert left == [b"HELLO", b"B0", b"B1", b"B2", b"B3", b"B4"]
            got = await relays.receive(client, 5)
            assert got == [(b"A%d" % number, served.address) for number in range(5)]
        assert served.statistics().datagrams_answered == 15


kept = st.lists(
    st.tuples(st.sampled_from("ABC"), st.integers(0, 3), st.booleans()), min_size=1, max_size=40
)


@given(calls=st.lists(kept, min_size=1, max_size=3))
def test_each_datagram_is_answered_or_left_and_none_twice(
    calls: list[list[tuple[str, int, bool]]],
) -> None:
    """Beside a plain reading: who asked what, and what was made of it."""

    def answer(packet: bytes, _: Address) -> list[bytes] | None:
        many = packet[0]
        return None if many == 9 else [packet + bytes([one]) for one in range(many)]

    async def main() -> None:
        taken: dict[Address, list[bytes]] = {}

        async def take(channel: UdpChannel) -> None:
            async for batch in channel:
                taken.setdefault(channel.address, []).extend(packet for packet, _ in batch)

        sock = ScriptedSocket()
        left: dict[Address, list[bytes]] = {}
        answers: dict[Address, list[bytes]] = {}
        async with serving.server(take, port=sock, answer=answer) as served:
            for call in calls:
                pairs: list[tuple[bytes, Address | None]] = []
                for number, (who, many, is_left) in enumerate(call):
                    address = serving.peer(ord(who))
                    packet = bytes([9 if is_left else many]) + b"%d" % number
                    pairs.append((packet, address))
                    if is_left:
                        left.setdefault(address, []).append(packet)
                    else:
                        made = [packet + bytes([one]) for one in range(many)]
                        answers.setdefault(address, []).extend(made)
                await served.feed(*pairs)
            seen = served.statistics()
            assert seen.datagrams_received == sum(map(len, calls))
            assert seen.datagrams_delivered == sum(map(len, left.values()))
            assert seen.peers == len(left)
        assert taken == left
        sent: dict[Address, list[bytes]] = {address: [] for address in answers}
        for packet, to in sock.sent:
            assert to is not None
            sent[to].append(packet)
        assert sent == answers

    trio.run(main)


async def test_what_is_left_is_told_all_that_was_told_of_it() -> None:
    sock = ScriptedSocket()
    told: dict[str, Any] = {
        "local_address": "192.0.2.1",
        "interface_index": 3,
        "timestamp_ns": 5,
    }
    trains = [
        PacketTrain(b"aaBBcc", 2, A, ecn=ECN.CE, **told),
        PacketTrain(b"DDEEf", 2, A, ecn=ECN.ECT_0),
        PacketTrain(b"", 1, A),
    ]
    came: list[PacketTrain[Address]] = []

    async def take(channel: UdpChannel) -> None:
        async for batch in channel:
            came.extend(batch.trains)

    async with serving.server(take, port=sock, answer=loud) as served:
        served.feed_batch(PacketBatch(trains))
        await trio.testing.wait_all_tasks_blocked()
    assert [(bytes(train.data), train.ecn) for train in came] == [
        (b"BB", ECN.CE),
        (b"DD", ECN.ECT_0),
        (b"EE", ECN.ECT_0),
        (b"", None),
    ]
    assert [packet for packet, _ in sock.sent] == [b"AA", b"CC", b"F"]
    assert {name: getattr(came[0], name) for name in told} == told
    assert {getattr(came[1], name) for name in told} == {None}


def test_each_datagram_has_the_way_of_its_own_train() -> None:
    def train(data: bytes, host: str, interface: int) -> PacketTrain[Address]:
        return PacketTrain(data, 1, A, local_address=host, interface_index=interface)

    here, there = "fe80::1", "fe80::2"
    came = PacketBatch([train(b"ab", here, 2), train(b"c", here, 3), train(b"de", there, 2)])
    ways = [(None, here, 2), (None, here, 2), (None, here, 3), (None, there, 2), (None, there, 2)]
    assert list(_ways_back(came)) == ways
    assert _ways_back(PacketBatch([train(b"ab", here, 2)] * 2)) == ways[:1] * 4


@pytest.mark.parametrize("there", ["0.0.0.0", None])
async def test_an_answer_leaves_from_the_address_that_was_asked(
    udp: ends.MakeSocket, there: str | None
) -> None:
    """Also where one peer asks several within one batch."""
    client = udp()
    async with serving.server(answer=loud, host=there) as served:
        port = served.address[1]
        for number in range(20):
            client.sendto(b"a%d" % number, (f"127.0.0.{1 + number % 3}", port))
        got = set(await relays.receive(client, 20))
        assert got == {(b"A%d" % n, (f"127.0.0.{1 + n % 3}", port)) for n in range(20)}


LARGEST = bytes(65_507)
SEVERAL: list[tuple[Any, list[bytes]]] = [
    (LARGEST, [LARGEST]),
    ([bytearray(LARGEST)], [LARGEST]),
    (b"one", [b"one"]),
    (b"", [b""]),
    (bytearray(b"one"), [b"one"]),
    (memoryview(b"xonex")[1:4], [b"one"]),
    ([b"one", bytearray(b"two")], [b"one", b"two"]),
    ((), []),
    (lambda: iter([b"one", b"two"]), [b"one", b"two"]),
    ({b"one": 1}, [b"one"]),
]


@pytest.mark.parametrize(("returned", "expected"), SEVERAL)
async def test_it_returns_a_packet_or_several(returned: Any, expected: list[bytes]) -> None:  # noqa: ANN401
    def answer(packet: bytes, address: Address) -> Any:  # noqa: ANN401
        assert (packet, address) == (b"a", A)
        return returned() if callable(returned) else returned

    sock = ScriptedSocket()
    async with serving.server(never, port=sock, answer=answer) as served:
        seen = await served.feed((b"a", A))
        assert (seen.datagrams_answered, seen.datagrams_discarded) == (1, 0)
    assert sock.sent == [(packet, A) for packet in expected]


async def test_what_it_returns_may_change_afterwards() -> None:
    buffer = bytearray(4)

    def answer(packet: bytes, _: Address) -> bytearray | list[bytearray]:
        buffer[:] = packet
        return [buffer] if packet == b"2222" else buffer

    sock = ScriptedSocket()
    async with serving.server(never, port=sock, answer=answer) as served:
        await served.feed((b"1111", A), (b"2222", A), (b"3333", B))
    assert sock.sent == [(b"1111", A), (b"2222", A), (b"3333", B)]


class Returned:
    def __repr__(self) -> str:
        return "<Returned>"


async def _async(packet: bytes, address: Address) -> bytes:
    return packet


WRONG: list[tuple[Any, type[Exception], str]] = [
    (5, TypeError, "answer returns a packet, several packets or None, not 5"),
    (Returned(), TypeError, "not <Returned>"),
    ("text", TypeError, "answer returns a packet, several packets or None, not 'text'"),
    (True, TypeError, "not True"),
    (PacketBatch(()), TypeError, "not a PacketBatch"),
    ([b"one", "two"], TypeError, "of what answer returned: "),
    ([[b"one"]], TypeError, "of what answer returned: "),
    (bytes(65_508), PacketTooLargeError, "65508"),
    ([b"", bytearray(65_508)], PacketTooLargeError, "65508"),
]


@pytest.mark.parametrize(("wrong", "kind", "message"), WRONG, ids=lambda value: str(value)[:20])
async def test_anything_else_is_an_error_of_its_own_datagram(
    wrong: Any,  # noqa: ANN401
    kind: type[Exception],
    message: str,
) -> None:
    told: list[tuple[Exception, Address]] = []
    sock = ScriptedSocket()

    def answer(packet: bytes, _: Address) -> Any:  # noqa: ANN401
        return wrong if packet == b"wrong" else packet

    def on_error(error: Exception, channel: UdpChannel) -> None:
        told.append((error, channel.address))

    async with serving.server(never, port=sock, answer=answer, on_error=on_error) as served:
        seen = await served.feed((b"a", A), (b"wrong", A), (b"wrong", B), (b"b", B))
        assert (seen.datagrams_answered, seen.datagrams_discarded) == (2, 2)
    assert [address for _, address in told] == [A, B]
    for error, _ in told:
        assert type(error) is kind
        assert message in str(error)
    assert sock.sent == [(b"a", A), (b"b", B)]


async def test_what_an_async_callable_returns_is_closed_and_told() -> None:
    told: list[Exception] = []
    async with serving.server(
        never,
        port=ScriptedSocket(),
        answer=lambda packet, address: _async(packet, address),
        on_error=lambda error, _: told.append(error),
    ) as served:
        await served.feed((b"a", A))
    (error,) = told
    assert "answer is a plain function, not an async one" in str(error)


@pytest.mark.parametrize("raised", [ValueError("no"), StopIteration(), MemoryError()], ids=repr)
async def test_what_it_raises_is_told_and_the_others_are_answered(raised: Exception) -> None:
    told: list[tuple[str, UdpChannel]] = []

    def answer(packet: bytes, _: Address) -> bytes | None:
        if packet == b"bad":
            raise raised
        return loud(packet, A)

    def on_error(error: Exception, channel: UdpChannel) -> None:
        serving.check_law(served.server.statistics())
        told.append((repr(error.__cause__ or error.__context__ or error), channel))

    sock = ScriptedSocket()
    async with serving.server(port=sock, answer=answer, on_error=on_error) as served:
        await served.feed((b"PEER", A))
        (peer,) = served.server.peers
        seen = await served.feed(
            (b"bad", B), (b"b", B), (b"bad", B), (b"a", A), (b"bad", A), (b"LEFT", A)
        )
        assert seen.datagrams_answered == 2
        assert seen.datagrams_discarded == 3
        assert seen.datagrams_waiting == 2
    assert [channel.address for _, channel in told] == [B, B, A]
    assert [channel for _, channel in told if channel.address == A] == [peer]
    assert sorted(sock.sent) == [(b"A", A), (b"B", B)]


@pytest.mark.parametrize("late", [False, True], ids=["raised", "by its iterable"])
async def test_without_on_error_it_ends_the_server(late: bool) -> None:
    def packets() -> Iterator[bytes]:
        yield b"one"
        raise serving.RefusedError

    def answer(packet: bytes, _: Address) -> Any:  # noqa: ANN401
        if packet != b"bad":
            return packet
        if late:
            return packets()
        raise serving.RefusedError

    sock = ScriptedSocket()
    servers: list[UdpServer] = []

    async def serve(*, task_status: trio.TaskStatus[UdpServer]) -> None:
        with pytest.raises(serving.RefusedError):
            await serve_udp(never, sock, answer=answer, task_status=task_status)

    async with trio.open_nursery() as nursery:
        servers.append(await nursery.start(serve))
        sock.receives.append(PacketBatch.pack([(b"a", A), (b"bad", A), (b"b", B)]))
        sock.wake()
    seen = serving.check_law(servers[0].statistics())
    assert (seen.datagrams_received, seen.datagrams_discarded, seen.datagrams_answered) == (3, 3, 0)
    assert sock.sent == []


@pytest.mark.parametrize("where", ["_take", "chosen", "put_all", "heard_from"])
async def test_where_memory_lacks_nothing_of_the_batch_is_answered_and_all_is_counted(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object, **__: object) -> NoReturn:
        raise MemoryError

    sock = ScriptedSocket()
    servers: list[UdpServer] = []

    async def serve(*, task_status: trio.TaskStatus[UdpServer]) -> None:
        with pytest.raises(MemoryError):
            await serve_udp(serving.finish, sock, answer=loud, task_status=task_status)

    async with trio.open_nursery() as nursery:
        servers.append(await nursery.start(serve))
        sock.receives.append(PacketBatch.pack([(b"PEER", A)]))
        sock.wake()
        await trio.testing.wait_all_tasks_blocked()
        owner: Any = {"put_all": SendQueue, "heard_from": PeerTable}.get(where, _answers)
        monkeypatch.setattr(owner, where, no_memory)
        sock.receives.append(PacketBatch.pack([(b"a", A), (b"LEFT", A), (b"b", B)]))
        sock.wake()
    seen = serving.check_law(servers[0].statistics())
    assert (seen.datagrams_received, seen.datagrams_discarded, seen.datagrams_answered) == (4, 3, 0)
    assert (seen.datagrams_waiting, seen.sender.datagrams_submitted, sock.sent) == (0, 0, [])


async def test_an_answers_slab_goes_back_when_the_batch_is_answered(udp: ends.MakeSocket) -> None:
    client = udp()
    packets = ends.numbered(20, 3000)  # no part of them is small enough to be copied
    async with serving.server(never, answer=lambda packet, _: packet) as served:
        for packet in packets:
            client.sendto(packet, served.address)
        got = await relays.receive(client, 20)
        assert sorted(packet for packet, _ in got) == packets
        await trio.testing.wait_all_tasks_blocked()
        assert served.server._receiver._pool.statistics().slabs_in_use == 0


async def test_a_falsy_object_may_be_the_function() -> None:
    class Known(dict[bytes, bytes]):
        def __call__(self, packet: bytes, address: Address) -> bytes | None:
            return self.get(packet)

    known, sock = Known(), ScriptedSocket()
    async with serving.server(port=sock, answer=known) as served:
        assert (await served.feed((b"a", A))).datagrams_waiting == 1
        known[b"a"] = b"known"
        assert (await served.feed((b"a", B))).datagrams_answered == 1
    assert sock.sent == [(b"known", B)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the address")
@pytest.mark.parametrize("peer", [False, True], ids=["a stranger", "a peer"])
async def test_what_on_error_sends_leaves_from_the_address_that_was_asked(
    udp: ends.MakeSocket, peer: bool
) -> None:
    def on_error(error: Exception, channel: UdpChannel) -> None:
        channel.send_packets_nowait([str(error).encode()])

    def answer(packet: bytes, _: Address) -> None:
        if packet == b"bad":
            raise ValueError("no")

    client = udp()
    async with serving.server(host="0.0.0.0", answer=answer, on_error=on_error) as served:
        port = served.address[1]
        if peer:
            client.sendto(b"hello", ("127.0.0.3", port))
            await served.next_channel()
        client.sendto(b"bad", ("127.0.0.2", port))
        assert await relays.receive(client, 1) == [(b"no", ("127.0.0.2", port))]


async def test_a_server_without_it_waits_for_no_socket() -> None:
    full = FullSocket()
    async with serving.server(port=full.sock) as served:
        await served.feed((b"a", A))
        (peer,) = served.server.peers
        peer.send_packets_nowait([b"held up"])
        await served.feed((b"b", B))
        seen = await served.feed((b"c", B))
        assert (seen.datagrams_waiting, seen.peers) == (3, 2)


async def test_what_on_error_raises_ends_it_as_well() -> None:
    sock = ScriptedSocket()
    with pytest.RaisesGroup(serving.RefusedError, allow_unwrapped=True, flatten_subgroups=True):
        async with serving.server(
            never, port=sock, answer=lambda *_: 5, on_error=serving.fail
        ) as served:
            served.feed_batch(PacketBatch.pack([(b"a", A)]))
            await trio.sleep_forever()


async def test_an_answer_that_is_refused_is_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Any stranger can bring that about."""
    sock = ScriptedSocket()
    sock.answer = lambda packets, to: errno.EINVAL if to == B else 0
    with caplog.at_level(logging.WARNING, "snaptun_trio"):
        async with serving.server(never, port=sock, answer=loud) as served:
            seen = await served.feed((b"a", A), (b"b", B), (b"c", B), (b"d", A))
            assert seen.datagrams_answered == 4
            assert dict(seen.sender.failures) == {errno.EINVAL: 2}
            await served.feed((b"e", A))
    assert [packet for packet, _ in sock.sent] == [b"A", b"D", b"E"]
    (record,) = caplog.records
    assert "could not be sent" in record.getMessage()
    assert str(B) in record.getMessage()


async def test_while_the_socket_is_full_nothing_more_is_taken_in() -> None:
    full = FullSocket()
    asked: list[bytes] = []
    many = [bytes(1 + number) for number in range(100)]  # none makes a train with another

    def answer(packet: bytes, _: Address) -> bytes:
        asked.append(packet)
        return packet

    async with serving.server(never, port=full.sock, answer=answer) as served:
        await served.feed(*[(packet, A) for packet in many])
        await served.feed((b"next", B))
        for taken in (1, 30, 69):
            assert asked == many
            full.take(taken)
            await trio.testing.wait_all_tasks_blocked()
        assert (full.sent, asked) == (many, [*many, b"next"])
        full.take(1)
        await trio.testing.wait_all_tasks_blocked()
        assert full.sent == [*many, b"next"]


async def test_cancelled_while_the_socket_is_full_it_sends_what_it_can_at_the_end() -> None:
    full = FullSocket()
    async with serving.server(never, port=full.sock, answer=loud) as served:
        seen = await served.feed(*[(b"a%02d" % number, A) for number in range(50)])
        assert (seen.datagrams_answered, seen.sender.datagrams_queued) == (50, 50)
        full.room = 20
    seen = serving.check_law(served.server.statistics())
    sender = seen.sender
    assert seen.datagrams_answered == 50 == sender.datagrams_submitted
    assert sender.datagrams_sent + sender.datagrams_discarded == 50
    assert full.sent == [b"A%02d" % number for number in range(sender.datagrams_sent)]


async def test_who_is_only_answered_is_not_silent(autojump_clock: trio.testing.MockClock) -> None:
    sock = ScriptedSocket()
    async with serving.server(port=sock, answer=loud, idle_timeout=10) as served:
        await served.feed((b"PEER", A))
        for _ in range(5):
            await trio.sleep(9)
            await served.feed((b"a", A), (b"b", B))
        assert [peer.address for peer in served.server.peers] == [A]
        await trio.sleep(11)
        assert served.server.peers == ()
        assert served.statistics().peers_expired == 1


async def test_admit_is_asked_of_what_is_left_only() -> None:
    asked: list[tuple[Address, list[bytes]]] = []

    def admit(address: Address, first: PacketBatch[Address]) -> bool:
        serving.check_law(served.server.statistics())
        asked.append((address, [packet for packet, _ in first]))
        return False

    async with serving.server(
        never, port=ScriptedSocket(), answer=loud, admit=admit, idle_timeout=math.inf
    ) as served:
        seen = await served.feed((b"a", A), (b"LEFT", A), (b"b", B), (b"c", A), (b"TOO", A))
        assert (seen.datagrams_answered, seen.datagrams_refused) == (3, 2)
    assert asked == [(A, [b"LEFT", b"TOO"])]


async def test_no_stranger_who_is_answered_takes_a_place() -> None:
    async with serving.server(port=ScriptedSocket(), answer=loud, max_peers=2) as served:
        await served.feed((b"PEER", A), (b"PEER", B))
        seen = await served.feed(*[(b"a", serving.peer(number)) for number in range(3, 500)])
        assert (seen.datagrams_answered, seen.peers_shed, seen.peers_evicted) == (497, 0, 0)
        assert [peer.address for peer in served.server.peers] == [A, B]


@pytest.mark.parametrize(
    ("which", "called"),
    [
        ("answer", r"\(packet, address\)"),
        ("admit", r"\(address, first_batch\)"),
        ("on_error", r"\(exception, channel\)"),
    ],
)
@pytest.mark.parametrize("wrong", [lambda one: one, lambda a, b, c: a, lambda *, a, b: a])
async def test_a_function_of_too_few_or_too_many_is_told_at_once(
    which: str, called: str, wrong: object
) -> None:
    with pytest.raises(TypeError, match=rf"{which} is called with {called}, which <function .*"):
        await serve_udp(never, 0, host="127.0.0.1", **{which: wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("right", [bytes, print, lambda *a: b"", lambda a, b=1: None])
async def test_one_that_takes_two_or_does_not_say_is_taken(right: Any) -> None:  # noqa: ANN401
    async with serving.server(never, port=ScriptedSocket(), answer=right):
        pass


@pytest.mark.parametrize("wrong", [5, "text", _async])
async def test_it_is_a_plain_function(wrong: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match="answer is a plain function, not"):
        await serve_udp(never, 0, host="127.0.0.1", answer=wrong)


@pytest.mark.parametrize("where", ["function", "iterable"])
def test_control_c_interrupts_it(where: str) -> None:
    asked: list[bytes] = []

    def forever() -> Iterator[bytes]:
        signal.raise_signal(signal.SIGINT)
        while True:
            yield b"more"

    def answer(packet: bytes, _: Address) -> Iterator[bytes]:
        if where == "function":
            asked.extend(forever())
        return forever()

    servers: list[UdpServer] = []

    async def main() -> None:
        sock = ScriptedSocket()
        async with trio.open_nursery() as nursery:
            servers.append(await nursery.start(partial(serve_udp, never, sock, answer=answer)))
            sock.receives.append(PacketBatch.pack([(b"a", A), (b"b", A)]))
            sock.wake()

    with pytest.RaisesGroup(KeyboardInterrupt, allow_unwrapped=True, flatten_subgroups=True):
        trio.run(main)
    seen = serving.check_law(servers[0].statistics())
    assert (seen.datagrams_received, seen.datagrams_discarded) == (2, 2)


@pytest.mark.parametrize("which", ["admit", "on_error"])
def test_control_c_interrupts_the_other_functions_as_well(which: str) -> None:
    def forever(*_: object) -> NoReturn:
        signal.raise_signal(signal.SIGINT)
        for number in itertools.count():
            assert number < 10**8
        raise AssertionError

    options: dict[str, Any] = {which: forever}
    if which == "on_error":
        options["answer"] = serving.fail

    async def main() -> None:
        sock = ScriptedSocket()
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_udp, never, sock, **options))
            sock.receives.append(PacketBatch.pack([(b"A", A)]))
            sock.wake()

    with pytest.RaisesGroup(KeyboardInterrupt, allow_unwrapped=True, flatten_subgroups=True):
        trio.run(main)
