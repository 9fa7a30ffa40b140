# Properties that hold for any traffic and any kernel.
#
# Coalescing and splitting are inverse and keep every limit of the kernel's. And whatever errno a
# kernel answers at whatever message, the sender accounts for each datagram exactly once: delivered
# to its target in order, reported with an errno that the kernel really gave, or still queued.

from __future__ import annotations

import errno
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import trio
from hypothesis import strategies as st

from snaptun_trio import (
    PacketBatch,
    PacketTrain,
    QueueFullError,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import harness, interposer, laws, ledger, sockets

if TYPE_CHECKING:
    from snaptun_trio import Address

# Limits of Linux, stated here a second time (net/ipv4/udp.c, UDP_MAX_SEGMENTS up to 6.8; RFC 768).
MOST_SEGMENTS = 64
MOST_BYTES = {"127.0.0.1": 65_507, "::1": 65_527}

runs = st.tuples(
    st.one_of(
        st.integers(0, 70), st.integers(0, 3000), st.sampled_from([0, 1, 1200, 9000, 65_507])
    ),
    st.integers(1, 80),
).filter(lambda run: run[0] * run[1] < 300_000)
traffic = st.lists(runs, max_size=12).map(
    lambda found: [size for size, times in found for _ in range(times)]
)


def payloads(sizes: list[int]) -> list[bytes]:
    """Different bytes for each."""
    return [bytes([number % 251]) * size for number, size in enumerate(sizes)]


@hypothesis.given(sizes=traffic, host=st.sampled_from(["127.0.0.1", "::1"]))
def test_packing_and_splitting_are_inverse_and_keep_every_limit(
    sizes: list[int], host: str
) -> None:
    packets = payloads(sizes)
    trains = PacketTrain.pack(packets, (host, 9))
    assert [packet for train in trains for packet in train] == packets
    assert sum(map(len, trains)) == len(packets)
    for train in trains:
        assert len(train) <= MOST_SEGMENTS
        assert train.nbytes <= MOST_BYTES[host] or len(train) == 1
        lengths = [len(packet) for packet in train]
        assert set(lengths[:-1]) <= {train.segment_size}
        assert lengths[-1] <= train.segment_size
        assert len(train) == 1 or 0 not in lengths
    # As few as the rules allow: the first packet of a train could not have gone with the last one.
    for one, next_ in pairwise(trains):
        room = one.nbytes + len(next(iter(next_)))
        ended = one.nbytes % one.segment_size if one.segment_size else 1
        assert (
            ended
            or not next_.nbytes
            or len(one) == MOST_SEGMENTS
            or next_.segment_size > one.segment_size
            or room > 65_473
        )


@hypothesis.given(data=st.binary(max_size=3000), size=st.integers(1, 3000))
def test_a_train_of_any_stride_is_cut_into_all_of_its_bytes(data: bytes, size: int) -> None:
    """A stride of the length or more is one datagram; empty data is one empty datagram."""
    packets = list(PacketTrain(data, size, None))
    assert b"".join(packets) == data
    assert len(packets) == max(1, -(-len(data) // size)) == len(PacketTrain(data, size, None))
    assert all(len(packet) == size for packet in packets[:-1])


@hypothesis.settings(max_examples=60)
@hypothesis.given(sizes=traffic, gso=st.booleans(), gro=st.booleans(), queue=st.booleans())
def test_whatever_is_sent_through_loopback_is_received(
    sizes: list[int], gso: bool, gro: bool, queue: bool
) -> None:
    """The whole way: any sizes, by queue or by batch, with each offload on and off."""
    packets = payloads(sizes)
    with sockets.udp() as out, sockets.udp() as into:
        target = into.getsockname()
        sender, receiver = UdpBatchSender(out, gso=gso), UdpBatchReceiver(into, gro=gro)
        received: list[bytes] = []

        def receive() -> None:
            try:
                while True:
                    received.extend(packet for packet, _ in receiver.receive_nowait())
            except trio.WouldBlock:
                pass

        if queue:
            for packet in packets:
                if sender.is_full:
                    sender.try_flush_best_effort()
                    receive()
                sender.try_queue_packet(packet, target)
            sender.try_flush_best_effort()
        else:
            for part in harness.chunks(packets, 100):
                sender.send_nowait(PacketBatch(PacketTrain.pack(part, target)))
                receive()
        receive()
        assert received == packets


# -- the sender against a kernel that answers anything

CODES = (
    "EINVAL EMSGSIZE ENOBUFS EPERM EACCES ENETUNREACH EHOSTUNREACH ENETDOWN EADDRNOTAVAIL "
    "EAFNOSUPPORT EDESTADDRREQ ECONNREFUSED ENOMEM EFAULT"
)
ERESTARTSYS = 512  # Leaks out of recvmmsg on real kernels; it has no name.
codes = st.one_of(
    st.just(0),
    st.just(interposer.SHORT),
    st.just(errno.EAGAIN),
    st.just(errno.EIO),
    st.sampled_from([*(getattr(errno, name) for name in CODES.split()), ERESTARTSYS]),
)

operations = st.one_of(
    st.tuples(st.just("queue"), st.integers(0, 2), st.integers(16, 40), st.integers(1, 10)),
    st.tuples(st.just("train"), st.integers(0, 2), st.integers(16, 40), st.integers(1, 10)),
    st.tuples(st.just("batch"), st.integers(0, 2), st.integers(16, 40), st.integers(1, 30)),
    st.tuples(st.just("try_flush"), st.just(0), st.just(16), st.just(0)),
    st.tuples(st.just("flush"), st.just(0), st.just(16), st.just(0)),
)


class Model:
    """Everything that was submitted, by target, and what the sender has said of it."""

    def __init__(self, targets: list[Address]) -> None:
        self.targets = targets
        self.books = [ledger.Ledger() for _ in targets]
        self.errnos: set[int] = set()

    def write(self, which: int, size: int, count: int) -> list[bytes]:
        return self.books[which].write_many(count, flow=which, size=size)

    def enter(self, error: SendBatchError) -> None:
        """Enter refusals: of a target that we wrote to, with an errno."""
        for failure in error.failures:
            assert failure.error.errno is not None
            self.errnos.add(failure.error.errno)
            which = self.targets.index(failure.train.address)  # type: ignore[arg-type]
            for datagram in failure.train:
                self.books[which].refuse(datagram, failure.error.errno)


def play(model: Model, sender: UdpBatchSender, steps: list[tuple[str, int, int, int]]) -> None:
    """Do that; after each step the sender's own account adds up."""
    for what, which, size, count in steps:
        try:
            match what:
                case "queue":
                    for _ in range(count):
                        if not sender.is_full:
                            (packet,) = model.write(which, size, 1)
                            sender.try_queue_packet(packet, model.targets[which])
                case "train":
                    if not sender.is_full:
                        room = min(count, sender.batch_size - harness.backlog(sender))
                        data = b"".join(model.write(which, size, room))
                        sender.try_queue_train(PacketTrain(data, size, model.targets[which]))
                case "batch":
                    _send_batch(model, sender, which, size, count)
                case "try_flush":
                    sender.try_flush_best_effort()
                case "flush":
                    trio.run(sender.flush)
        except SendBatchError as error:
            model.enter(error)
        except trio.WouldBlock:
            assert not sender.is_empty
        laws.sender_adds_up(sender.statistics())


def _send_batch(model: Model, sender: UdpBatchSender, which: int, size: int, count: int) -> None:
    """A batch for two targets in turn; if it is not accepted, it is sent again at the end."""
    other = (which + 1) % len(model.targets)
    trains = []
    for target in (which, other, which):
        packets = model.write(target, size, count)
        trains += PacketTrain.pack(packets, model.targets[target])
    batch = PacketBatch(trains)
    while True:
        submitted = sender.statistics().datagrams_submitted
        try:
            sender.send_nowait(batch)
        except trio.WouldBlock:
            # Not accepted, and nothing of it sent: the script has one answer less now.
            assert sender.statistics().datagrams_submitted == submitted
            continue
        return


def deliver(model: Model, receivers: list[UdpBatchReceiver]) -> None:
    for book, receiver in zip(model.books, receivers):
        harness.collect_nowait(receiver, book)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, backend: str) -> interposer.Interposer:
    """A kernel that answers what the test says, then as the real one does."""
    return interposer.Interposer(monkeypatch, lambda message: 0)


def run_against(
    scripted: interposer.Interposer,
    script: list[int],
    steps: list[tuple[str, int, int, int]],
) -> tuple[Model, UdpBatchSender]:
    """Play the steps while the kernel answers from the script, then flush all that is left.

    Every datagram must have been delivered to its target in order, or refused with an errno of the
    script.
    """
    asked = 0
    answers = iter(script)

    def verdict(message: interposer.Message) -> int:
        nonlocal asked
        asked += 1
        assert asked < 100_000, "the sender asks for ever"
        return next(answers, 0)

    with (
        sockets.udp() as out,
        sockets.udp() as one,
        sockets.udp() as two,
        sockets.udp() as three,
    ):
        intos = [one, two, three]
        model = Model([sock.getsockname() for sock in intos])
        receivers = [UdpBatchReceiver(sock) for sock in intos]
        sender = UdpBatchSender(out)
        scripted.verdict = verdict
        play(model, sender, steps)
        for _ in range(len(script) + 2):
            try:
                sender.try_flush_best_effort()
            except SendBatchError as error:
                model.enter(error)
            except trio.WouldBlock:
                continue
        assert sender.is_empty
        laws.sender_adds_up(sender.statistics())
        deliver(model, receivers)
        for book in model.books:
            laws.l2_clean(book.account())
        refused: defaultdict[int, int] = defaultdict(int)
        for book in model.books:
            for code, count in book.account().refused.items():
                refused[code] += count
        assert dict(sender.statistics().failures) == dict(refused)
        assert model.errnos <= set(script)
        assert errno.EAGAIN not in model.errnos
    return model, sender


@hypothesis.settings(max_examples=300)
@hypothesis.given(script=st.lists(codes, max_size=40), steps=st.lists(operations, max_size=12))
def test_whatever_the_kernel_answers_each_datagram_is_accounted_for_once(
    scripted: interposer.Interposer, script: list[int], steps: list[Any]
) -> None:
    run_against(scripted, script, steps)


@hypothesis.settings(max_examples=150)
@hypothesis.given(
    script=st.lists(codes.filter(lambda code: code > 0), max_size=15).map(
        lambda found: [answer for code in found for answer in (code, 0)]
    ),
    steps=st.lists(operations, max_size=10),
)
def test_an_error_that_does_not_come_twice_in_a_row_costs_nothing(
    scripted: interposer.Interposer, script: list[int], steps: list[Any]
) -> None:
    """Passing faults, and errors about earlier datagrams: nothing is refused, GSO stays on."""
    _, sender = run_against(scripted, script, steps)
    assert sender.statistics().datagrams_failed == 0
    assert sender.gso


@pytest.mark.soak
def test_soak_whatever_the_kernel_answers(scripted: interposer.Interposer, rounds: int) -> None:
    @hypothesis.settings(max_examples=max(100, rounds // 100))
    @hypothesis.given(script=st.lists(codes, max_size=60), steps=st.lists(operations, max_size=20))
    def check(script: list[int], steps: list[Any]) -> None:
        run_against(scripted, script, steps)

    check()


def test_an_interrupted_call_is_repeated_at_once(
    monkeypatch: pytest.MonkeyPatch, linux_backend: None
) -> None:
    """EINTR again and again: never seen from outside."""
    script = iter([errno.EINTR] * 10)
    interposer.Interposer(monkeypatch, interposer.from_script(script))
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        sender.send_nowait(harness.batch_of(book.write_many(100), into.getsockname()))
        harness.collect_nowait(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())


def test_a_queue_that_is_full_refuses_and_keeps_what_it_has() -> None:
    with sockets.udp() as out:
        sender = UdpBatchSender(out, batch_size=10)
        for number in range(10):
            sender.try_queue_packet(b"%d" % number, out.getsockname())
        for _ in range(3):
            with pytest.raises(QueueFullError):
                sender.try_queue_packet(b"more", out.getsockname())
            with pytest.raises(QueueFullError):
                sender.try_queue_train(PacketTrain(b"more", 4, out.getsockname()))
        assert harness.backlog(sender) == 10
        sender.try_flush_best_effort()
        assert list(sockets.drain(out)) == [b"%d" % number for number in range(10)]
