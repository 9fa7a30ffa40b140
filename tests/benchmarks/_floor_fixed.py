# The floor with a fixed batch of 64 messages: a C program that nobody tuned for the traffic.
#
# It is the floor's own code, so GRO, GSO and the gathering are the same, and what it forwards
# leaves from the memory it came into. Only the number of messages in a call does not follow the
# shape.

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _floor
from ._method import FIXED_FLOOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._scene import Scene

NAME = FIXED_FLOOR
SLOTS = 64


def pump(scene: Scene) -> None:
    """Everything that came in goes on to the sink."""
    _floor.pump(scene, SLOTS)


WORKS: dict[str, Callable[[Scene], None]] = {"pump": pump}
