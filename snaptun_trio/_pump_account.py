# A pump's account: what became of every datagram between its two ends.
#
# The law, at any time:
#
#     received + added == sent + failed + discarded + waiting + taken
#
# What was given to the sending channel is the outlet's part of it. This file counts; it moves
# nothing, and must not know tasks or channels.

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._batch import PacketBatch


class PumpAccount:
    """Counts batches and datagrams, by what becomes of them.

    Attributes:
      batches_received, datagrams_received: what the receiving channel gave.
      datagrams_added: what the application, or a handler, put in beyond that.
      datagrams_taken: what the application took.
      batches_discarded, datagrams_discarded: what was given up before it reached the outlet.
      waiting: datagrams on their way from the receiving task to whoever is next.
    """

    def __init__(self) -> None:
        self.batches_received = self.datagrams_received = 0
        self.datagrams_added = self.datagrams_taken = 0
        self.batches_discarded = self.datagrams_discarded = 0
        self.waiting = 0

    def received(self, batch: PacketBatch) -> None:
        """A batch came in."""
        self.batches_received += 1
        self.datagrams_received += len(batch)

    def answered(self, received: int, answered: int) -> None:
        """A handler answered so many datagrams with so many."""
        if not answered:
            self.batches_discarded += 1
        if answered > received:
            self.datagrams_added += answered - received
        else:
            self.datagrams_discarded += received - answered

    def taken(self, batch: PacketBatch) -> None:
        """The application took a batch that waited for it."""
        self.waiting -= len(batch)
        self.datagrams_taken += len(batch)

    def added_and_discarded(self, batch: PacketBatch) -> None:
        """What the application wanted sent is given up."""
        self.datagrams_added += len(batch)
        self._discard(batch)

    def discarded(self, batch: PacketBatch) -> None:
        """A batch that waited is given up."""
        self.waiting -= len(batch)
        if batch:
            self._discard(batch)

    def _discard(self, batch: PacketBatch) -> None:
        self.batches_discarded += 1
        self.datagrams_discarded += len(batch)
