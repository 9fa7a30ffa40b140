# Memory runs out, once, at one place: what was queued is still sent, what comes is still received
# whole, no buffer is lost to the pool, and the accounts hold.

from __future__ import annotations

import contextlib
import errno
import sys
import weakref
from typing import TYPE_CHECKING, NoReturn

import pytest
import trio

from snaptun_trio import (
    Address,
    PacketBatch,
    PacketBufPool,
    PacketTrain,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
    _gathering,
    _sender,
)
from snaptun_trio._kernel import _portable
from snaptun_trio._send_queue import Submission

from . import ends, scripted
from .test_sender import check_law

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

A: Address = ("127.0.0.1", 9)
NOWHERE: Address = ("127.0.0.1", 0)


def _no_memory(*_: object, **__: object) -> NoReturn:
    raise MemoryError


class Unaddable(int):
    """A number that there is no memory to add to another."""

    __add__ = __radd__ = _no_memory


# -- sending


@pytest.fixture
def sender(kernel: scripted.ScriptedKernel, udp: ends.MakeSocket) -> UdpBatchSender:
    return UdpBatchSender(udp())


@pytest.mark.parametrize("queued", [0, 3])
def test_a_packet_that_cannot_be_counted_is_not_queued(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, queued: int
) -> None:
    for _ in range(queued):
        sender.try_queue_packet(b"before", A)
    with pytest.raises(MemoryError):
        sender._queue.put((b"never", 5, A, sender._queue.name(A), None), Unaddable(1))
    check_law(sender)
    sender.try_queue_packet(b"after", A)
    sender.try_flush_best_effort()
    assert kernel.payloads == [b"before"] * queued + [b"after"]
    assert sender.is_empty
    check_law(sender)


@pytest.mark.parametrize("queued", [0, 3])
async def test_a_packet_that_was_not_queued_is_not_waited_for(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, queued: int
) -> None:
    for _ in range(queued):
        sender.try_queue_packet(b"before", A)
    with pytest.raises(MemoryError):
        item = (b"never", 5, A, sender._queue.name(A), None)
        sender._queue.put(item, Unaddable(1), owned=False)
    await sender.flush()
    assert kernel.payloads == [b"before"] * queued


@pytest.mark.parametrize("queued", [0, 3])
async def test_the_next_one_in_the_place_of_what_was_not_queued_is_somebodys(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, queued: int
) -> None:
    for _ in range(queued):
        sender.try_queue_packet(b"before", A)
    item = (b"never", 5, A, sender._queue.name(A), None)
    with pytest.raises(MemoryError):
        sender._queue.put(item, Unaddable(1), owned=False)
    kernel.sends += [1] * bool(queued) + [-errno.EACCES] * 2
    with pytest.raises(PermissionError):
        await sender.send_packet(b"refused", A)


def test_what_cannot_be_marked_as_nobodys_is_not_queued(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_gathering.Gathering, "disown", _no_memory)
        with pytest.raises(MemoryError):
            sender.try_queue_packet(b"never", A)
    check_law(sender)
    sender.try_queue_packet(b"after", A)
    sender.try_flush_best_effort()
    assert kernel.payloads == [b"after"]


