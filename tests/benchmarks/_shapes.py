# The shapes of traffic: how datagrams lie in trains, and how many peers they come from.
#
# A shape is data. This file knows no socket and no clock.

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice


@dataclass(frozen=True)
class Shape:
    """One kind of traffic."""

    name: str
    trains: tuple[tuple[int, int], ...]
    """Datagram size and number of datagrams of each train; the pattern repeats."""
    floor_slots: int
    """Messages in one receive call of the floor: what was fastest when all powers of two from 4
    to 1024 were tried. Long trains want few, or the calls' memory does not fit the cache."""
    round_trains: int
    """Trains that are put into the socket before each turn, as far as they fit."""
    send_trains: int
    """Trains in one batch of the sending work: about a megabyte, or 256 datagrams."""
    peers: int = 1
    """Senders; the trains come from each in turn."""

    def pattern(self, trains: int) -> list[tuple[int, int]]:
        """The first so many trains."""
        return list(islice(cycle(self.trains), trains))


SHAPES = (
    Shape("50x1200", ((1200, 50),), floor_slots=8, round_trains=112, send_trains=16),
    Shape("16x1200", ((1200, 16),), floor_slots=32, round_trains=256, send_trains=48),
    Shape("64x64", ((64, 64),), floor_slots=64, round_trains=512, send_trains=64),
    Shape("1x1200", ((1200, 1),), floor_slots=128, round_trains=3072, send_trains=256),
    Shape("64p 1x100", ((100, 1),), floor_slots=128, round_trains=3072, send_trains=256, peers=64),
    Shape(
        "mix", ((64, 1), (512, 1), (1400, 1)), floor_slots=64, round_trains=3072, send_trains=255
    ),
)

PEER_COUNTS = (1, 100, 1_000, 10_000)


def many_peers(peers: int) -> Shape:
    """Single datagrams of 100 bytes from so many peers in turn."""
    pattern = ((100, 1),)
    return Shape(f"{peers}p", pattern, 128, round_trains=5_000, send_trains=256, peers=peers)
