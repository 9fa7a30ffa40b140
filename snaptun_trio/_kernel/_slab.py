# One receive call's memory: slots for the payloads, the message headers, and who still sees them.
#
# A slab is lent out as a *lease*: an object that exports the slab's memory and that every view of
# it keeps alive. When the last one is gone the slab goes back to where it came from, by itself. So
# this file decides the one thing that must never go wrong, that memory is reused while somebody can
# still see it. It must not know sockets, nor what a pool does with a slab that has come back.

from __future__ import annotations

import ctypes
import itertools
import mmap
from typing import TYPE_CHECKING, Any

import trio

from . import _abi
from ._headers import MessageHeaders, constant, sequence

if TYPE_CHECKING:
    from collections.abc import Callable

# A slot's distance to the next is not a power of two: 64 KiB apart, the first bytes of all slots
# fall into the same few sets of the processor's cache and push each other out.
_SLOT_SKEW = 1088

_lent: dict[int, Slab] = {}
_numbers = itertools.count(1)


class _Token(int):
    """Gives its slab back when it is deallocated.

    Why an int: a class without instance fields is not known to the cyclic garbage collector. The
    collector runs the finalizers (and weakref callbacks) of a dead cycle while the cycle's other
    finalizers can still reach, and even resurrect, every object in it. A slab that came back then
    could be seen. A token cannot be part of a cycle, so it dies only after the lease that holds it.
    """

    __slots__ = ()

    # The default argument outlives the module's globals when the interpreter shuts down.
    @trio.lowlevel.enable_ki_protection
    def __del__(self, lent: dict[int, Slab] = _lent) -> None:
        slab = lent.pop(int(self))
        slab.lent = False
        slab.on_return(slab)


class Slab:
    """Memory for one receive call: ``slots`` payload slots of ``slot_size`` bytes each.

    Args:
      slots: how many messages a call can fill.
      slot_size: the most payload bytes of one message.
      on_return: called with the slab when nobody sees its memory any more.
    """

    def __init__(self, slots: int, slot_size: int, on_return: Callable[[Slab], None]) -> None:
        self.slots = slots
        self.slot_size = slot_size
        self.on_return = on_return
        self.lent = False
        self.stride = slot_size if slots == 1 else -(-slot_size // 64) * 64 + _SLOT_SKEW
        # Private anonymous memory: pages exist from the first touch on, and stay warm.
        self.payload = mmap.mmap(-1, self.stride * slots)
        kind = ctypes.c_char * len(self.payload)
        self.address = ctypes.addressof(kind.from_buffer(self.payload))
        # A subclass with a place for the token. It exports the memory like its base.
        self._lease_type: Any = type("SlabLease", (kind,), {"__slots__": ("token",)})
        self._headers: MessageHeaders | None = None

    @property
    def headers(self) -> MessageHeaders:
        """The message headers for `recvmmsg`, built when first asked for."""
        if self._headers is None:
            headers = MessageHeaders(self.slots, _abi.CONTROL_SIZE)
            self.bases = sequence(self.address, self.stride, self.slots)
            headers.bases[:] = self.bases
            headers.sizes[:] = constant("L", self.slot_size, self.slots)
            headers.name_lengths[:] = constant("I", _abi.NAME_SIZE, self.slots)
            headers.control_lengths[:] = constant("L", _abi.CONTROL_SIZE, self.slots)
            self.pristine = memoryview(bytes(headers.bytes))
            self.filled = 0
            self._headers = headers
        return self._headers

    def slot(self, index: int) -> memoryview:
        """One slot, writable. For use during a receive call only: it is not covered by a lease."""
        start = index * self.stride
        return memoryview(self.payload)[start : start + self.slot_size]

    @trio.lowlevel.enable_ki_protection
    def lend(self) -> memoryview:
        """The whole payload memory, writable, under a new lease.

        The slab is given back when this view, every view made of it, and every object that holds
        one of them are gone.
        """
        number = next(_numbers)
        lease = self._lease_type.from_buffer(self.payload)
        _lent[number] = self
        self.lent = True
        lease.token = _Token(number)
        return memoryview(lease).cast("B")
