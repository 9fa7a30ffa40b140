# What a piece of work is measured on: a filled socket, a sink, and the clock.
#
# Filling and draining are apart. A turn first puts its datagrams into the socket's receive buffer,
# then takes the CPU time of the work that empties it, then counts what arrived in the sinks. So
# the cost of the other ends is in no figure, and no second process competes for the processor. The
# first turns are left out.
#
# It knows nothing of who does the work: a contender gets a scene and goes through its turns.

from __future__ import annotations

import gc
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING

from ._traffic import Load, Sinks, Traffic, open_socket, payload

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from ._shapes import Shape
    from ._traffic import Address

WARM_UP_TURNS = 3
MOST_TURNS = 1_000


@dataclass
class Scene:
    """The sockets of one sitting of one contender, and what the sitting cost."""

    shape: Shape
    sock: socket.socket
    traffic: Traffic
    sink: socket.socket
    budget_ns: int
    """The turns end when this much CPU time was measured."""
    most_datagrams: int | None
    """The most that a turn fills in. Contenders that go one by one need no long turns."""
    ns: int = field(default=0, init=False)
    datagrams: int = field(default=0, init=False)

    @property
    def ns_each(self) -> float:
        """CPU nanoseconds a datagram."""
        return self.ns / self.datagrams

    @property
    def sink_address(self) -> Address:
        """Where the pumping work forwards to."""
        address: Address = self.sink.getsockname()
        return address

    def receiving_turns(self) -> Iterator[Load]:
        """What waits in the socket is to be received in the turn."""
        return self._turns(self._fill, None)

    def forwarding_turns(self) -> Iterator[Load]:
        """What waits in the socket is to be sent on to the sink in the turn."""
        return self._turns(self._fill, Sinks([self.sink]))

    def answering_turns(self) -> Iterator[Load]:
        """What waits in the socket is to be sent back to its senders in the turn."""
        return self._turns(self._fill, Sinks(self.traffic.senders))

    def sending_turns(self) -> Iterator[Load]:
        """So much is to be sent, to the targets in turn."""
        pattern = self.shape.pattern(self.shape.send_trains)
        load = Load(sum(n for _, n in pattern), sum(size * n for size, n in pattern))
        return self._turns(lambda: load, Sinks(self._target_sockets))

    @property
    def targets(self) -> list[Address]:
        """Where the trains of the sending work go, in turn."""
        return Sinks(self._target_sockets).addresses

    def packets(self) -> list[tuple[bytes, Address]]:
        """The sending work of a turn, datagram by datagram."""
        pattern = self.shape.pattern(self.shape.send_trains)
        return [
            (payload(size), target)
            for (size, segments), target in zip(pattern, cycle(self.targets), strict=False)
            for _ in range(segments)
        ]

    @property
    def _target_sockets(self) -> list[socket.socket]:
        return [self.sink] if self.shape.peers == 1 else self.traffic.senders

    def _fill(self) -> Load:
        return self.traffic.send(self.shape.round_trains, self.most_datagrams)

    def _turns(self, prepare: Callable[[], Load], sinks: Sinks | None) -> Iterator[Load]:
        for turn in range(MOST_TURNS):
            load = prepare()
            before = time.process_time_ns()
            yield load
            ns = time.process_time_ns() - before
            if sinks:
                sinks.empty(load.nbytes)
            if turn >= WARM_UP_TURNS:
                self.ns += ns
                self.datagrams += load.datagrams
                if self.ns >= self.budget_ns:
                    return


@contextmanager
def open_scene(
    shape: Shape,
    family: socket.AddressFamily,
    budget_ns: int,
    most_datagrams: int | None = None,
) -> Iterator[Scene]:
    """Sockets for one sitting. They are new each time, so no sitting leaves the next anything."""
    with ExitStack() as stack:
        sock = stack.enter_context(open_socket(family))
        sink = stack.enter_context(open_socket(family))
        traffic = Traffic(shape, sock)
        stack.callback(traffic.close)
        gc.collect()
        yield Scene(shape, sock, traffic, sink, budget_ns, most_datagrams)
