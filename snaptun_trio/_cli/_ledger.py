# The counts of a path, and whether they add up. Pure arithmetic: this file knows no process and no
# socket, and it never mends a count: what is not accounted for is said.
#
# The kernel counts what it drops in buffers. On a socket with GRO a buffer is what one send call's
# message carried, a whole train; on a socket without it a buffer is a datagram. So each hop is
# balanced in buffers, which is exact in both cases:
#
#     messages sent == messages received + buffers dropped       (with GRO on the receiving socket)
#     datagrams sent == datagrams received + buffers dropped     (without)
#
# Once that holds, the datagrams that are missing are the ones that were in the dropped buffers.

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
    trains_sent: int
    datagrams_sent: int
    trains_received: int
    datagrams_received: int
    buffers_dropped_by_kernel: int | None
    """The receiving socket's drop counter; `None` where the system does not tell."""
    gro: bool
    """Whether the receiving socket takes whole trains."""
    train: int | None = None
    """How many datagrams each message carried, where that is the same for all."""

    @property
    def missing(self) -> int:
        """Datagrams that were sent and not received."""
        return self.datagrams_sent - self.datagrams_received

    @property
    def dropped(self) -> int:
        """The datagrams that the kernel's counter accounts for."""
        buffers = self.buffers_dropped_by_kernel or 0
        if not self.gro:
            return buffers
        least, most = self.train or 1, self.train or MOST_DATAGRAMS_IN_A_MESSAGE
        return min(max(self.missing, buffers * least), buffers * most)

    def problems(self) -> Iterator[str]:
        """What does not add up."""
        lost = self.trains_sent - self.trains_received if self.gro else self.missing
        buffers = self.buffers_dropped_by_kernel
        if lost != (buffers or 0):
            unit = "messages" if self.gro else "datagrams"
            told = "does not say" if buffers is None else f"counted {buffers} drops"
            yield f"{self.name}: {lost} {unit} are missing, and the kernel {told}"
        elif self.missing != self.dropped:
            held = f"the {buffers} dropped messages held {self.dropped}"
            yield f"{self.name}: {self.missing} datagrams are missing, and {held}"


@attrs.frozen(kw_only=True)
class Ledger:
    """All counts of a path. It adds up when `problems` is empty."""

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
        """Datagrams that the sender sent."""
        return self.hops[0].datagrams_sent

    @property
    def dropped(self) -> int | None:
        """Datagrams that the kernel dropped; `None` where it does not tell."""
        told = all(hop.buffers_dropped_by_kernel is not None for hop in self.hops)
        return sum(hop.dropped for hop in self.hops) if told else None

    @property
    def unaccounted(self) -> int:
        """Datagrams that were sent, and neither delivered nor dropped."""
        return self.sent - self.delivered - (self.dropped or 0)

    @property
    def problems(self) -> list[str]:
        """What does not add up, in words."""
        first, second = self.hops
        inside = first.datagrams_received - second.datagrams_sent - self.refused
        counts = {
            "datagrams the kernel refused to take from the forwarder": self.refused,
            "datagrams arrived with a wrong checksum": self.corrupt,
            "datagrams arrived more than once": self.duplicates,
            "datagrams are missing in the forwarder, between receiving and sending": inside,
            "of those sent are neither delivered nor dropped by the kernel": self.unaccounted,
        }
        found = [f"{count} {what}" for what, count in counts.items() if count]
        return [*first.problems(), *second.problems(), *found]
