# PacketBufPool: memory comes back by itself, and never while somebody can see it.

from __future__ import annotations

import ctypes
import gc
import threading
from typing import TYPE_CHECKING, Any

import pytest

from snaptun_trio import PacketBatch, PacketBufPool, PacketTrain, UdpBatchReceiver, UdpBatchSender
from snaptun_trio._kernel import choose_backend

from . import ends

if TYPE_CHECKING:
    import socket


def place_of(view: memoryview) -> int:
    """Where in memory a writable view begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def check_in_use(pool: PacketBufPool, slabs: int) -> None:
    """So many slabs are lent. The portable backend copies what comes in, and lends nothing."""
    assert pool.statistics().slabs_in_use == (
        slabs if choose_backend()[0].backend == "linux" else 0
    )


LONG = b"more than what is copied" * 200  # 4800 bytes


def receive_one(receiver: UdpBatchReceiver, payload: bytes) -> PacketBatch:
    """A received batch of one datagram."""
    sock = receiver.socket
    ends_socket: socket.socket = sock  # type: ignore[assignment]
    ends_socket.sendto(payload, ends.address_of(sock))
    (batch,) = ends.collect_batches(receiver, 1)
    return batch


@pytest.fixture
def pool() -> PacketBufPool:
    return PacketBufPool(capacity=2)


@pytest.fixture
def receiver(backend: str, udp: ends.MakeSocket, pool: PacketBufPool) -> UdpBatchReceiver:
    return UdpBatchReceiver(udp(), pool, batch_size=4)


# -- buffers


def test_a_buffer_has_the_size_asked_for_and_is_writable() -> None:
    view = PacketBufPool(1500).get()
    assert len(view) == 1500
    view[:5] = b"hello"
    assert bytes(view[:5]) == b"hello"


@pytest.mark.usefixtures("linux_backend")  # the portable one lends nothing
def test_a_buffer_comes_back_when_the_last_view_is_gone(pool: PacketBufPool) -> None:
    view = pool.get()
    part = view[10:20]
    words = view.cast("H")
    frozen = part.toreadonly()
    del view
    assert pool.statistics().slabs_in_use == 1
    del part, words
    assert pool.statistics().slabs_in_use == 1
    del frozen
    assert pool.statistics().slabs_in_use == 0
    assert pool.statistics().slabs_idle == 1


def test_a_released_view_gives_its_buffer_back(pool: PacketBufPool) -> None:
    with pool.get() as view:
        view[:1] = b"x"
    assert pool.statistics().slabs_in_use == 0


@pytest.mark.usefixtures("linux_backend")  # the portable one lends nothing
def test_objects_over_the_memory_hold_it_as_well(pool: PacketBufPool) -> None:
    structure = ctypes.c_uint32.from_buffer(pool.get())
    first = pool.get()
    assert place_of(first) != ctypes.addressof(structure)
    del structure
    assert pool.statistics().slabs_in_use == 1


@pytest.mark.usefixtures("linux_backend")  # the portable one lends nothing
def test_the_buffer_used_last_is_used_next(pool: PacketBufPool) -> None:
    first, second = pool.get(), pool.get()
    places = place_of(first), place_of(second)
    del first
    del second
    again, once_more = pool.get(), pool.get()
    assert (place_of(once_more), place_of(again)) == places
    assert pool.statistics().reused == 2


@pytest.mark.usefixtures("linux_backend")  # the portable one lends nothing
def test_beyond_its_capacity_a_pool_keeps_nothing(pool: PacketBufPool) -> None:
    views = [pool.get() for _ in range(5)]
    statistics = pool.statistics()
    assert statistics.slabs_in_use == statistics.most_in_use == statistics.allocated == 5
    assert statistics.allocated_beyond_capacity == 3
    views.clear()
    statistics = pool.statistics()
    assert statistics.slabs_in_use == 0
    assert statistics.slabs_idle == pool.capacity == 2


def test_a_queued_slice_holds_its_buffer_until_it_is_sent(
    pool: PacketBufPool, pair: ends.Pair
) -> None:
    view = pool.get()
    view[:5] = b"hello"
    pair.sender.try_queue_packet(view[:5], pair.target)
    del view
    check_in_use(pool, 1)
    pair.sender.try_flush_best_effort()
    check_in_use(pool, 0)
    assert ends.payloads(pair.receiver, 1) == [b"hello"]


# -- received batches


def test_a_batch_keeps_its_memory_and_gives_it_back(
    pool: PacketBufPool, receiver: UdpBatchReceiver
) -> None:
    batch = receive_one(receiver, LONG)
    check_in_use(pool, 1)
    assert next(iter(batch))[0] == LONG
    del batch
    check_in_use(pool, 0)


def test_the_same_batch_for_another_peer_keeps_the_memory(
    pool: PacketBufPool, receiver: UdpBatchReceiver
) -> None:
    batch = receive_one(receiver, LONG).to(("127.0.0.1", 9))
    check_in_use(pool, 1)
    assert batch.trains[0].data == LONG
    del batch
    check_in_use(pool, 0)


def content(kept: memoryview | PacketTrain) -> bytes:
    return bytes(kept.data if isinstance(kept, PacketTrain) else kept)


@pytest.mark.parametrize("how", ["data", "slice", "cast", "train"])
def test_no_view_ever_sees_a_later_datagram(
    pool: PacketBufPool, receiver: UdpBatchReceiver, how: str
) -> None:
    train = receive_one(receiver, b"first of all" + LONG).trains[0]
    data = memoryview(train.data)
    assert data.readonly
    kept: list[Any] = [
        {"data": data, "slice": data[6:], "cast": data.cast("I"), "train": train.to(None)}[how]
    ]
    before = content(kept[0])
    del train, data
    for number in range(4):
        receive_one(receiver, b"later %d, later" % number + LONG)
    assert content(kept[0]) == before
    check_in_use(pool, 1)
    kept.clear()
    check_in_use(pool, 0)


def test_packets_hold_no_memory_of_the_pool(
    pool: PacketBufPool, receiver: UdpBatchReceiver
) -> None:
    packets = list(receive_one(receiver, LONG))
    packets_of_a_train = list(receive_one(receiver, LONG).trains[0])
    check_in_use(pool, 0)
    assert [packets[0][0], *packets_of_a_train] == [LONG, LONG]


def test_an_iterator_keeps_the_memory_until_it_is_done(
    pool: PacketBufPool, receiver: UdpBatchReceiver
) -> None:
    packets = iter(receive_one(receiver, LONG))
    receive_one(receiver, LONG.upper())
    assert next(packets)[0] == LONG
    del packets
    check_in_use(pool, 0)


def test_idle_receivers_cost_no_buffers(
    backend: str, udp: ends.MakeSocket, pool: PacketBufPool
) -> None:
    receivers = [UdpBatchReceiver(udp(), pool) for _ in range(50)]
    for receiver in receivers:
        receive_one(receiver, b"x")
    statistics = pool.statistics()
    assert statistics.most_in_use == (1 if backend == "linux" else 0)
    assert statistics.allocated == 1
    assert statistics.reused >= 49


def slots_of(batch: PacketBatch) -> int:
    """How many messages fit into the memory that a batch holds."""
    data = batch.trains[0].data
    assert isinstance(data, memoryview)
    # From one slot to the next it is a little more than a slot, see `_pool.c`.
    return memoryview(data.obj).nbytes // (65_536 + 1088)


def test_beyond_its_capacity_a_slab_is_as_long_as_its_call(
    linux_backend: None, udp: ends.MakeSocket, pool: PacketBufPool
) -> None:
    """It serves once, and to build it long takes ten times as long as the call."""
    receiver = UdpBatchReceiver(udp(), pool, batch_size=256)
    held = [receive_one(receiver, LONG) for _ in range(5)]
    assert [slots_of(batch) for batch in held[:2]] == [256, 256]
    # The first call is offered 16 messages, the next as many as make a megabyte of this size.
    assert max(slots_of(batch) for batch in held[2:]) <= (1 << 20) // len(LONG)
    assert all(batch.trains[0].data == LONG for batch in held)
    held.clear()
    statistics = pool.statistics()
    assert (statistics.slabs_in_use, statistics.slabs_idle) == (0, 2)
    kept = [receive_one(receiver, LONG) for _ in range(2)]
    assert pool.statistics().allocated == statistics.allocated
    assert {slots_of(batch) for batch in kept} == {256}


def test_an_empty_receive_leaves_nothing_behind(
    pool: PacketBufPool, receiver: UdpBatchReceiver
) -> None:
    for _ in range(3):
        assert ends.nothing_waits(receiver)
    check_in_use(pool, 0)
    assert pool.statistics().allocated == 1


# -- the garbage collector


class Resurrecting:
    """Part of a cycle; when the collector finds it, it brings a view back to life."""

    saved: memoryview | None = None

    def __init__(self, held: memoryview | PacketBatch) -> None:
        self.myself = self
        self.held = held

    def __del__(self) -> None:
        held = self.held
        data = held.trains[0].data if isinstance(held, PacketBatch) else held
        Resurrecting.saved = memoryview(data)


@pytest.fixture
def resurrected() -> type[Resurrecting]:
    Resurrecting.saved = None
    return Resurrecting


def test_memory_in_a_cycle_comes_back_when_it_is_collected(pool: PacketBufPool) -> None:
    cycle: list[object] = [pool.get()]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert pool.statistics().slabs_in_use == 0


@pytest.mark.usefixtures("linux_backend")  # the portable one lends nothing
def test_a_view_that_a_finalizer_brings_back_to_life_still_holds_its_memory(
    pool: PacketBufPool, resurrected: type[Resurrecting]
) -> None:
    view = pool.get()
    view[:4] = b"mine"
    resurrected(view)
    del view
    gc.collect()
    assert resurrected.saved is not None
    assert pool.statistics().slabs_in_use == 1
    for other in [pool.get(), pool.get()]:
        other[:4] = b"\xff" * 4
    assert bytes(resurrected.saved[:4]) == b"mine"
    del other
    resurrected.saved = None
    gc.collect()
    assert pool.statistics().slabs_in_use == 0


def test_a_batch_that_a_finalizer_looks_into_still_holds_its_memory(
    pool: PacketBufPool, receiver: UdpBatchReceiver, resurrected: type[Resurrecting]
) -> None:
    resurrected(receive_one(receiver, LONG))
    gc.collect()
    assert resurrected.saved is not None
    for _ in range(4):
        receive_one(receiver, b"\xff" * 5000)
    assert bytes(resurrected.saved) == LONG
    resurrected.saved = None
    gc.collect()
    check_in_use(pool, 0)


def test_views_may_be_dropped_in_other_threads() -> None:
    pool = PacketBufPool(100, capacity=4)
    rounds, workers = 300, 4

    def work(number: int) -> None:
        earlier, earlier_mark = memoryview(b""), b""
        for turn in range(rounds):
            mark = bytes([2 * number + turn % 2])
            view = pool.get()
            view[:] = mark * 100
            part = view[50:]
            del view
            assert bytes(part) == mark * 50
            assert bytes(earlier) == earlier_mark * len(earlier)
            earlier, earlier_mark = part, mark

    failures: list[object] = []
    before, threading.excepthook = threading.excepthook, failures.append
    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = before
    assert not failures
    statistics = pool.statistics()
    assert statistics.slabs_in_use == 0
    assert statistics.reused + statistics.allocated == rounds * workers
    # Each worker still sees its last part when it asks for the next buffer.
    assert statistics.most_in_use <= 2 * workers


# -- what is refused


@pytest.mark.parametrize("size", [0, -1, 65_537])
def test_a_buffer_size_out_of_range_is_a_value_error(size: int) -> None:
    with pytest.raises(ValueError, match="buffer_size"):
        PacketBufPool(size)


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_out_of_range_is_a_value_error(capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity"):
        PacketBufPool(capacity=capacity)


def test_a_size_that_is_no_int_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="buffer_size"):
        PacketBufPool(1500.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="capacity"):
        PacketBufPool(capacity="2")  # type: ignore[arg-type]


def test_sizes_and_capacity_can_be_asked_for() -> None:
    pool = PacketBufPool(2000, capacity=7)
    assert (pool.buffer_size, pool.capacity) == (2000, 7)


def test_a_sender_forwards_from_the_pools_memory_and_lets_go_of_it(
    pool: PacketBufPool, receiver: UdpBatchReceiver, pair: ends.Pair
) -> None:
    assert isinstance(pair.sender, UdpBatchSender)
    pair.sender.send_nowait(receive_one(receiver, LONG).to(pair.target))
    assert ends.payloads(pair.receiver, 1) == [LONG]
    assert pool.statistics().slabs_in_use == 0


def test_a_batch_that_went_message_by_message_is_let_go_of_as_well(
    pool: PacketBufPool, udp: ends.MakeSocket, pair: ends.Pair
) -> None:
    """With ancillary data each train is a message of its own, made from the train itself."""
    incoming = udp()
    receiver = UdpBatchReceiver(incoming, pool, batch_size=4, packet_info=True)
    batch = receive_one(receiver, bytes(60_000))
    assert batch.trains[0].local_address == "127.0.0.1"
    pair.sender.send_nowait(PacketBatch([batch.trains[0], batch.trains[0].to(pair.target)]))
    del batch
    assert pool.statistics().slabs_in_use == 0
