# What a relay counts of one direction, and what it says of it.
#
# Receivers and senders count for themselves; a direction's sums are theirs, of those that are gone
# as well, and beside them what was received and never given to a sender, by reason.

from __future__ import annotations

from collections import Counter
from errno import errorcode
from types import MappingProxyType
from typing import TYPE_CHECKING

from ._relay_statistics import RelayFlow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._receiver import UdpBatchReceiver
    from ._sender import UdpBatchSender


class SessionCounts:
    """What became of sessions, see `RelayStatistics`."""

    def __init__(self) -> None:
        self.created = self.expired = self.evicted = self.moved = self.failed = self.closed = 0
        self.shed = 0


class FlowAccount:
    """The counts of one direction.

    Args:
      discarded: the reason for which its senders discard something.
    """

    def __init__(self, discarded: str) -> None:
        self._discarded = discarded
        self.added = 0
        self.handing_out = 0
        self._dropped: Counter[str] = Counter()
        self._in = (0, 0, 0, 0, 0)  # of receivers that are gone
        self._out = (0, 0, 0, 0, 0)  # of senders

    def drop(self, reason: str, datagrams: int) -> None:
        """Something was received, and will not be sent."""
        self._dropped[reason] += datagrams

    def finish(self) -> None:
        """The relay has ended: nothing that is still being handed out will be sent."""
        self._dropped["closed"] += self.handing_out
        self.handing_out = 0

    def forget_receiver(self, receiver: UdpBatchReceiver) -> None:
        """A receiver is closed."""
        self._in = _sum(self._in, _received(receiver))

    def forget_sender(self, sender: UdpBatchSender) -> None:
        """A sender is closed."""
        self._out = _sum(self._out, _sent(sender))
        self._dropped.update(self._not_sent(sender))

    def snapshot(
        self, receivers: Iterable[UdpBatchReceiver], senders: Iterable[UdpBatchSender]
    ) -> RelayFlow:
        """All counts, with those of the receivers and senders that there are."""
        receive_calls, trains_in, datagrams_in, bytes_in, buffers = _sum(
            self._in, *map(_received, receivers)
        )
        there = list(senders)
        send_calls, trains_out, datagrams_out, bytes_out, waiting = _sum(
            self._out, *map(_sent, there)
        )
        dropped = self._dropped.copy()
        for sender in there:
            if sender._flush.failed or sender._discarded:
                dropped.update(self._not_sent(sender))
        return RelayFlow(
            datagrams_in=datagrams_in,
            bytes_in=bytes_in,
            datagrams_added=self.added,
            datagrams_out=datagrams_out,
            bytes_out=bytes_out,
            datagrams_waiting=waiting + self.handing_out,
            dropped=MappingProxyType({reason: n for reason, n in dropped.items() if n}),
            buffers_dropped_by_kernel=buffers,
            receive_calls=receive_calls,
            trains_in=trains_in,
            send_calls=send_calls,
            trains_out=trains_out,
        )

    def _not_sent(self, sender: UdpBatchSender) -> Counter[str]:
        """What a sender was given and did not send, by reason."""
        reasons: Counter[str] = Counter()
        for number, datagrams in sender._flush.failed.items():
            reasons[errorcode.get(number, str(number))] += datagrams
        if sender._discarded:
            reasons[self._discarded] += sender._discarded
        return reasons


def _sum(*counts: tuple[int, int, int, int, int]) -> tuple[int, int, int, int, int]:
    first, second, third, fourth, fifth = map(sum, zip(*counts, strict=True))
    return first, second, third, fourth, fifth


# Not by `statistics`, which asks the kernel for more than is wanted here, of thousands.


def _received(receiver: UdpBatchReceiver) -> tuple[int, int, int, int, int]:
    receiver._count_drops()
    drops = receiver._drops or 0
    return receiver._calls, receiver._trains, receiver._datagrams, receiver._bytes, drops


def _sent(sender: UdpBatchSender) -> tuple[int, int, int, int, int]:
    flush = sender._flush
    return flush.calls, flush.trains, flush.datagrams, flush.nbytes, sender._queue.datagrams
