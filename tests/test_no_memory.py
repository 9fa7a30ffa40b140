# Memory runs out, once, at any one place: what was queued is still sent, what comes is still
# received whole, no buffer is lost to the pool, and the accounts hold.
#
# CPython can be told which allocation fails. The tests of the sender go through all of them, one
# after the other, until none is left to fail.

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
)
from snaptun_trio._kernel import _slab

from . import ends, scripted
from .test_sender import check_law

if TYPE_CHECKING:
    from collections.abc import Callable

_testcapi = pytest.importorskip("_testcapi", reason="this Python cannot be made to lack memory")

# More than small numbers go up to, which need no memory.
MANY = 300


def _lacks_memory(act: Callable[[], object], allocation: int) -> bool:
    """Do something while one allocation fails. Returns whether any did."""
    try:
        _testcapi.set_nomemory(allocation, allocation + 1)
        try:
            act()
        finally:
            _testcapi.remove_mem_hooks()
    except MemoryError:
        return True
    return False


def _queue_packet(sender: UdpBatchSender, target: Address) -> None:
    sender.try_queue_packet(b"packet", target)


def _queue_view(sender: UdpBatchSender, target: Address) -> None:
    sender.try_queue_train(PacketTrain(memoryview(b"aabbc"), 2, target))


def _send_nowait(sender: UdpBatchSender, target: Address) -> None:
    sender.send_nowait(PacketBatch([PacketTrain(b"%05d" % n, 5, target) for n in range(10)]))


def _flush(sender: UdpBatchSender, target: Address) -> None:
    sender.try_flush_best_effort()


@pytest.mark.parametrize("waiting", [0, MANY])
@pytest.mark.parametrize("act", [_queue_packet, _queue_view, _send_nowait, _flush])
def test_a_sender_that_lacked_memory_sends_what_it_has_and_its_account_holds(
    kernel: scripted.ScriptedBackend,
    udp: ends.MakeSocket,
    act: Callable[[UdpBatchSender, Address], None],
    waiting: int,
) -> None:
    outgoing, target = udp(), ("127.0.0.1", 9)
    packets = ends.numbered(waiting, 8)
    lacked = 0
    for allocation in count():
        sender = UdpBatchSender(outgoing, batch_size=1024)
        for packet in packets:
            sender.try_queue_packet(packet, target)
        lacks = _lacks_memory(lambda: act(sender, target), allocation)  # noqa: B023
        check_law(sender)
        sender.try_queue_packet(b"after", target)
        sender.try_flush_best_effort()
        check_law(sender)
        assert sender.is_empty
        assert sender.statistics().datagrams_sent >= waiting + 1
        lacked += lacks
        if not lacks and allocation > lacked + 3:
            break
    assert lacked


# -- receiving: what fails there is said by name, for Python's own calls do not all survive it


def _no_memory(*_: object, **__: object) -> NoReturn:
    raise MemoryError


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
