# Memory that is lent, shared and reused: F38 of the fault matrix, and the pool's one promise.
#
# No view may ever see the bytes of a later datagram, however it was made, for however long it is
# kept, in whatever order it is dropped, by whom: a reference, the garbage collector, a finalizer
# that brings it back, another thread. And no buffer of a caller may be read after it was given up.

from __future__ import annotations

import contextlib
import gc
import os
import random
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from snaptun_trio import (
    MAX_BATCH_SIZE,
    PacketBatch,
    PacketBufPool,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
)

from .. import system_calls
from . import harness, laws, ledger, sockets

if TYPE_CHECKING:
    from collections.abc import Callable

# -- the pool never lends what somebody can see


class Holder:
    """Something that keeps a view and knows what must be in it."""

    def __init__(self, kept: object, look: Callable[[], bytes], expected: bytes) -> None:
        self.kept: object = kept
        self.look = look
        self.expected = expected


class Pool(RuleBasedStateMachine):
    """Receives into a small pool, keeps views of every kind, and looks at all of them again."""

    views = Bundle("views")

    def __init__(self) -> None:
        super().__init__()
        self.out, self.into = sockets.udp(), sockets.udp()
        self.pool = PacketBufPool(capacity=2)
        self.receivers = [
            UdpBatchReceiver(self.into, self.pool, batch_size=size) for size in (1, 4, 64)
        ]
        self.sender = UdpBatchSender(self.out)
        self.number = 0
        self.alive: weakref.WeakSet[Holder] = weakref.WeakSet()
        self.resurrected: list[Holder] = []
        self.queued = UdpBatchSender(self.out, batch_size=1024)

    def teardown(self) -> None:
        self.out.close()
        self.into.close()

    def payload(self, size: int) -> bytes:
        self.number += 1
        return self.number.to_bytes(8, "big") * (size // 8 + 1)

    @rule(
        target=views,
        which=st.integers(0, 2),
        segments=st.integers(1, 40),
        size=st.integers(1, 1200),
        singles=st.booleans(),
        form=st.sampled_from(
            ["batch", "train", "data", "slice", "cast", "nested", "readonly", "to", "iterator"]
        ),
    )
    def receive(self, which: int, segments: int, size: int, singles: bool, form: str) -> Holder:
        data = self.payload(segments * size)[: segments * size]
        packets = [data[at : at + size] for at in range(0, len(data), size)]
        for part in [packets[:3]] if singles else [packets]:
            if singles:
                for packet in part:
                    self.out.sendto(packet, self.into.getsockname())
            else:
                self.sender.send_nowait(harness.batch_of(part, self.into.getsockname()))
        receiver = self.receivers[which]
        batches = []
        with contextlib.suppress(trio.WouldBlock):
            while True:
                batches.append(receiver.receive_nowait())
        batch = batches[0]
        holder = self.hold(batch, form)
        self.alive.add(holder)
        return holder

    def hold(self, batch: PacketBatch, form: str) -> Holder:
        train = batch.trains[0]
        expected = bytes(train.data)
        view = memoryview(train.data)
        match form:
            case "batch":
                whole = b"".join(packet for packet, _ in batch)
                return Holder(batch, lambda: b"".join(p for p, _ in batch), whole)
            case "train":
                return Holder(train, lambda: bytes(train.data), expected)
            case "slice":
                part = view[len(view) // 2 :]
                return Holder(part, lambda: bytes(part), expected[len(expected) // 2 :])
            case "cast":
                cast = view.cast("c")
                return Holder(cast, cast.tobytes, expected)
            case "nested":
                inner = memoryview(memoryview(view)[:1])
                return Holder(inner, lambda: bytes(inner), expected[:1])
            case "readonly":
                part = view.toreadonly()
                return Holder(part, lambda: bytes(part), expected)
            case "to":
                other = batch.to(("127.0.0.1", 9))
                whole = b"".join(packet for packet, _ in other)
                return Holder(other, lambda: b"".join(p for p, _ in other), whole)
            case "iterator":
                whole = b"".join(packet for packet, _ in batch)
                iterator = iter(batch)
                first = next(iterator)[0]
                rest: list[bytes] = []

                def look() -> bytes:
                    if not rest:
                        rest.extend(packet for packet, _ in iterator)
                    return b"".join([first, *rest])

                return Holder(iterator, look, whole)
        return Holder(view, lambda: bytes(view), expected)

    @rule(holder=consumes(views))
    def drop(self, holder: Holder) -> None:
        holder.kept = holder.look = None  # type: ignore[assignment]
        self.alive.discard(holder)

    @rule(holder=consumes(views))
    def drop_in_a_cycle(self, holder: Holder) -> None:
        """The collector finds it, some time."""
        holder.kept = [holder.kept, holder]
        self.alive.discard(holder)

    @rule(holder=consumes(views))
    def drop_in_a_cycle_and_come_back(self, holder: Holder) -> None:
        """A finalizer in the cycle brings everything in it back to life."""
        self.alive.discard(holder)
        Lazarus(holder, self.resurrected)

    @rule(holder=consumes(views))
    def drop_in_a_thread(self, holder: Holder) -> None:
        self.alive.discard(holder)
        box = [holder]
        del holder
        thread = threading.Thread(target=box.clear)
        thread.start()
        thread.join()

    @rule(holder=views)
    def queue_it(self, holder: Holder) -> None:
        """A sender's queue holds what it was given."""
        if isinstance(holder.kept, memoryview) and not self.queued.is_full:
            self.queued.try_queue_packet(holder.kept, self.into.getsockname())

    @rule()
    def collect(self) -> None:
        gc.collect()

    @invariant()
    def everybody_sees_what_they_saw(self) -> None:
        for holder in [*self.alive, *self.resurrected]:
            assert holder.look() == holder.expected


class Lazarus:
    """In a cycle with a holder; when the collector finds the two, it saves the holder."""

    def __init__(self, holder: Holder, saved: list[Holder]) -> None:
        self.holder = holder
        self.saved = saved
        self.me = self

    def __del__(self) -> None:
        self.saved.append(self.holder)


@pytest.mark.usefixtures("backend")
def test_no_view_ever_sees_a_later_datagram() -> None:
    run_state_machine_as_test(Pool, settings=settings(max_examples=15, stateful_step_count=30))


@pytest.mark.soak
@pytest.mark.usefixtures("backend")
def test_soak_no_view_ever_sees_a_later_datagram(rounds: int) -> None:
    run_state_machine_as_test(
        Pool, settings=settings(max_examples=max(1, rounds // 4000), stateful_step_count=100)
    )


def test_a_view_in_a_dead_cycle_keeps_its_bytes_while_finalizers_can_see_them() -> None:
    """The collector runs the finalizers of a cycle; one of them receives while another still looks
    at the old bytes. They must be the old bytes."""
    seen: list[bytes] = []
    with sockets.udp() as out, sockets.udp() as into:
        pool = PacketBufPool(capacity=1)
        receiver = UdpBatchReceiver(into, pool)

        class Looker:
            def __init__(self, view: memoryview) -> None:
                self.view = view
                self.other: object = None

            def __del__(self) -> None:
                out.sendto(b"new bytes" * 1000, into.getsockname())
                fresh = receiver.receive_nowait()
                seen.append(bytes(self.view))
                del fresh

        for _ in range(20):
            out.sendto(b"old bytes" * 1000, into.getsockname())
            view = memoryview(receiver.receive_nowait().trains[0].data)
            one, two = Looker(view), Looker(view)
            one.other, two.other = two, one
            del one, two, view
            gc.collect()
    assert seen == [b"old bytes" * 1000] * 40


@pytest.mark.usefixtures("linux_backend")  # the portable one lends nothing
def test_the_pool_lends_no_memory_twice_to_receivers_and_packets() -> None:
    """Buffers to write into and slabs to receive into come from one pool and never overlap."""
    rng = random.Random(1)
    with sockets.udp() as out, sockets.udp() as into:
        pool = PacketBufPool(capacity=3)
        receiver = UdpBatchReceiver(into, pool, batch_size=1)
        held: list[tuple[memoryview, bytes]] = []
        for number in range(2000):
            pattern = number.to_bytes(4, "big") * 2000
            if rng.random() < 0.5:
                buffer = pool.get()[:8000]
                buffer[:] = pattern
                held.append((buffer, pattern))
            else:
                out.sendto(pattern, into.getsockname())
                held.append((memoryview(receiver.receive_nowait().trains[0].data), pattern))
            while len(held) > rng.randrange(1, 10):
                held.pop(rng.randrange(len(held)))
            assert all(bytes(view) == expected for view, expected in held)
        assert pool.statistics().slabs_in_use == len(held)
        held.clear()
        del buffer
        assert pool.statistics().slabs_in_use == 0


# -- what a caller gives us


@pytest.mark.usefixtures("backend")
def test_f38_a_bytearray_cannot_be_resized_while_it_is_queued() -> None:
    """Python itself refuses: the queue holds a view. After the flush it may."""
    with sockets.udp() as out, sockets.udp() as into:
        sender = UdpBatchSender(out)
        packet = bytearray(b"x" * 100)
        sender.try_queue_packet(packet, into.getsockname())
        with pytest.raises(BufferError):
            packet.extend(b"y" * 10_000)
        sender.try_flush_best_effort()
        packet.extend(b"y" * 10_000)
        assert list(sockets.drain(into)) == [b"x" * 100]


@pytest.mark.usefixtures("backend")
async def test_f38_buffers_that_are_collected_while_they_are_queued_are_sent_all_the_same() -> None:
    """Only the queue still holds them; memory is churned and collected before the flush."""
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        for flow in range(30):
            while not sender.is_full:
                data = book.write(flow, 16 + len(gc.get_count()) * 100)
                kind = (bytes, bytearray, lambda data: memoryview(bytearray(data)))[flow % 3]
                sender.try_queue_packet(kind(data), into.getsockname())
                del data
            gc.collect()
            rubbish = [os.urandom(1000) for _ in range(100)]
            del rubbish
            await sender.flush()
            await harness.collect(receiver, book)
        laws.l2_clean(book.account())


@pytest.mark.parametrize("batch_size", [1, 2, 63, 64, 65, 255, 1000, MAX_BATCH_SIZE])
@pytest.mark.usefixtures("backend")
async def test_f38_any_batch_size_and_any_buffer_size(batch_size: int, seed: int) -> None:
    """The structures that the kernel writes into, at sizes that nobody thinks of."""
    rng = random.Random(seed)
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender = UdpBatchSender(out, batch_size=batch_size)
        for buffer_size in (16, 17, 63, 1000, 1401, 65_535):
            pool = PacketBufPool(buffer_size)
            receiver = UdpBatchReceiver(into, pool, batch_size=batch_size, gro=False)
            sizes = [rng.randrange(16, buffer_size + 1) % 1400 or 16 for _ in range(300)]
            for size in sizes:
                if sender.is_full:
                    await sender.flush()
                size = max(16, min(size, buffer_size))
                sender.try_queue_packet(book.write(size=size), into.getsockname())
            await sender.flush()
            await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())


async def test_a_batch_of_a_hundred_thousand_single_packets_is_sent_in_pieces() -> None:
    """Far more messages than a call takes."""
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out, gso=False), UdpBatchReceiver(into)
        target = into.getsockname()
        trains = [PacketTrain(book.write(), 16, target) for _ in range(20_000)]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(harness.collect, receiver, book)
            await sender.send(PacketBatch(trains))
        account = book.account()
        dropped = receiver.statistics().buffers_dropped_by_kernel
        laws.l5_cancelled(account, dropped=dropped or 0)
        laws.sender_adds_up(sender.statistics(), account)


def run_clean(script: str, **environment: str) -> None:
    """Run a script in an interpreter of its own, that may print nothing and must end well."""
    if environment.get("SNAPTUN_TRIO_BACKEND") == "linux":
        system_calls.require_extension()
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [*filter(None, sys.path), root]  # The installed package comes first.
    done = subprocess.run(
        [sys.executable, "-P", "-X", "dev", "-W", "error", "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@pytest.mark.parametrize("backend_name", ["linux", "portable"])
def test_f38_the_whole_exchange_runs_clean_under_the_debugging_allocator(backend_name: str) -> None:
    """PYTHONMALLOC=debug writes guards around every block and fills what is freed; -X dev turns on
    faulthandler and every warning: an overrun or a use after free ends the process."""
    run_clean(
        "import trio; from tests.faults import test_interruptions as t; "
        "trio.run(t.exchange, True, 30); trio.run(t.exchange, False, 30)",
        PYTHONMALLOC="debug",
        SNAPTUN_TRIO_BACKEND=backend_name,
    )


@pytest.mark.parametrize("backend_name", ["linux", "portable"])
def test_an_interpreter_that_ends_while_everything_is_held_ends_quietly(backend_name: str) -> None:
    """Batches, views, cycles and queued packets at exit: no error, no warning, no crash."""
    run_clean(
        """
import builtins
from snaptun_trio import *
from tests.faults import sockets

sock = sockets.udp()
pool = PacketBufPool(capacity=2)
receiver, sender = UdpBatchReceiver(sock, pool), UdpBatchSender(sock)
held = []
for number in range(10):
    sender.try_queue_packet(b"x" * number, sock.getsockname())
    sender.try_flush_best_effort()
    batch = receiver.receive_nowait()
    view = memoryview(batch.trains[0].data)
    cycle = [batch, view]
    cycle.append(cycle)
    held += [batch, view, cycle, pool.get()]
    sender.try_queue_packet(view, sock.getsockname())
builtins.kept_longer_than_any_module = held
sock.close()
""",
        SNAPTUN_TRIO_BACKEND=backend_name,
    )
