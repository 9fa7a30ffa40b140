# The programs: what is measured for the second table beside the first table's rows.
#
# A program is done by several sides, each in the process of a contender. In each round all sides
# sit once, one straight after the other. What a program does is in the file that its `sit` is from.

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from . import (
    _pingpong,
    _program_dns,
    _program_hostile,
    _program_peers,
    _program_quiet,
    _program_relay,
    _program_serve,
    _program_tasks,
)
from ._beside import Comparison
from ._loops import NAMES as LOOPS
from ._method import FLOOR, OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._worker import Contender


class Sit(Protocol):
    """One sitting of a contender; CPU nanoseconds of each of what the program counts."""

    def __call__(self, contender: Contender, variant: str, *, quick: bool) -> float: ...


class Side(NamedTuple):
    """Who does the program, and how."""

    name: str
    """What the table calls it."""
    contender: str
    variant: str
    sit: Sit


class Pair(NamedTuple):
    """One line of the table."""

    ours: Side
    other: Side
    aim: float | None = None


@dataclass(frozen=True)
class Program:
    """A kind of program, and who is set beside whom."""

    name: str
    title: str
    pairs: tuple[Pair, ...]
    note: Callable[[Contender], str] | None = None
    """What is to be said of it on this machine; asked in our contender's process."""

    @property
    def id(self) -> str:
        """What a selection is matched against."""
        return f"program/{self.name}"

    def among(self, contenders: Mapping[str, Contender]) -> Program:
        """The program with those pairs that have both contenders."""
        pairs = [p for p in self.pairs if {p.ours.contender, p.other.contender} <= set(contenders)]
        return Program(self.name, self.title, tuple(pairs), self.note)


def beside_peers(
    sit: Sit, variants: Mapping[str, Mapping[str, float | None]], peers: tuple[str, ...]
) -> tuple[Pair, ...]:
    """Each variant of ours beside each peer; what is aimed at is given by variant and peer."""
    return tuple(
        Pair(Side(variant, OURS, variant, sit), Side(peer, peer, peer, sit), aims.get(peer))
        for variant, aims in variants.items()
        for peer in peers
    )


def dns(outstanding: int) -> Program:
    """A server under so many outstanding requests."""
    return Program(
        f"dns-{outstanding}",
        f"server under {outstanding} outstanding requests, a request",
        beside_peers(
            partial(_program_dns.sit, outstanding=outstanding),
            {_program_dns.HANDLER: {"uvloop": 1.0}, _program_dns.BY_PACKET: {}},
            ("trio.socket", *LOOPS),
        ),
    )


def serve(peers: int, variants: Mapping[str, Mapping[str, float | None]]) -> Program:
    """A server with so many peers, each with one request under way."""
    sit = partial(_program_serve.sit, peers=peers)
    bare = Side(_program_dns.BY_PACKET, OURS, _program_dns.BY_PACKET, sit)
    pairs = [
        Pair(Side(variant, OURS, variant, sit), bare, aims.get(_program_dns.BY_PACKET))
        for variant, aims in variants.items()
    ]
    return Program(
        f"serve-{peers}",
        f"server with {peers} peers that each wait for their answer, a request",
        (*pairs, *beside_peers(sit, variants, ("trio.socket", *LOOPS))),
    )


def hostile() -> Program:
    """Hostile traffic beside normal."""
    sides = [
        Side(name, OURS, variant, partial(_program_hostile.sit, traffic=name))
        for variant in (_program_hostile.FORWARDING, _program_hostile.ANSWERING)
        for name in (_program_hostile.HOSTILE, _program_hostile.NORMAL)
    ]
    pairs = [
        Pair(ours._replace(name=f"{ours.name}, {ours.variant}"), other, 4.0)
        for ours, other in zip(sides[::2], sides[1::2], strict=True)
    ]
    title = "handler pump under hostile traffic, a datagram"
    return Program("hostile", title, tuple(pairs), _program_hostile.parts_of)


def many_peers() -> Program:
    """Ten thousand peers beside one."""
    one, many = (
        partial(_program_peers.sit, peers=peers)
        for peers in (_program_peers.ONE, _program_peers.MANY)
    )
    pairs = [
        Pair(Side(work, OURS, work, many), Side("one peer", OURS, work, one), 1.33)
        for work in ("receive", "look")
    ]
    return Program("peers", "10 000 peers, a datagram", tuple(pairs))


def programs() -> list[Program]:
    """All of them, in the table's order."""
    direct, by_packet, handler, trio_socket = (
        "receiver and sender",
        "receiver and sender, by packet",
        "handler pump",
        "trio.socket",
    )
    return [
        Program(
            "round-trip",
            "one datagram there and back, a round trip",
            beside_peers(
                _pingpong.sit,
                {direct: {trio_socket: 0.9}, by_packet: {}, handler: {trio_socket: 0.9}},
                (trio_socket, FLOOR),
            ),
        ),
        dns(20),
        dns(500),
        serve(
            _program_serve.FEW,
            {
                _program_serve.SERVE: {"uvloop": 2.0},
                _program_serve.BATCHES: {},
                _program_serve.AT_ONCE: {"uvloop": 1.0},
            },
        ),
        serve(
            _program_serve.MANY,
            {
                _program_serve.SERVE: {_program_dns.BY_PACKET: 2.0},
                _program_serve.BATCHES: {_program_dns.BY_PACKET: 2.0},
                _program_serve.AT_ONCE: {},
            },
        ),
        Program(
            "tasks",
            "64 tasks that each send single packets, a packet",
            beside_peers(
                _program_tasks.sit,
                {_program_tasks.ONE_SENDER: {"uvloop": 1.0}},
                (trio_socket, *LOOPS),
            ),
        ),
        Program(
            "quiet",
            "1000 quiet sockets, one datagram each in turn, a datagram",
            beside_peers(
                _program_quiet.sit,
                {
                    _program_quiet.GROUP: {"uvloop": 0.7},
                    _program_quiet.RECEIVERS: {trio_socket: 1.0},
                },
                (trio_socket, *LOOPS),
            ),
        ),
        Program(
            "relay",
            f"relay with a socket for each of {_program_relay.CLIENTS} clients, a round trip",
            beside_peers(_program_relay.sit, {_program_relay.GROUP: {}}, LOOPS),
        ),
        hostile(),
        many_peers(),
    ]


def measure(
    program: Program, contenders: Mapping[str, Contender], *, rounds: int, quick: bool
) -> list[Comparison]:
    """Let all sides sit, round by round. Raises what went wrong, if anything was lost."""
    sides = dict.fromkeys(side for pair in program.pairs for side in (pair.ours, pair.other))
    ns: dict[Side, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, figures in ns.items():
            figures.append(side.sit(contenders[side.contender], side.variant, quick=quick))
    note = f" ({program.note(contenders[OURS])})" if program.note else ""
    return [
        Comparison(
            program.title + note,
            pair.ours.name,
            pair.other.name,
            tuple(ns[pair.ours]),
            tuple(ns[pair.other]),
            pair.aim,
        )
        for pair in program.pairs
    ]
