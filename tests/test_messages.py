# What a slip is told. Each message names what is wrong and, where there is one usual cause, that:
# whoever reads it in a traceback has nothing else.
#
# That a slip is refused at all, and before anything is sent, is asserted beside what refuses it.

from __future__ import annotations

import errno
import re
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import (
    PacketBatch,
    PacketTrain,
    QueueFullError,
    SendBatchError,
    SendFailure,
    UdpBatchReceiver,
    UdpBatchSender,
    open_batch_pump,
)

from . import ends

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from snaptun_trio import Address, Packet

PEER = ("192.0.2.1", 9)


async def look_later(packet: bytes, address: Address | None) -> None:
    await trio.lowlevel.checkpoint()


async def look_and_yield(packet: bytes, address: Address | None) -> AsyncIterator[bytes]:
    yield packet


class LooksLater:
    async def __call__(self, packet: bytes, address: Address | None) -> None:
        await look_later(packet, address)


@pytest.mark.parametrize("handler", [look_later, look_and_yield, partial(look_later), 5, None])
async def test_recv_batch_refuses_what_is_no_plain_function_before_it_receives(
    pair: ends.Pair, handler: object
) -> None:
    pair.sender.try_queue_packet(b"kept", pair.target)
    pair.sender.try_flush_best_effort()
    message = r"handler is a plain function, not "
    message += r"an async one: .*look_" if callable(handler) else repr(handler)
    with pytest.raises(TypeError, match=message):
        await pair.receiver.recv_batch(handler)  # type: ignore[arg-type]
    assert ends.payloads(pair.receiver, 1) == [b"kept"]


@pytest.mark.parametrize(
    "handler", [LooksLater(), lambda *both: look_later(*both), lambda *both: look_and_yield(*both)]
)
async def test_recv_batch_refuses_a_handler_that_returns_a_coroutine(
    pair: ends.Pair, handler: Callable[[bytes, Address | None], object]
) -> None:
    for packet in (b"one", b"two"):
        pair.sender.try_queue_packet(packet, pair.target)
    pair.sender.try_flush_best_effort()
    # One that is only dropped would say so as a warning, which is an error in these tests.
    with pytest.raises(
        TypeError,
        match=r"handler is a plain function, not an async one: it returned <.*(look|Look)",
    ):
        await pair.receiver.recv_batch(handler)
    assert pair.receiver.statistics().datagrams_delivered == 1
    assert ends.payloads(pair.receiver, 1) == [b"two"]


async def test_recv_batch_ignores_what_else_a_handler_returns(pair: ends.Pair) -> None:
    pair.sender.try_queue_packet(b"one", pair.target)
    pair.sender.try_flush_best_effort()
    seen: list[bytes] = []

    def look_at(packet: bytes, address: Address | None) -> list[bytes]:
        seen.append(packet)
        return seen

    await pair.receiver.recv_batch(look_at)
    assert seen == [b"one"]


@pytest.mark.parametrize("packet", [b"abc", bytearray(b"abc"), memoryview(b"abc"), "abc"])
def test_pack_of_one_packet_says_that_it_wants_several(packet: object) -> None:
    with pytest.raises(
        TypeError, match=r"packets is an iterable of packets, not one packet: .*(abc|memory)"
    ):
        PacketTrain.pack(packet, PEER)  # type: ignore[arg-type]


def test_pack_names_the_packet_that_is_none() -> None:
    with pytest.raises(TypeError, match=r"a packet is a bytes-like object, not 'two'"):
        PacketTrain.pack([b"one", "two"], PEER)  # type: ignore[list-item]


def test_a_batch_of_wrong_things_names_their_types_as_a_reader_knows_them() -> None:
    with pytest.raises(TypeError) as refusal:
        PacketBatch([b"abc", 5, b"def"])  # type: ignore[list-item]
    assert str(refusal.value) == "a batch is made of PacketTrains, not of bytes and int"
    with pytest.raises(TypeError) as refusal:
        PacketBatch([PacketTrain(b"abc", 3, PEER), None])  # type: ignore[list-item]
    assert str(refusal.value) == "a batch is made of PacketTrains, not of NoneType"


def test_a_batch_of_one_train_says_that_it_wants_several() -> None:
    train = PacketTrain(b"abc", 3, PEER)
    with pytest.raises(
        TypeError, match="trains is an iterable of PacketTrains, not one PacketTrain"
    ):
        PacketBatch(train)  # type: ignore[arg-type]


LONG = "x" * 1000
CUT = re.compile(r"x{20,}\.\.\.")


@pytest.mark.parametrize(
    "slip",
    [
        lambda: PacketTrain(LONG, 1, PEER),  # type: ignore[arg-type]
        lambda: PacketTrain(b"abc", LONG, PEER),  # type: ignore[arg-type]
        lambda: PacketTrain(b"abc", 3, LONG),  # type: ignore[arg-type]
        lambda: PacketTrain(b"abc", 3, (LONG.encode(), 9)),  # type: ignore[arg-type]
        lambda: PacketTrain(b"abc", 3, PEER, local_address=LONG.encode()),  # type: ignore[arg-type]
        lambda: PacketTrain.pack(LONG.encode(), PEER),  # type: ignore[arg-type]
        lambda: PacketTrain.pack([LONG], PEER),  # type: ignore[list-item]
        lambda: UdpBatchReceiver(LONG),  # type: ignore[arg-type]
        lambda: UdpBatchSender(LONG),  # type: ignore[arg-type]
    ],
)
def test_a_long_value_is_cut_with_an_ellipsis(slip: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=CUT) as refusal:
        slip()
    assert len(str(refusal.value)) < 250


