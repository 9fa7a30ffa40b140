# Arguments that make no sense: F39 of the fault matrix.
#
# Public constructors and methods with values from hypothesis: any sizes, addresses, objects. Each
# call either works or raises an exception of a documented type before any system call; and whatever
# was accepted never sticks in a queue.

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import trio
from hypothesis import strategies as st

from snaptun_trio import (
    MAX_BATCH_SIZE,
    BatchPump,
    PacketBatch,
    PacketBufPool,
    PacketTrain,
    QueuePacketError,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
    open_batch_pump,
)

from . import laws, sockets

if TYPE_CHECKING:
    from collections.abc import Callable

DOCUMENTED = (TypeError, ValueError, QueuePacketError)
IN_A_NORMAL_RUN = 400

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 70_000),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=40),
    st.just(object()),
    st.lists(st.integers(), max_size=3),
    st.tuples(),
    st.just(10**30),
)
hosts = st.one_of(
    st.sampled_from(
        [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "127.1",
            "localhost",
            "",
            "127.0.0.1\0",
            "\ud800",
            "0x7f000001",
            "127.0.0.1 ",
            "fe80::1%lo",
            "::1%1",
            "[::1]",
            "256.0.0.1",
        ]
    ),
    st.text(max_size=50),
    anything,
)
numbers = st.one_of(
    st.integers(-1, 65_536), st.integers(), st.sampled_from([1.0, True, 64.0]), anything
)
addresses = st.one_of(
    st.tuples(hosts, numbers),
    st.tuples(hosts, numbers, numbers, numbers),
    st.tuples(hosts),
    st.tuples(hosts, numbers, numbers),
    anything,
)
buffers = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=300).map(bytearray),
    st.binary(max_size=300).map(lambda data: memoryview(data)),
    st.binary(max_size=300).map(lambda data: memoryview(data)[::2]),
    st.binary(min_size=8, max_size=8).map(lambda data: memoryview(data).cast("Q")),
    st.sampled_from([65_507, 65_508, 65_527, 65_528, 70_000]).map(bytes),
    anything,
)


