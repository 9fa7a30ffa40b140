# What a `SocketIO` hands out: the memory that it receives into, and a batch that it sends.
#
# Backends have their own of both; here stands what those above `_kernel` know of them.

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .._messages import Messages


class Memory(Protocol):
    """What a pool lends to receive calls, and takes back by itself."""

    def get(self) -> memoryview:
        """One writable buffer."""

    def statistics(self) -> tuple[int, int, int, int, int, int]:
        """Slabs in use, idle, most in use, reused, allocated, allocated beyond the capacity."""


class Outgoing(Protocol):
    """A batch in the form in which it is sent, and how far it got.

    A refused message costs no more than the call that refused it: it is tried again, or skipped,
    without touching those behind it. It counts what it sent, so nothing is counted twice or never.
    """

    @property
    def content(self) -> Messages:
        """What is sent, in the order in which it leaves."""

    @property
    def more(self) -> bool:
        """Whether anything is left that was neither sent nor skipped."""

    @property
    def messages(self) -> int:
        """Messages that the kernel took so far."""

    @property
    def datagrams(self) -> int:
        """Datagrams in them."""

    @property
    def nbytes(self) -> int:
        """Payload bytes in them."""

    @property
    def work(self) -> int:
        """What the messages of the last call count for: each 1, and 1 more for each 16 KiB."""

    @property
    def train(self) -> int:
        """The train that the next message begins in."""

    @property
    def offset(self) -> int:
        """The payload bytes before it in that train."""

    @property
    def end_train(self) -> int:
        """After a refusal: the train that the refused message ends in, or the one behind it."""

    @property
    def end_offset(self) -> int:
        """The payload bytes before its end in that train, 0 where it ends with a train."""

    @property
    def segmented(self) -> bool:
        """Whether the refused message asks the kernel to segment."""

    def send(self, fd: int, budget: int, segments: int, single: bool) -> int:
        """See `SocketIO.send`. A message has at most so many ``segments``; 0 is no GSO."""

    def place_of(self, train: int, /) -> int:
        """Where one of its trains stood in what was given."""

    def skip(self, train: int, offset: int, /) -> object:
        """Leave out what was refused, and go on from there."""
