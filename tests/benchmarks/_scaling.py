# Two processes on one port (SO_REUSEPORT) against one.
#
# The kernel spreads a thousand flows over the processes' sockets while those wait. Then the
# processes empty them from the same moment on, so no sender competes with them for the processors:
# what is measured is what the receivers can carry. They wait for the moment in a loop and not in
# the scheduler, because emptying takes but milliseconds.

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from snaptun_trio import UdpBatchReceiver

from ._fact import Fact
from ._shapes import Shape
from ._traffic import HANG_GUARD, UDP_GRO, Traffic, open_socket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

FLOWS = Shape("1000 flows", ((1200, 1),), 128, round_trains=12_000, send_trains=1, peers=1_000)
RECEIVE_BUFFER = 16 << 20  # where the program may; the longer a drain, the surer its figure
LEAD_NS = 20_000_000  # from the order to its moment
WARM_UP_ROUNDS = 3
MOST_BATCHES = 10_000


async def receive_all(sock: socket.socket, orders: Connection) -> None:
    """The library: follow the orders with a receiver."""
    receiver = UdpBatchReceiver(sock)
    for _ in follow(orders):
        datagrams = 0
        for _ in range(MOST_BATCHES):
            try:
                datagrams += len(receiver.receive_nowait())
            except trio.WouldBlock:
                break
            await trio.lowlevel.checkpoint()
        orders.send(datagrams)


def receive_all_in_c(sock: socket.socket, orders: Connection) -> None:
    """The floor: follow the orders with nothing but system calls."""
    from . import _floor

    sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    with _floor.open_floor(FLOWS.floor_slots) as floor:
        for _ in follow(orders):
            nbytes = _floor.LIBRARY.floor_receive_all(floor, sock.fileno())
            _floor.check(nbytes)
            orders.send(nbytes // FLOWS.trains[0][0])


def follow(orders: Connection) -> Iterator[None]:
    """Wait for each ordered moment, and answer afterwards with wall and CPU nanoseconds."""
    orders.send(None)  # ready: the socket is set up, so it may be filled
    while (moment := orders.recv()) is not None:
        cpu = 0
        while time.perf_counter_ns() < moment:
            cpu = time.process_time_ns()
        yield
        orders.send((time.perf_counter_ns() - moment, time.process_time_ns() - cpu))


def work(sock: socket.socket, orders: Connection, processor: int, floor: bool) -> None:
    """In the child."""
    os.sched_setaffinity(0, {processor})
    sock.setblocking(False)  # which was lost on the way here
    if floor:
        receive_all_in_c(sock, orders)
    else:
        trio.run(receive_all, sock, orders)


class Team:
    """Some processes that share a port, and the traffic for them."""

    def __init__(self, processes: int, floor: bool, stack: ExitStack) -> None:
        context = multiprocessing.get_context("spawn")
        port, sockets = 0, []
        for _ in range(processes):
            sock = stack.enter_context(
                open_socket(socket.AF_INET, reuse_port=port, receive_buffer=RECEIVE_BUFFER)
            )
            sockets.append(sock)
            port = sock.getsockname()[1]
        self._pipes = []
        self._all_processors = os.sched_getaffinity(0)
        self._processors = sorted(self._all_processors)[:2]
        for sock, processor in zip(sockets, self._processors, strict=False):
            ours, theirs = context.Pipe()
            child = context.Process(target=work, args=(sock, theirs, processor, floor))
            child.start()
            theirs.close()  # so that the end of the child is the end of the pipe
            stack.callback(child.join, HANG_GUARD)
            stack.callback(ours.send, None)
            self._pipes.append(ours)
        self._answers()  # all are ready
        self._traffic = Traffic(FLOWS, *sockets)
        stack.callback(self._traffic.close)

    def _answers(self) -> list[Any]:
        for pipe in self._pipes:
            if not pipe.poll(HANG_GUARD):
                raise RuntimeError("a process does not answer")
        return [pipe.recv() for pipe in self._pipes]

    def carry(self) -> tuple[float, float]:
        """Datagrams a second that the team carries, from one filling; and by its CPU time."""
        filled = 0
        for processor in self._processors:
            # Memory that was taken on one processor is dearer to free on another. Half of the
            # traffic of each socket comes from either, as a network card would spread it.
            os.sched_setaffinity(0, {processor})
            filled += self._traffic.send(FLOWS.round_trains // 2).datagrams
        os.sched_setaffinity(0, self._all_processors)
        moment = time.perf_counter_ns() + LEAD_NS
        for pipe in self._pipes:
            pipe.send(moment)
        datagrams, times = self._answers(), self._answers()
        if sum(datagrams) != filled:
            raise RuntimeError(f"{filled} datagrams were sent, {datagrams} arrived")
        by_cpu = sum(n * 1e9 / cpu for n, (_, cpu) in zip(datagrams, times, strict=True))
        return filled * 1e9 / max(wall for wall, _ in times), by_cpu


@dataclass
class Scaling:
    """What two processes carry against one."""

    one: float
    two: float
    by_cpu: float


def compare(*, rounds: int, floor: bool) -> Scaling:
    """One process and two, in turn."""
    with ExitStack() as stack:
        teams = [Team(1, floor, stack), Team(2, floor, stack)]
        for _ in range(WARM_UP_ROUNDS):
            for team in teams:
                team.carry()
        rates = [[team.carry() for team in teams] for _ in range(rounds)]
    # Whatever else runs on the machine takes one of two processors away from two processes, but
    # none from one process. So the best of the rounds is taken, for both.
    one, two = (max(wall for wall, _ in team) for team in zip(*rates, strict=True))
    cpu = [statistics.median(cpu for _, cpu in team) for team in zip(*rates, strict=True)]
    return Scaling(one, two, cpu[1] / cpu[0])


def measure(*, rounds: int, floor: bool) -> list[Fact]:
    """What two processes carry against one: the library's and the floor's."""
    if len(os.sched_getaffinity(0)) < 2:
        return []
    facts = []
    for name, in_c in {"snaptun_trio": False, **({"floor": True} if floor else {})}.items():
        scaling = compare(rounds=rounds, floor=in_c)
        facts.append(
            Fact(
                "receiving on one port with two processes (SO_REUSEPORT), against one",
                name,
                scaling.two / scaling.one,
                "times",
                f"best of {rounds} rounds: {scaling.two:,.0f} datagrams a second against "
                f"{scaling.one:,.0f}; by CPU time {scaling.by_cpu:.2f} times",
                "" if in_c else "1.80",
            )
        )
    return facts
