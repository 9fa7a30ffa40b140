# The package's ends, with a ledger between them.
#
# What nearly every fault test does: write numbered datagrams into a sender, enter what it refuses
# and what it keeps, read a receiver until everything is accounted for. The package is used through
# its public names only.

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import trio

from snaptun_trio import PacketBatch, PacketTrain, SendBatchError

from .ledger import SMALLEST

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Iterator

    from snaptun_trio import Address, UdpBatchReceiver, UdpBatchSender

    from .ledger import Ledger

ItemT = TypeVar("ItemT")

PATIENCE = 90.0
"""Seconds that a test waits for the kernel to deliver before it says that nothing comes."""


def enter_refusals(book: Ledger, error: SendBatchError) -> None:
    """Enter what a sender reported as refused."""
    for failure in error.failures:
        for datagram in failure.train:
            book.refuse(datagram, failure.error.errno)


@contextlib.contextmanager
def refusals_entered(book: Ledger) -> Iterator[None]:
    """Enter what the sender reports as refused in this block, and go on."""
    try:
        yield
    except SendBatchError as error:
        enter_refusals(book, error)


def collect_nowait(receiver: UdpBatchReceiver, book: Ledger) -> int:
    """Enter everything that waits at a receiver. Returns the number of datagrams."""
    count = 0
    with contextlib.suppress(trio.WouldBlock):
        while True:
            batch = receiver.receive_nowait()
            book.deliver_all(packet for packet, _ in batch)
            count += len(batch)
    return count


async def collect(
    receiver: UdpBatchReceiver, book: Ledger, done: Callable[[], bool] | None = None
) -> None:
    """Receive until ``done()``, by default until the ledger misses nothing.

    Gives up after `PATIENCE`; the law that is checked next then says what is missing.
    """
    if done is None:

        def done() -> bool:
            return book.account().missing == 0

    with trio.move_on_after(PATIENCE):
        while True:
            collect_nowait(receiver, book)
            if done():
                return
            # A drop wakes nobody, so `done` is asked now and then even if nothing comes.
            with trio.move_on_after(0.02):
                batch = await receiver.receive()
                book.deliver_all(packet for packet, _ in batch)


def batch_of(
    datagrams: Iterable[bytes], target: Address | None, *, segments: int = 64
) -> PacketBatch:
    """A batch of trains of at most so many datagrams for one target, order kept."""
    trains: list[PacketTrain] = []
    for part in chunks(datagrams, segments):
        trains += PacketTrain.pack(part, target)
    return PacketBatch(trains)


def chunks(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    """The items, ``size`` at a time."""
    part: list[ItemT] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def random_sizes(rng: random.Random, count: int, most: int = 1400) -> list[int]:
    """Datagram sizes as traffic has them: runs of one size, odd ones, now and then an empty one."""
    sizes: list[int] = []
    while len(sizes) < count:
        kind = rng.random()
        if kind < 0.05:
            sizes.append(0)
        else:
            run = rng.randrange(1, 100) if kind < 0.7 else 1
            sizes += [rng.randrange(SMALLEST, most + 1)] * run
    return sizes[:count]


def backlog(sender: UdpBatchSender) -> int:
    """How many datagrams wait in a sender."""
    return sender.statistics().datagrams_queued
