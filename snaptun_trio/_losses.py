# ReceiveLosses: what did not come in with a receive call.
#
# A value, for the receiver's account and for the batch's. It knows nothing of either.

from __future__ import annotations

from typing import NamedTuple


class ReceiveLosses(NamedTuple):
    """What did not come in with a receive call. A sound setup never has any."""

    cut: frozenset[int] = frozenset()
    """The trains of which a datagram arrived cut, its last one, by index."""
    datagrams: int = 0
    """Datagrams of which nothing fitted into the buffer."""
    nbytes: int = 0
    """Bytes that did not fit."""
    trains_unknown: int = 0
    """Messages left out: their control messages came cut, so nobody can tell where their datagrams
    end."""
    bytes_unknown: int = 0
    """The bytes of those messages."""
    error: OSError | None = None
    """An asynchronous error that ended the call after the messages."""

    @property
    def truncated(self) -> int:
        """Datagrams that arrived cut."""
        return len(self.cut)