def often_left_out(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """None half of the time, so that other arguments get to where they matter."""
    return st.booleans().flatmap(lambda left_out: st.none() if left_out else strategy)


def many(function: Any) -> Any:  # noqa: ANN401
    """A property with the number of examples of a normal run."""
    return hypothesis.settings(max_examples=IN_A_NORMAL_RUN)(function)


def only_documented() -> contextlib.suppress:
    """Nothing but a documented exception may come out of this block."""
    return contextlib.suppress(*DOCUMENTED)


def check_send(sender: UdpBatchSender, send: Callable[[], None], datagrams: int) -> None:
    """Refused at the door, with no trace; or sent, or reported. Then nothing waits."""
    before = sender.statistics()
    failed = 0
    try:
        send()
    except DOCUMENTED:
        after = sender.statistics()
        assert after == before
        return
    except SendBatchError as error:
        failed = sum(len(failure.train) for failure in error.failures)
    after = sender.statistics()
    assert after.datagrams_failed - before.datagrams_failed == failed
    assert after.datagrams_sent - before.datagrams_sent == datagrams - failed
    assert sender.is_empty
    laws.sender_adds_up(after)


@many
@hypothesis.given(
    data=st.one_of(st.binary(min_size=2, max_size=300), buffers),
    segment_size=st.one_of(st.integers(1, 300), numbers),
    address=st.booleans().flatmap(
        lambda valid: st.sampled_from([("127.0.0.1", 9), ("::1", 9)]) if valid else addresses
    ),
    ecn=st.one_of(st.sampled_from([0, 1, 2, 3, 4, -1, 1.0, 3.0, True]), anything),
    local_address=often_left_out(hosts),
    interface_index=often_left_out(numbers),
    timestamp_ns=often_left_out(anything),
)
def test_f39_trains_are_refused_or_are_sound(**arguments: Any) -> None:  # noqa: ANN401
    """What was accepted can be counted, cut and sent without any other exception."""
    data, size = arguments.pop("data"), arguments.pop("segment_size")
    address = arguments.pop("address")
    try:
        train = PacketTrain(data, size, address, **arguments)
    except DOCUMENTED:
        return
    assert sum(map(len, train)) == train.nbytes
    assert len(list(train)) == len(train)
    for family in ("127.0.0.1", "::1"):
        with sockets.udp(family) as sock:
            check_never_sticks(sock, train)


@pytest.mark.parametrize(
    "odd",
    [
        {"ecn": 1.0},
        {"ecn": True},
        {"interface_index": True},
        {"interface_index": 1.0},
        {"segment_size": 2.0},
        {"segment_size": True},
        {"timestamp_ns": 1.5},
        {"address": ("127.0.0.1", 9.0)},
        {"address": ("127.0.0.1", True)},
        {"local_address": "127.0.0.1\0"},
        {"local_address": "::1"},
        {"local_address": "localhost"},
    ],
)
@pytest.mark.usefixtures("backend")
def test_f39_values_that_pass_for_good_ones_never_stick_in_a_queue(odd: dict[str, Any]) -> None:
    """1.0 == 1 == True, and a host may look like one: refused at the door, or sent."""
    arguments: dict[str, Any] = {"segment_size": 2, "address": ("127.0.0.1", 9)}
    with sockets.udp() as sock:
        check_never_sticks(sock, PacketTrain(b"abcdef", **arguments))  # Fills every cache.
        with only_documented():
            train = PacketTrain(b"abcdef", **(arguments | odd))
            check_never_sticks(sock, train)


def check_never_sticks(sock: socket.socket, train: PacketTrain) -> None:
    """By every way in; and then the sender still sends."""
    for way in ("try_queue_train", "send_nowait"):
        sender = UdpBatchSender(sock)

        def send(sender: UdpBatchSender = sender, way: str = way) -> None:
            if way == "send_nowait":
                sender.send_nowait(PacketBatch([train]))
            else:
                sender.try_queue_train(train)
                sender.try_flush_best_effort()

        check_send(sender, send, len(train))
        sender.try_queue_packet(b"x", sock.getsockname())
        sender.try_flush_best_effort()
        assert sender.is_empty


@many
@hypothesis.given(packet=buffers, target=addresses)
def test_f39_packets_are_refused_at_the_door_or_leave_the_queue(**arguments: Any) -> None:  # noqa: ANN401
    with sockets.udp() as sock:
        sender = UdpBatchSender(sock)

        def send() -> None:
            sender.try_queue_packet(**arguments)
            sender.try_flush_best_effort()

        check_send(sender, send, 1)


@many
@hypothesis.given(packets_=st.one_of(st.lists(buffers, max_size=5), anything), address=addresses)
def test_f39_pack_keeps_every_byte_or_refuses(packets_: Any, address: Any) -> None:  # noqa: ANN401
    with only_documented():
        trains = PacketTrain.pack(packets_, address)
        assert [p for train in trains for p in train] == [bytes(p) for p in packets_]


@many
@hypothesis.given(value=st.one_of(anything, st.lists(anything, max_size=3)))
def test_f39_batches_are_made_of_trains_only(value: Any) -> None:  # noqa: ANN401
    with only_documented():
        batch = PacketBatch(value)
        assert list(batch) == []


@many
@hypothesis.given(target=addresses)
def test_f39_a_batch_for_any_target_is_refused_or_sent_or_reported(target: Any) -> None:  # noqa: ANN401
    batch = PacketBatch([PacketTrain(b"abcdef", 2, None), PacketTrain(b"", 0, None)])
    with sockets.udp() as sock:
        sender = UdpBatchSender(sock)
        check_send(sender, lambda: sender.send_nowait(batch.to(target)), len(batch))


@many
@hypothesis.given(buffer_size=numbers, capacity=numbers)
def test_f39_pools_are_refused_or_lend(buffer_size: Any, capacity: Any) -> None:  # noqa: ANN401
    with only_documented():
        pool = PacketBufPool(buffer_size, capacity=capacity)
        assert len(pool.get()) == buffer_size
        assert 1 <= buffer_size <= 65_536


@many
@hypothesis.given(
    batch_size=numbers, pool=st.one_of(anything, st.builds(PacketBufPool)), gro=anything
)
def test_f39_receivers_are_refused_or_receive(batch_size: Any, pool: Any, gro: Any) -> None:  # noqa: ANN401
    with sockets.udp() as sock:
        with only_documented():
            receiver = UdpBatchReceiver(sock, pool, batch_size=batch_size, gro=gro)
            assert 1 <= batch_size <= MAX_BATCH_SIZE
            sock.sendto(b"x", sock.getsockname())
            assert [packet for packet, _ in receiver.receive_nowait()] == [b"x"]


@many
@hypothesis.given(batch_size=numbers, max_packet_size=numbers, gso=anything, max_segments=numbers)
def test_f39_senders_are_refused_or_send(
    batch_size: Any,  # noqa: ANN401
    max_packet_size: Any,  # noqa: ANN401
    gso: Any,  # noqa: ANN401
    max_segments: Any,  # noqa: ANN401
) -> None:
    with sockets.udp() as sock:
        with only_documented():
            sender = UdpBatchSender(
                sock,
                batch_size=batch_size,
                max_packet_size=max_packet_size,
                gso=gso,
                max_segments=max_segments,
            )
            assert 1 <= batch_size <= MAX_BATCH_SIZE
            sender.try_queue_packet(b"x", sock.getsockname())
            sender.try_flush_best_effort()
            assert list(sockets.drain(sock)) == [b"x"]


@many
@hypothesis.given(thing=anything)
def test_f39_what_is_no_socket_is_refused(thing: Any) -> None:  # noqa: ANN401
    for make in (UdpBatchReceiver, UdpBatchSender):
        with pytest.raises(TypeError):
            make(thing)
    with pytest.raises(TypeError):
        BatchPump(thing, thing)


@pytest.mark.parametrize("kind", ["blocking", "tcp", "unix", "closed", "unbound"])
def test_f39_sockets_of_the_wrong_kind_are_refused_before_they_are_touched(kind: str) -> None:
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    type_ = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, type_) as sock:
        sock.setblocking(kind == "blocking")
        if kind == "closed":
            sock.close()
        elif kind in ("blocking", "tcp"):
            sock.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match="socket"):
            UdpBatchSender(sock)
        if kind != "unbound":
            with pytest.raises(ValueError, match="socket"):
                UdpBatchReceiver(sock)


@hypothesis.settings(max_examples=150)
@hypothesis.given(what=addresses, capacity=numbers)
def test_f39_a_pump_for_any_address_opens_or_says_why(what: Any, capacity: Any) -> None:  # noqa: ANN401
    async def open_and_close() -> None:
        with contextlib.suppress(TypeError, ValueError, OSError):
            async with open_batch_pump(what, capacity=capacity):
                pass

    trio.run(open_and_close)


@many
@hypothesis.given(value=anything)
def test_f39_what_is_no_batch_is_refused(value: Any) -> None:  # noqa: ANN401
    with sockets.udp() as sock:
        sender = UdpBatchSender(sock)
        before = sender.statistics()
        with pytest.raises(TypeError):
            sender.send_nowait(value)
        with pytest.raises(TypeError):
            sender.try_queue_train(value)
        assert sender.statistics() == before