def test_a_number_that_python_refuses_to_print_is_still_out_of_range() -> None:
    # Over 4300 digits repr itself raises, and its message is not about the argument.
    with pytest.raises(ValueError, match="segment_size is out of range"):
        PacketTrain(b"abc", 10**5000, PEER)


def test_a_value_whose_repr_raises_does_not_hide_the_slip() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    with pytest.raises(TypeError, match="data is bytes or a read-only memoryview, not <Shy"):
        PacketTrain(Shy(), 3, PEER)  # type: ignore[arg-type]


def queue_for(udp: ends.MakeSocket, host: str, target: Address, packet: Packet = b"x") -> None:
    with UdpBatchSender(udp(host)) as sender:
        try:
            sender.try_queue_packet(packet, target)
        finally:
            assert sender.is_empty


@pytest.mark.parametrize("target", [("::1", 9), ("2001:db8::1", 9, 0, 0), ("::ffff:192.0.2.1", 9)])
def test_an_ipv6_address_for_an_ipv4_socket_is_called_that(
    backend: str, udp: ends.MakeSocket, target: Address
) -> None:
    message = f"{target[0]!r} is an IPv6 address, and the socket is of IPv4"
    with pytest.raises(ValueError, match=re.escape(message)):
        queue_for(udp, "127.0.0.1", target)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("name", ["localhost", "example.org", "192.0.2", "", "1.2.3.4.5"])
def test_a_name_is_called_a_name(backend: str, udp: ends.MakeSocket, host: str, name: str) -> None:
    message = f"{name!r} is not a numeric IP host; names are not resolved on the data path"
    with pytest.raises(ValueError, match=re.escape(message)):
        queue_for(udp, host, (name, 9))


def test_a_scope_in_the_host_is_sent_to_its_place(backend: str, udp: ends.MakeSocket) -> None:
    message = "'fe80::1%lo' has a scope in it: it is the fourth element of an IPv6 address"
    with pytest.raises(ValueError, match=re.escape(message)):
        queue_for(udp, "::1", ("fe80::1%lo", 9))


def test_a_source_address_of_the_other_family_is_called_that(
    backend: str, udp: ends.MakeSocket
) -> None:
    train = PacketTrain(b"x", 1, PEER, local_address="::1")
    with UdpBatchSender(udp()) as sender:
        with pytest.raises(ValueError, match=re.escape("'::1' is an IPv6 address, and ")):
            sender.try_queue_train(train)
        assert sender.is_empty


def test_a_train_that_does_not_fit_is_not_told_that_the_queue_is_full(udp: ends.MakeSocket) -> None:
    with UdpBatchSender(udp(), batch_size=4) as sender:
        sender.try_queue_packet(b"x", PEER)
        with pytest.raises(QueueFullError, match="no room in the queue, which holds 4"):
            sender.try_queue_train(PacketTrain(b"four", 1, PEER))
        assert not sender.is_full


def test_one_failure_is_one_datagram() -> None:
    failure = SendFailure(PacketTrain(b"x", 1, PEER), OSError(errno.EACCES, "Permission denied"))
    message = f"1 datagram to {PEER[0]} port {PEER[1]} could not be sent: Permission denied"
    assert str(SendBatchError([failure])) == message


def test_failures_of_several_peers_are_told_together() -> None:
    error = OSError(errno.EACCES, "Permission denied")
    trains = [PacketTrain(b"x", 1, address) for address in (PEER, None, PEER)]
    report = SendBatchError([SendFailure(train, error) for train in trains])
    assert str(report) == "3 datagrams to 2 peers could not be sent: Permission denied"
    report = SendBatchError([SendFailure(trains[1], error)])
    assert str(report) == "1 datagram to the connected peer could not be sent: Permission denied"


def test_a_train_shows_the_beginning_of_its_data() -> None:
    assert "data=b'abc', segment_size=3" in repr(PacketTrain(b"abc", 3, PEER))
    assert len(repr(PacketTrain(bytes(60_000), 1200, PEER))) < 400
    view = memoryview(b"abc")
    train = PacketTrain(view, 3, PEER)
    view.release()
    with memoryview(train.data):
        pass
    train.data.release()  # type: ignore[union-attr]
    assert "released" in repr(train)


@pytest.mark.parametrize("slip", ["127.0.0.1:53", ["127.0.0.1", 53]])
async def test_a_pump_that_is_opened_on_neither_says_that_an_address_would_do(slip: object) -> None:
    message = f"a socket, an address (host, port) or a descriptor is needed, not {slip!r}"
    with pytest.raises(TypeError, match=re.escape(message)):
        async with open_batch_pump(slip):  # type: ignore[arg-type]
            raise AssertionError("opened")


async def test_an_address_that_cannot_be_bound_is_named(udp: ends.MakeSocket) -> None:
    taken = ends.address_of(udp())
    with pytest.raises(OSError, match=re.escape(str(taken))) as refusal:
        async with open_batch_pump(taken):
            raise AssertionError("opened")
    assert refusal.value.errno == errno.EADDRINUSE
