# The counts of one leg, and whether they add up. Pure arithmetic: this file knows no process and
# no socket, and it never mends a count: what is not accounted for is said.
#
# The kernel counts what it drops in buffers. On a socket with GRO a buffer is what one send call's
# message carried, a whole train; on a socket without it a buffer is a datagram. So each hop is
# balanced in buffers, which is exact in both cases:
#
#     messages sent == messages received + buffers dropped       (with GRO on the receiving socket)
#     datagrams sent == datagrams received + buffers dropped     (without)
#
# Once that holds, every missing message is a dropped buffer, and the datagrams that are missing
# are the ones that were in them.

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

# UDP_MAX_SEGMENTS of include/linux/udp.h, of Linux 6.9 and newer; before that it was 64.
MOST_DATAGRAMS_IN_A_MESSAGE = 128


@attrs.frozen(kw_only=True)
class Hop:
    """What one process sent and the next one received."""

    name: str
    messages_sent: int
    datagrams_sent: int
    messages_received: int
    datagrams_received: int
    buffers_dropped: int | None
    """The receiving socket's drop counter; `None` where the system does not tell."""
    gro: bool
    """Whether the receiving socket takes whole trains."""
    train: int | None = None
    """How many datagrams each message carried, where that is the same for all."""

    @property
    def buffers_missing(self) -> int:
        if self.gro:
            return self.messages_sent - self.messages_received
        return self.datagrams_sent - self.datagrams_received

    @property
    def datagrams_missing(self) -> int:
        return self.datagrams_sent - self.datagrams_received

    @property
    def dropped(self) -> int:
        """The datagrams that the kernel's counter accounts for."""
        counter = self.buffers_dropped or 0
        if self.gro and counter == self.buffers_missing:
            shortest, longest = self._limits()
            return min(max(self.datagrams_missing, counter * shortest), counter * longest)
        return counter * (self.train or 1) if self.gro else counter

    def problems(self) -> Iterator[str]:
        counter = self.buffers_dropped or 0
        if self.buffers_missing != counter:
            unit = "messages" if self.gro else "datagrams"
            told = "does not say" if self.buffers_dropped is None else f"counted {counter} drops"
            yield (f"{self.name}: {self.buffers_missing} {unit} are missing, and the kernel {told}")
        elif self.datagrams_missing != self.dropped:
            yield (
                f"{self.name}: {self.datagrams_missing} datagrams are missing, and "
                f"the {counter} dropped messages held {self.dropped}"
            )

    def _limits(self) -> tuple[int, int]:
        if self.train is not None:
            return self.train, self.train
        return 1, MOST_DATAGRAMS_IN_A_MESSAGE


@attrs.frozen(kw_only=True)
class Ledger:
    """All counts of one leg. It adds up when `problems` is empty."""

    hops: tuple[Hop, Hop]
    """From the sender to the forwarder, and from the forwarder to the sink."""
    delivered: int
    """Datagrams that the sink got unharmed, each counted once."""
    duplicates: int
    corrupt: int
    refused: int
    """Datagrams that the kernel refused to take from the forwarder."""

    @property
    def sent(self) -> int:
        return self.hops[0].datagrams_sent

    @property
    def dropped(self) -> int:
        return sum(hop.dropped for hop in self.hops)

    @property
    def drops_are_told(self) -> bool:
        return all(hop.buffers_dropped is not None for hop in self.hops)

    @property
    def unaccounted(self) -> int:
        return self.sent - self.delivered - self.dropped

    @property
    def problems(self) -> list[str]:
        """What does not add up, in words; empty if everything does."""
        first, second = self.hops
        found = [*first.problems(), *second.problems()]
        if inside := first.datagrams_received - second.datagrams_sent - self.refused:
            found.append(
                f"the forwarder: {inside} datagrams are missing between receiving and sending"
            )
        for count, what in (
            (self.refused, "the kernel refused to take from the forwarder"),
            (self.corrupt, "arrived with a wrong checksum"),
            (self.duplicates, "arrived more than once"),
        ):
            if count:
                found.append(f"{count} datagrams {what}")
        if self.unaccounted:
            found.append(
                f"{self.sent} sent is not {self.delivered} delivered + {self.dropped} dropped by "
                f"the kernel: {self.unaccounted} are not accounted for"
            )
        return found
