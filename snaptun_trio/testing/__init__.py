"""What a program is tested with: networks of memory, bad networks, and a scripted kernel."""

from __future__ import annotations

from ._channels import MemoryChannel, memory_channel_pair
from ._conformance import check_batch_channel
from ._impair import ImpairedChannel, ImpairedDatagram, impair
from ._scripted import ScriptedSocket

__all__ = [
    "ImpairedChannel",
    "ImpairedDatagram",
    "MemoryChannel",
    "ScriptedSocket",
    "check_batch_channel",
    "impair",
    "memory_channel_pair",
]

for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
