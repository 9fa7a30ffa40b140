# One receive call's memory: slots for the payloads, the message headers, and who still sees them.
#
# A slab is lent out against a *token*: whoever can see the memory holds it, and when the last
# holder is gone the slab goes back to where it came from, by itself. So this file decides the one
# thing that must never go wrong, that memory is reused while somebody can still see it. It must not
# know sockets, nor what a pool does with a slab that has come back.

from __future__ import annotations

import copy
import ctypes
import weakref
from functools import lru_cache
from types import CodeType
from typing import TYPE_CHECKING, Any

import trio

from . import _abi
from ._headers import MessageHeaders, anonymous_memory, constant, sequence

if TYPE_CHECKING:
    from collections.abc import Callable

# Room for packed messages, in bytes: as much as a receive call is offered, or more.
PACKED_SIZE = 1 << 20

# A batch with no more payload than this, in bytes, is copied to memory of its own, and its slab can
# be used again at once. Else a datagram of 60 bytes that somebody keeps, as a task does that waits
# for the next one, would keep a slab, most of it for nothing. Measured for one datagram: below 16
# kB the copy costs no more than the loan (3 us); of many small ones it costs 0.3 us each, and more
# than some kilobytes of them would make that dear.
COPIED_UP_TO = 4096

# A slot's distance to the next is not a power of two: 64 KiB apart, the first bytes of all slots
# fall into the same few sets of the processor's cache and push each other out.
_SLOT_SKEW = 1088

Token = CodeType
_TOKEN: Token = (lambda: None).__code__

_watched: dict[int, _Watch] = {}


class _Watch(weakref.ref[Token]):
    """Gives a slab back when the token that it watches is deallocated.

    Why a code object for a token: it is the one weakly referable object that the cyclic garbage
    collector does not know. The collector runs the finalizers, and the weakref callbacks, of what
    it tracks in a dead cycle (instances of every class are tracked) while the cycle's other
    finalizers can still reach, and even resurrect, everything in it. A slab that came back then
    could be seen. What it does not track dies only after all that hold it.
    """

    __slots__ = ("slab",)

    slab: Slab


# The default argument outlives the module's globals when the interpreter shuts down.
@trio.lowlevel.enable_ki_protection
def _give_back(watch: weakref.ref[Token], watched: dict[int, _Watch] = _watched) -> None:
    known = watched.pop(id(watch), None)
    if known is not None:  # or there was no memory to lend the slab at all
        known.slab.lent = False
        known.slab.on_return(known.slab)


@lru_cache(64)
def _export_type(size: int) -> type[ctypes.Array[ctypes.c_char]]:
    """An array of chars with a place for the token. It exports memory like its base."""
    return type("SlabExport", (ctypes.c_char * size,), {"__slots__": ("token",)})


class Layout:
    """A way to lay messages out in a slab, and the headers that say so to `recvmmsg`.

    Message ``i`` begins ``start + i * stride`` bytes into the slab.

    Attributes:
      start: where the first message begins, in bytes.
      stride: the distance from one message to the next, in bytes.
      bases: the address of each message, as a column.
      used: how many headers the last call wrote to.
    """

    def __init__(self, slab: Slab, start: int, stride: int, iovecs_each: int = 1) -> None:
        slots = slab.slots
        self.headers = MessageHeaders(slots, _abi.CONTROL_SIZE, iovecs_each)
        self.headers.name_lengths[:] = constant("I", _abi.NAME_SIZE, slots)
        self.headers.control_lengths[:] = constant("L", _abi.CONTROL_SIZE, slots)
        self._pristine = memoryview(bytes(self.headers.bytes))
        self.used = 0
        self.start = start
        self.stride = stride
        self.bases = sequence(slab.address + start, stride, slots)

    def rearm(self) -> None:
        """Put back what the kernel wrote over the headers that the last call used."""
        if self.used:
            size = self.used * _abi.HEADER
            self.headers.bytes[:size] = self._pristine[:size]
            self.used = 0


