# A batch of little holds little: what a call brought in some bytes keeps no slab from the pool.
#
# That large batches do keep theirs, and for how long, is in test_pool.

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import PacketBatch, PacketBufPool, PacketTrain, UdpBatchReceiver

from . import ends
from .test_pool import check_in_use, content, receive_one

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    import socket


@pytest.fixture
def pool() -> PacketBufPool:
    return PacketBufPool(capacity=2)


@pytest.fixture
def receiver(backend: str, udp: ends.MakeSocket, pool: PacketBufPool) -> UdpBatchReceiver:
    return UdpBatchReceiver(udp(), pool, batch_size=4)


@pytest.mark.parametrize("how", ["batch", "train", "view", "iterator"])
def test_a_small_batch_keeps_no_slab(
    pool: PacketBufPool, receiver: UdpBatchReceiver, how: str
) -> None:
    """Somebody who keeps a datagram of 60 bytes keeps 60 bytes."""
    batch = receive_one(receiver, b"small" * 12)
    train = batch.trains[0]
    kept = {"batch": batch, "train": train, "view": memoryview(train.data), "iterator": iter(batch)}
    held = kept.pop(how)
    kept.clear()
    del batch, train
    assert pool.statistics().slabs_in_use == 0
    receive_one(receiver, b"other" * 12)
    match held:
        case PacketBatch():
            assert [packet for packet, _ in held] == [b"small" * 12]
        case PacketTrain() | memoryview():
            assert content(held) == b"small" * 12
        case _:
            assert [packet for packet, _ in held] == [b"small" * 12]  # type: ignore[attr-defined]


@pytest.mark.parametrize("nbytes", [4096, 4097])
@pytest.mark.parametrize("messages", [1, 3])
def test_what_a_call_brought_decides_whether_its_slab_is_kept(
    pool: PacketBufPool, receiver: UdpBatchReceiver, nbytes: int, messages: int
) -> None:
    sock: socket.socket = receiver.socket  # type: ignore[assignment]
    for number in range(messages):
        sock.sendto(bytes(nbytes // messages + (number < nbytes % messages)), sock.getsockname())
    (batch,) = ends.collect_batches(receiver, messages)
    assert batch.nbytes == nbytes
    check_in_use(pool, nbytes > 4096)


@pytest.mark.skipif(sys.platform == "win32", reason="it raises the limit of descriptors")
async def test_f53_a_thousand_quiet_sockets_read_by_the_documented_loop_keep_no_slab(
    backend: str, nursery: trio.Nursery
) -> None:
    """The loop's variable holds the last batch for as long as it waits for the next."""
    pool = PacketBufPool()
    seen: list[bytes] = []

    async def read(receiver: UdpBatchReceiver) -> None:
        async for batch in receiver:
            seen.extend([packet for packet, _ in batch])

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(1000, hard - 200)
    with contextlib.ExitStack() as stack, ends.bound_socket() as out:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        # A small receive buffer each: a thousand large ones are not everybody's.
        socks = [stack.enter_context(ends.bound_socket(receive_buffer=4096)) for _ in range(count)]
        for sock in socks:
            nursery.start_soon(read, UdpBatchReceiver(sock, pool))
        await trio.testing.wait_all_tasks_blocked()
        for number, sock in enumerate(socks):
            out.sendto(b"%d" % number, sock.getsockname())
            if number % 100 == 99 or number == count - 1:
                with trio.fail_after(ends.PATIENCE):
                    while len(seen) <= number:
                        await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(map(int, seen)) == list(range(count))
        statistics = pool.statistics()
        assert statistics.slabs_in_use == 0
        assert statistics.allocated == 1
        assert statistics.most_in_use == (1 if backend == "linux" else 0)
        nursery.cancel_scope.cancel()
