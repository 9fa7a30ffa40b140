# What was asked of a relay, checked, and the same for each of its processes.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from ._kernel._sockets import SocketOptions


@attrs.frozen(kw_only=True)
class RelaySettings:
    """See the arguments of `UdpRelay`; ``options`` are those of the sockets towards targets."""

    duplicate: bool
    max_sessions: int | None
    session_rate: int
    idle_timeout: float
    grace: float
    options: SocketOptions

    def as_arguments(self) -> dict[str, Any]:
        """What a `UdpRelay` is made with that has these; JSON can say it."""
        arguments = attrs.asdict(self, recurse=False)
        del arguments["options"]
        return arguments | self.options._asdict()
