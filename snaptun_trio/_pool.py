# PacketBufPool: lends the memory for receiving, and gets it back by itself.
#
# The pool decides how many slabs are kept; that none comes back while somebody can still see it is
# the doing of `_kernel/_slab.py`. This file must not know sockets, nor what is in a slab.

from __future__ import annotations

import threading
from typing import final

import trio

from ._kernel._slab import Slab
from ._statistics import PoolStatistics
from ._train import check_int

# A train is at most 65 535 bytes with its headers, whatever the MTU; a shorter buffer makes the
# kernel throw the rest of it away.
GRO_BUFFER_SIZE = 65_536


@final
class PacketBufPool:
    """The memory for receiving, shared by any number of receivers of one trio run.

    The memory is organised in *slabs*, each large enough for one receive call. A receiver holds a
    slab only during the call; then the batch holds it, and every `memoryview` that was taken from
    the batch. When the last of them is gone the slab goes back to the pool by itself. Nobody calls
    release, and no view can ever see the bytes of a later datagram. A thousand idle sockets cost
    no buffers.

    Packets that were looked at (by iterating a batch or a train) are `bytes` of their own and hold
    no slab.

    Args:
      buffer_size: the most bytes that one message can have: a datagram, or with GRO a whole train.
        1 to 65 536. A receiver with ``gro=True`` needs the default.
      capacity: how many slabs of each size are kept for reuse. When more are in use at the same
        time, the ones beyond are ordinary allocations that are freed after use.

    Raises:
      ValueError: a number is out of its range.
    """

    def __init__(self, buffer_size: int = GRO_BUFFER_SIZE, *, capacity: int = 32) -> None:
        check_int("buffer_size", buffer_size, 1, GRO_BUFFER_SIZE)
        check_int("capacity", capacity, 1, 2**31)
        self._buffer_size = buffer_size
        self._capacity = capacity
        self._shelves: dict[int, _Shelf] = {}
        # A view may be dropped in a worker thread, and the garbage collector may drop one in the
        # middle of our own bookkeeping: hence a lock, and one that its holder can take again.
        self._lock = threading.RLock()
        self._in_use = 0
        self._most_in_use = 0
        self._reused = 0
        self._allocated = 0
        self._beyond_capacity = 0

    @property
    def buffer_size(self) -> int:
        """The most bytes that one message can have."""
        return self._buffer_size

    @property
    def capacity(self) -> int:
        """How many slabs of each size are kept for reuse."""
        return self._capacity

    @trio.lowlevel.enable_ki_protection
    def get(self) -> memoryview:
        """One writable buffer of ``buffer_size`` bytes, to build a packet in place.

        It returns to the pool by itself when the view, and every slice of it, is gone; a sender
        that has queued a slice holds it until the packet is sent. Its content is undefined.
        """
        slab = self._take(1, 1)
        return slab.view(slab.lend())[: self._buffer_size]

    def statistics(self) -> PoolStatistics:
        """A snapshot of what the pool has lent and kept."""
        return PoolStatistics(
            slabs_in_use=self._in_use,
            slabs_idle=sum(len(shelf.idle) for shelf in self._shelves.values()),
            most_in_use=self._most_in_use,
            reused=self._reused,
            allocated=self._allocated,
            allocated_beyond_capacity=self._beyond_capacity,
        )

    @trio.lowlevel.enable_ki_protection
    def _take(self, slots: int, offered: int) -> Slab:
        """A slab with so many slots, for a receiver: it lends it, or puts it back.

        Beyond the capacity, where the slab serves for one call, it has only the slots that this
        call is to be offered: to build one with 256 takes ten times as long as the call.
        """
        with self._lock:
            shelf = self._shelves.get(slots)
            if shelf is None:
                shelf = self._shelves[slots] = _Shelf()
            if shelf.idle:
                # Last in, first out: the slab that was used last is still in the processor's cache.
                slab = shelf.idle.pop()
                self._reused += 1
            else:
                beyond = shelf.in_use >= self._capacity
                fewer = min(slots, max(offered, 2)) if beyond else slots
                slab = Slab(fewer, self._buffer_size, self._put_back)
                slab.kind = slots
                self._allocated += 1
                self._beyond_capacity += beyond
            shelf.in_use += 1
            self._in_use += 1
            if self._in_use > self._most_in_use:
                self._most_in_use = self._in_use
            return slab

    @trio.lowlevel.enable_ki_protection
    def _put_back(self, slab: Slab) -> None:
        """Take a slab back, unless somebody sees its memory: then it comes back by itself."""
        if slab.lent:
            return
        with self._lock:
            shelf = self._shelves[slab.kind]
            shelf.in_use -= 1
            self._in_use -= 1
            if slab.slots == slab.kind and shelf.in_use + len(shelf.idle) < self._capacity:
                shelf.idle.append(slab)


class _Shelf:
    """The slabs of one size."""

    __slots__ = ("idle", "in_use")

    def __init__(self) -> None:
        self.idle: list[Slab] = []
        self.in_use = 0
