# The rows: which program, under how much, and who does it.

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

OURS, TRIO_SOCKET = "snaptun_trio", "trio.socket"
ANSWER, PUMP = "snaptun_trio, answer=", "snaptun_trio, a pump"
LOOPS = ("asyncio", "uvloop")
TASKS = tuple(f"{loop}, tasks" for loop in LOOPS)
QUESTIONS = ("dns_forwarder", "dns_server")
CLIENTS = 20


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    program: str
    """A file of docs/examples."""
    together: int
    """So many datagrams come at a time, or so many questions are outstanding."""
    clients: int = CLIENTS
    """Who asks, each from a port of its own."""

    @property
    def id(self) -> str:
        """What a selection is matched against."""
        of_one = "" if self.clients == CLIENTS else f"/{self.clients}"
        return f"{self.program}/{self.together}{of_one}"

    @property
    def asks(self) -> bool:
        """Whether each datagram is a question of dnsperf's that gets an answer."""
        return self.program in QUESTIONS

    @property
    def load(self) -> str:
        """As the table calls it."""
        if self.asks:
            whose = "1 client" if self.clients == 1 else f"{self.clients} clients"
            return f"{self.together} outstanding, {whose}"
        return f"{self.together} at a time" if self.together > 1 else "one at a time"

    def contenders(self) -> tuple[str, ...]:
        """Who does it, ours first."""
        server = self.program == "dns_server"
        names = LOOPS + TASKS if server else LOOPS
        loops = (name for name in names if "uvloop" not in name or find_spec("uvloop"))
        more = (ANSWER, PUMP, TRIO_SOCKET) if server else ()
        return (OURS, *more, *loops)


ROWS = (
    *(
        Row(program, together)
        for program in ("syslog_collector", "statsd_fan_out", "rtp_recorder")
        for together in (1, 32)
    ),
    *(Row(program, together) for program in QUESTIONS for together in (20, 500)),
    Row("dns_server", 20, clients=1),
)
