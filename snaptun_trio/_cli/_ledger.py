# The counts of a path, and whether they add up. Pure arithmetic: this file knows no process and no
# socket, and it never mends a count: what is not accounted for is said.
#
#     sent == received by the forwarder + dropped on the way to it
#     sent by the forwarder == arrived + dropped on the way from it        and so on
#
# The kernel counts what it drops in buffers. On a socket with GRO a buffer is what one send call's
# message carried, a whole train; on a socket without it a buffer is a datagram. So what is missing
# is first compared with that in buffers, which is exact; once that holds, the datagrams that are
# missing are the ones that were in the dropped buffers.

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from ._child import Facts

# UDP_MAX_SEGMENTS of include/linux/udp.h, of Linux 6.9 and newer; before that it was 64.
MOST_DATAGRAMS_IN_A_MESSAGE = 128
DROPPED = "buffers_dropped_by_kernel"


@attrs.frozen(kw_only=True)
class Ledger:
    """What became of all datagrams. It adds up when there are no ``problems``."""

    sent: int
    delivered: int
    """Those that arrived unharmed, each counted once."""
    dropped: int | None
    """Those that the kernel dropped; `None` where it does not tell."""
    unaccounted: int
    """Those that were neither delivered nor dropped."""
    problems: list[str]


def balance(sender: Facts, forwarder: Facts, sink: Facts, train: int) -> Ledger:
    """The ledger of datagrams that were sent in trains of so many, from each part's counts."""
    # No message carries more than a train. So if the average is a train, each is one.
    all_trains = sender["trains_sent"] * train == sender["datagrams_sent"]
    lost, why = lost_between("to the forwarder", sender, forwarder, train if all_trains else None)
    lost_later, why_later = lost_between("from the forwarder to the sink", forwarder, sink)
    sent, delivered, refused = sender["datagrams_sent"], sink["delivered"], "datagrams_failed"
    inside = forwarder["datagrams_received"] - forwarder["datagrams_sent"] - forwarder[refused]
    unaccounted = sent - delivered - lost - lost_later
    counts = {
        "datagrams the kernel refused to take from the forwarder": forwarder[refused],
        "datagrams arrived with a wrong checksum": sink["corrupt"],
        "datagrams arrived more than once": sink["duplicates"],
        "datagrams are missing in the forwarder, between receiving and sending": inside,
        "of those sent are neither delivered nor dropped by the kernel": unaccounted,
    }
    problems = [*why, *why_later, *(f"{count} {what}" for what, count in counts.items() if count)]
    told = None not in (forwarder[DROPPED], sink[DROPPED])
    return Ledger(
        sent=sent,
        delivered=delivered,
        dropped=lost + lost_later if told else None,
        unaccounted=unaccounted,
        problems=problems,
    )


def lost_between(
    way: str, sender: Facts, receiver: Facts, train: int | None = None
) -> tuple[int, list[str]]:
    """The datagrams that the kernel's counter accounts for, and what does not add up.

    ``train`` is how many datagrams each message carried, where that is the same for all.
    """
    buffers, gro = receiver[DROPPED] or 0, receiver["gro"]
    missing = sender["datagrams_sent"] - receiver["datagrams_received"]
    missing_buffers = sender["trains_sent"] - receiver["trains_received"] if gro else missing
    least, most = (train or 1, train or MOST_DATAGRAMS_IN_A_MESSAGE) if gro else (1, 1)
    dropped = min(max(missing, buffers * least), buffers * most)
    if missing_buffers != buffers:
        unit = "messages" if gro else "datagrams"
        told = "does not say" if receiver[DROPPED] is None else f"counted {buffers} drops"
        return dropped, [f"{way}: {missing_buffers} {unit} are missing, and the kernel {told}"]
    if missing != dropped:
        held = f"the {buffers} dropped messages held {dropped}"
        return dropped, [f"{way}: {missing} datagrams are missing, and {held}"]
    return dropped, []