class Slab:
    """Memory for one receive call: ``slots`` payload slots of ``slot_size`` bytes each.

    Args:
      slots: how many messages a call can fill.
      slot_size: the most payload bytes of one message.
      on_return: called with the slab when nobody sees its memory any more.

    Attributes:
      kind: the slots of the slabs among which a pool keeps it; for the pool alone.
      payload: the memory: room for packed messages, then the slots.
      expected_size: for the next receive call, the size of the single datagrams that are expected,
        in bytes; 0 where nothing is.
    """

    def __init__(self, slots: int, slot_size: int, on_return: Callable[[Slab], None]) -> None:
        self.slots = self.kind = slots
        self.slot_size = slot_size
        self.on_return = on_return
        self.lent = False
        self.expected_size = 0
        self.packed_size = PACKED_SIZE if slots > 1 else 0
        self.stride = slot_size if slots == 1 else -(-slot_size // 64) * 64 + _SLOT_SKEW
        self.payload = anonymous_memory(self.packed_size + self.stride * slots)
        self._export_type: Any = _export_type(len(self.payload))
        self.address = ctypes.addressof(self._export_type.from_buffer(self.payload))
        self._layout: Layout | None = None
        self._packed: Layout | None = None

    @property
    def layout(self) -> Layout:
        """The plain layout: a slot for each message. Built when first asked for."""
        if self._layout is None:
            layout = Layout(self, self.packed_size, self.stride)
            layout.headers.bases[:] = layout.bases
            layout.headers.sizes[:] = constant("L", self.slot_size, self.slots)
            # Kept once it is whole: where memory ran out, half of one would cut what it receives.
            self._layout = layout
        return self._layout

    def packed(self, size: int) -> Layout:
        """The packed layout: messages of exactly ``size`` bytes lie back to back.

        Each header has two iovecs: the message's place in the row, and, for what is longer after
        all, the rest of its slot, so that `unpack` finds the second part where it belongs.
        """
        layout = self._packed
        if layout is None:
            layout = self._packed = Layout(self, 0, 0, iovecs_each=2)
        if layout.stride != size:
            headers, slots = layout.headers, self.slots
            layout.stride = 0  # nobody's size, until all of this is done
            layout.bases = sequence(self.address, size, slots)
            headers.bases[::2] = layout.bases
            headers.sizes[::2] = constant("L", size, slots)
            rest = self.address + self.packed_size + size
            headers.bases[1::2] = sequence(rest, self.stride, slots)
            headers.sizes[1::2] = constant("L", self.slot_size - size, slots)
            layout.stride = size
        return layout

    def unpack(self, count: int) -> Layout:
        """Move the beginnings of ``count`` packed messages into their slots.

        Returns a layout with the headers as they are and the messages where the plain layout has
        them.
        """
        packed = self._packed
        assert packed is not None
        payload, size = self.payload, packed.stride
        for index in range(count):
            slot = self.packed_size + index * self.stride
            payload[slot : slot + size] = payload[index * size : (index + 1) * size]
        unpacked = copy.copy(packed)
        unpacked.start, unpacked.stride = self.layout.start, self.layout.stride
        unpacked.bases = self.layout.bases
        return unpacked

    def slot(self, index: int) -> memoryview:
        """One slot, writable. For use during a receive call only: no token covers it."""
        start = self.packed_size + index * self.stride
        return memoryview(self.payload)[start : start + self.slot_size]

    @trio.lowlevel.enable_ki_protection
    def lend(self) -> Token:
        """Lend the slab to whoever holds the token. It is given back when the token is gone."""
        token = _TOKEN.replace()
        watch = _Watch(token, _give_back)
        watch.slab = self
        _watched[id(watch)] = watch
        self.lent = True
        return token

    def view(self, token: Token) -> memoryview:
        """The whole payload memory, writable.

        The view holds the token, and so does every view that is made of it.
        """
        export = self._export_type.from_buffer(self.payload)
        export.token = token
        return memoryview(export).cast("B")