async def test_what_was_half_marked_as_nobodys_marks_nothing_that_comes_after_it(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(gathering: _gathering.Gathering, places: range) -> NoReturn:
        disown(gathering, places[:2])
        raise MemoryError

    disown = _gathering.Gathering.disown
    sender.try_queue_packet(b"before", A)
    with monkeypatch.context() as patch:
        patch.setattr(_gathering.Gathering, "disown", half)
        with pytest.raises(MemoryError):
            item = (b"never", 5, A, sender._queue.name(A), None)
            sender._queue.put_all([item] * 3, owned=False)
    kernel.sends += [1, -errno.EACCES, -errno.EACCES]
    with pytest.raises(PermissionError):
        await sender.send_packet(b"refused", A)


@pytest.mark.parametrize("queued", [0, 3])
async def test_of_a_batch_all_or_nothing_is_queued(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, queued: int
) -> None:
    for _ in range(queued):
        sender.try_queue_packet(b"before", A)
    sender._queue.submitted = Unaddable(queued)
    with pytest.raises(MemoryError):
        await sender.send(PacketBatch([PacketTrain(b"never", 2, A)]))
    sender._queue.submitted = queued
    check_law(sender)
    await sender.flush()
    assert kernel.payloads == [b"before"] * queued


def test_a_batch_that_its_submission_cannot_count_is_not_queued(sender: UdpBatchSender) -> None:
    """Or it would be there without a number, and a server's task try to send it without end."""
    submission = Submission()
    submission.submitted = Unaddable(0)
    with pytest.raises(MemoryError):
        sender._queue.add(sender._accept(PacketBatch([PacketTrain(b"never", 2, A)])), submission)
    assert sender.is_empty
    check_law(sender)


@pytest.mark.parametrize("queued", [0, 3])
def test_a_train_that_there_is_no_memory_to_queue_breaks_nothing(
    sender: UdpBatchSender,
    kernel: scripted.ScriptedKernel,
    queued: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(queued):
        sender.try_queue_packet(b"before", A)
    with monkeypatch.context() as patch:
        patch.setattr(_sender, "own_view", _no_memory)
        with pytest.raises(MemoryError):
            sender.try_queue_train(PacketTrain(memoryview(b"never"), 5, A))
    sender.try_flush_best_effort()
    assert kernel.payloads == [b"before"] * queued
    assert sender.is_empty
    check_law(sender)


@pytest.mark.parametrize("lacking", ["messages", "datagrams", "nbytes"])
@pytest.mark.parametrize("submit", ["packets", "batch"])
def test_what_was_sent_and_cannot_be_counted_is_counted_later_and_goes_once(
    sender: UdpBatchSender,
    kernel: scripted.ScriptedKernel,
    monkeypatch: pytest.MonkeyPatch,
    submit: str,
    lacking: str,
) -> None:
    def submit_and_flush() -> None:
        if submit == "packets":
            for _ in range(3):
                sender.try_queue_packet(b"packet", A)
            sender.try_flush_best_effort()
        else:
            sender.send_nowait(PacketBatch([PacketTrain(b"packet", 2, A)]))

    made: list[scripted.ScriptedOutgoing] = []
    send = scripted.ScriptedOutgoing.send

    def uncounted(outgoing: scripted.ScriptedOutgoing, *arguments: int) -> int:
        number = send(outgoing, *arguments)  # type: ignore[arg-type]
        setattr(outgoing, lacking, Unaddable(getattr(outgoing, lacking)))
        made.append(outgoing)
        return number

    with monkeypatch.context() as patch:
        patch.setattr(scripted.ScriptedOutgoing, "send", uncounted)
        with pytest.raises(MemoryError):
            submit_and_flush()
    (outgoing,) = made
    check_law(sender)
    assert sender.statistics().datagrams_sent == 0
    setattr(outgoing, lacking, int(getattr(outgoing, lacking)))
    sender.try_flush_best_effort()
    check_law(sender)
    assert sender.is_empty
    assert sender.statistics().datagrams_sent == 3
    assert len(kernel.sent) == 3


def test_refusals_that_there_is_no_memory_to_tell_of_are_told_of_by_the_next_call(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.sends += [-1, -1]
    sender.try_queue_packet(b"refused", A)
    with monkeypatch.context() as patch:
        patch.setattr(_sender, "SendBatchError", _no_memory)
        with pytest.raises(MemoryError):
            sender.try_flush_best_effort()
    with pytest.raises(SendBatchError) as report:
        sender.try_flush_best_effort()
    assert [list(failure.train) for failure in report.value.failures] == [[b"refused"]]
    sender.try_flush_best_effort()


# -- each place in turn


def lacking(place: int, call: Callable[[], object]) -> tuple[object, Exception | None]:
    """What a call returns or raises without memory for the allocation of this number in it."""
    if sys.version_info >= (3, 12):
        pytest.skip("without memory this CPython crashes by itself, at a generator for one")
    memory = pytest.importorskip("_testcapi", reason="CPython's own tests are not there")
    trace, result, error = sys.gettrace(), None, None
    sys.settrace(None)  # it would need memory as well
    memory.set_nomemory(place, place + 1)
    try:
        result = call()
    except Exception as caught:
        error = caught
    finally:
        memory.remove_mem_hooks()
        sys.settrace(trace)
    if error is not None and not isinstance(error, SendBatchError | MemoryError | SystemError):
        raise error
    return result, error


def places(attempt: Callable[[int], bool]) -> int:
    """Let memory lack at one place after the other, until it lacks nowhere any more."""
    last = 0
    for place in range(1, 2000):
        if attempt(place):
            last = place
        elif place - last > 20:
            break
    return last


def submit_batch(sender: UdpBatchSender, one: Address, two: Address) -> None:
    trains = PacketTrain.pack([b"a%d" % n for n in range(5)], one)
    trains += PacketTrain.pack([b"bb%d" % n for n in range(3)], two)
    trains += PacketTrain.pack([b"bad", b"bad", b"b"], NOWHERE)
    trains += PacketTrain.pack([b"bbb%d" % n for n in range(300, 303)], two)
    sender.send_nowait(PacketBatch(trains))


def submit_packets(sender: UdpBatchSender, one: Address, two: Address) -> None:
    for number in range(3):
        sender.try_queue_packet(b"a%d" % number, one)
        sender.try_queue_packet(b"b%d" % (number + 300), two)
    sender.try_queue_train(PacketTrain(b"c0c1c2", 2, two))
    sender.try_queue_packet(b"bad", NOWHERE)
    sender.try_flush_best_effort()


# Python closes generators that nobody needs any more, and lacks memory even for that.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("submit", [submit_batch, submit_packets])
def test_wherever_memory_lacks_what_is_submitted_goes_once_and_is_counted_once(
    backend: str,
    udp: ends.MakeSocket,
    submit: Callable[[UdpBatchSender, Address, Address], None],
) -> None:
    one, two = udp(), udp()

    def attempt(place: int) -> bool:
        sender = UdpBatchSender(outgoing)
        addresses = ends.address_of(one), ends.address_of(two)
        _, error = lacking(place, lambda: submit(sender, *addresses))
        failures = error.failures if isinstance(error, SendBatchError) else []
        check_law(sender)
        with contextlib.suppress(trio.WouldBlock):
            try:
                sender.try_flush_best_effort()
            except SendBatchError as later:
                failures += later.failures
        check_law(sender)
        statistics = sender.statistics()
        assert sender.is_empty
        assert sum(map(len, (failure.train for failure in failures))) <= statistics.datagrams_failed
        arrived = [*_drain(one), *_drain(two)]
        assert len(arrived) == len(set(arrived)) == statistics.datagrams_sent
        return isinstance(error, MemoryError)

    outgoing = udp()
    attempt(1_000_000)  # or what is made once for all would be made here and there
    assert places(attempt) > 50


@pytest.mark.parametrize("size", [0, 3000])
def test_wherever_memory_lacks_what_came_in_is_received(
    backend: str, udp: ends.MakeSocket, size: int
) -> None:
    """But for one datagram where Python takes each from the kernel by itself."""
    into, source = udp(), udp()
    packets = [bytes([number]) * (size + 1) for number in range(5)]

    def attempt(place: int) -> bool:
        receiver = UdpBatchReceiver(into, batch_size=8)
        for packet in packets:
            source.sendto(packet, ends.address_of(into))
        ends.wait_until_readable(into)
        batch, error = lacking(place, receiver.receive_nowait)
        batches = [batch] if isinstance(batch, PacketBatch) else []
        with contextlib.suppress(trio.WouldBlock):
            while True:
                batches.append(receiver.receive_nowait())
        received = [packet for batch in batches for packet, _ in batch]
        assert receiver.statistics().datagrams_received == len(received)
        if backend == "linux":
            assert received == packets
        else:
            assert len(received) >= len(packets) - 1
            assert received == [packet for packet in packets if packet in received]
        return isinstance(error, MemoryError)

    attempt(1_000_000)
    assert places(attempt) > 5


def _drain(sock: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield sock.recv(100)


# -- receiving


async def test_a_portable_socket_that_there_is_no_memory_for_stays_its_owners(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second object for its descriptor must not close it, however it ends."""
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        monkeypatch.setattr(weakref, "finalize", _no_memory)
        with pytest.raises(MemoryError):
            _portable.PortableIO(sock)
        monkeypatch.undo()
        await sock.sendto(b"x", sock.getsockname())


def test_a_receive_without_memory_gives_its_slab_back(
    pair: ends.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = PacketBufPool()
    receiver = UdpBatchReceiver(pair.receiver.socket, pool)
    with monkeypatch.context() as patch:
        patch.setattr(receiver._io, "receive", _no_memory)
        for _ in range(3):
            with pytest.raises(MemoryError):
                receiver.receive_nowait()
    assert pool.statistics().slabs_in_use == 0
    pair.sender.send_nowait(ends.batch_of([b"after"], pair.target))
    assert ends.payloads(receiver, 1) == [b"after"]
