# Memory runs out, once, at one place: what was queued is still sent, what comes is still received
# whole, no buffer is lost to the pool, and the accounts hold.

from __future__ import annotations

import contextlib
from itertools import count
from typing import TYPE_CHECKING, NoReturn

import pytest

from snaptun_trio import (
    Address,
    PacketBatch,
    PacketBufPool,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
    _queue,
)
from snaptun_trio._kernel import _slab

from . import ends, scripted
from .test_sender import check_law

if TYPE_CHECKING:
    from snaptun_trio._kernel._interface import Sent

A: Address = ("127.0.0.1", 9)


def _no_memory(*_: object, **__: object) -> NoReturn:
    raise MemoryError


class Unaddable(int):
    """A number that there is no memory to add to another."""

    __radd__ = _no_memory


# -- sending


@pytest.fixture
def sender(kernel: scripted.ScriptedBackend, udp: ends.MakeSocket) -> UdpBatchSender:
    return UdpBatchSender(udp())


@pytest.mark.parametrize("queued", [0, 3])
def test_a_packet_that_cannot_be_counted_is_not_queued(
    sender: UdpBatchSender, kernel: scripted.ScriptedBackend, queued: int
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
    kernel: scripted.ScriptedBackend,
    queued: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(queued):
        sender.try_queue_packet(b"before", A)
    with monkeypatch.context() as patch:
        patch.setattr(_queue, "over", _no_memory)
        with pytest.raises(MemoryError):
            sender.try_queue_train(PacketTrain(memoryview(b"never"), 5, A))
    sender.try_flush_best_effort()
    assert kernel.payloads == [b"before"] * queued
    assert sender.is_empty
    check_law(sender)


@pytest.mark.parametrize("lacking", ["messages", "datagrams", "nbytes"])
@pytest.mark.parametrize("submit", ["packets", "batch"])
def test_what_was_sent_and_cannot_be_counted_is_still_queued(
    sender: UdpBatchSender,
    kernel: scripted.ScriptedBackend,
    monkeypatch: pytest.MonkeyPatch,
    submit: str,
    lacking: str,
) -> None:
    """It may go twice, as any datagram may; but it is counted as one or the other."""
    send = scripted.ScriptedTransmission.send

    def uncounted(transmission: scripted.ScriptedTransmission, most: int) -> Sent:
        sent = send(transmission, most)
        return sent._replace(**{lacking: Unaddable(getattr(sent, lacking))})  # type: ignore[arg-type]

    def submit_and_flush() -> None:
        if submit == "packets":
            for _ in range(3):
                sender.try_queue_packet(b"packet", A)
            sender.try_flush_best_effort()
        else:
            sender.send_nowait(PacketBatch([PacketTrain(b"packet", 2, A)]))

    with monkeypatch.context() as patch:
        patch.setattr(scripted.ScriptedTransmission, "send", uncounted)
        with pytest.raises(MemoryError):
            submit_and_flush()
    check_law(sender)
    assert sender.statistics().datagrams_sent == 0
    sender.try_flush_best_effort()
    check_law(sender)
    assert sender.is_empty
    assert sender.statistics().datagrams_sent == 3


# -- receiving


def test_a_receive_without_memory_gives_its_slab_back(
    pair: ends.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = PacketBufPool()
    receiver = UdpBatchReceiver(pair.receiver.socket, pool)
    with monkeypatch.context() as patch:
        patch.setattr(receiver._backend, "receive", _no_memory)
        for _ in range(3):
            with pytest.raises(MemoryError):
                receiver.receive_nowait()
    assert pool.statistics().slabs_in_use == 0
    pair.sender.send_nowait(ends.batch_of([b"after"], pair.target))
    assert ends.payloads(receiver, 1) == [b"after"]


@pytest.mark.parametrize("expected_size", [0, 1200])
@pytest.mark.parametrize("allocation", range(4))
def test_a_layout_that_lacked_memory_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, expected_size: int, allocation: int
) -> None:
    """Half of one would cut what it receives, or put it where nobody looks."""
    slab = _slab.Slab(16, 2048, lambda _: None)
    if expected_size:
        slab.packed(expected_size + 8)
    with monkeypatch.context() as patch:
        left = count(-allocation)
        for name in ("constant", "sequence"):
            make = getattr(_slab, name)
            patch.setattr(
                _slab, name, lambda *a, make=make: make(*a) if next(left) else _no_memory()
            )
        with contextlib.suppress(MemoryError):
            slab.packed(expected_size) if expected_size else slab.layout
    layout = slab.packed(expected_size) if expected_size else slab.layout
    whole = _slab.Slab(16, 2048, lambda _: None)
    same = whole.packed(expected_size) if expected_size else whole.layout
    assert layout.stride == same.stride
    assert layout.headers.sizes.tolist() == same.headers.sizes.tolist()
    offsets = [
        [base - s.address for base in made.headers.bases]
        for s, made in ((slab, layout), (whole, same))
    ]
    assert offsets[0] == offsets[1]


def test_a_slab_that_there_was_no_memory_to_lend_can_be_lent_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NoMemory(dict[int, object]):
        __setitem__ = _no_memory

    returned: list[_slab.Slab] = []
    slab = _slab.Slab(2, 2048, returned.append)
    with monkeypatch.context() as patch:
        patch.setattr(_slab, "_watched", NoMemory())
        with pytest.raises(MemoryError):
            slab.lend()
    assert not slab.lent
    assert returned == []
    token = slab.lend()
    del token
    assert returned == [slab]
