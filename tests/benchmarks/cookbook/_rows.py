# The rows: which program, under how much, and who does it.

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

OURS, PUMP, TRIO_SOCKET = "snaptun_trio", "snaptun_trio, a pump", "trio.socket"
LOOPS = ("asyncio", "uvloop")
QUESTIONS = ("dns_forwarder", "dns_server")
CLIENTS = 20


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    program: str
    """A file of docs/examples."""
    together: int
    """So many datagrams come at a time, or so many questions are outstanding."""

    @property
    def id(self) -> str:
        """What a selection is matched against."""
        return f"{self.program}/{self.together}"

    @property
    def asks(self) -> bool:
        """Whether each datagram is a question of dnsperf's that gets an answer."""
        return self.program in QUESTIONS

    @property
    def load(self) -> str:
        """As the table calls it."""
        if self.asks:
            return f"{self.together} outstanding"
        return f"{self.together} at a time" if self.together > 1 else "one at a time"

    def contenders(self) -> tuple[str, ...]:
        """Who does it, ours first."""
        loops = tuple(name for name in LOOPS if name == "asyncio" or find_spec(name))
        more = (PUMP, TRIO_SOCKET) if self.program == "dns_server" else ()
        return (OURS, *more, *loops)


ROWS = (
    *(
        Row(program, together)
        for program in ("syslog_collector", "statsd_fan_out", "rtp_recorder")
        for together in (1, 32)
    ),
    *(Row(program, together) for program in QUESTIONS for together in (20, 500)),
)
