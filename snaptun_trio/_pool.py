# PacketBufPool: lends the memory for receiving, and gets it back by itself.
#
# What is lent, and that none of it comes back while somebody can still see it, is the backend's
# doing. This file must not know sockets, nor what is in a slab.

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

from ._kernel import choose_backend
from ._statistics import PoolStatistics
from ._train import check_int

if TYPE_CHECKING:
    from ._kernel._interface import SocketIO
    from ._kernel._outgoing import Memory

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
        self._memories: dict[str, Memory] = {}

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
        return self._memory(choose_backend()[0]).get()

    def statistics(self) -> PoolStatistics:
        """A snapshot of what the pool has lent and kept."""
        counted = [memory.statistics() for memory in self._memories.values()]
        in_use, idle, most, reused, allocated, beyond = map(sum, zip((0,) * 6, *counted))
        return PoolStatistics(
            slabs_in_use=in_use,
            slabs_idle=idle,
            most_in_use=most,
            reused=reused,
            allocated=allocated,
            allocated_beyond_capacity=beyond,
        )

    def _memory(self, io: SocketIO | type[SocketIO]) -> Memory:
        """What a backend receives into. It lends it, and takes it back by itself."""
        memory = self._memories.get(io.backend)
        if memory is None:
            memory = self._memories[io.backend] = io.memory(self._buffer_size, self._capacity)
        return memory
