# Memory runs out, once, at one place: what was queued is still sent, what comes is still received
# whole, no buffer is lost to the pool, and the accounts hold.

from __future__ import annotations

from typing import NoReturn

import pytest

from snaptun_trio import (
    Address,
    PacketBatch,
    PacketBufPool,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
    _send_queue,
)

from . import ends, scripted
from .test_sender import check_law

A: Address = ("127.0.0.1", 9)


def _no_memory(*_: object, **__: object) -> NoReturn:
    raise MemoryError


class Unaddable(int):
    """A number that there is no memory to add to another."""

    __radd__ = _no_memory


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
        sender._queue.put(b"never", A, Unaddable(1))
    check_law(sender)
    sender.try_queue_packet(b"after", A)
    sender.try_flush_best_effort()
    assert kernel.payloads == [b"before"] * queued + [b"after"]
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
        patch.setattr(_send_queue, "over", _no_memory)
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


# -- receiving


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
