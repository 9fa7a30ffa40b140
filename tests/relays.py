# A relay for the tests, with clients and targets that are plain sockets.
#
# All run in one trio run and one thread, so whoever waits for a datagram waits in `trio`. What was
# sent on loopback is in the other queue already; what the relay has made of it shows in its
# statistics, and those add up whenever they are looked at: `laws` says how.

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import time
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from snaptun_trio import UdpRelay, _relay_front
from snaptun_trio._kernel import _poller
from snaptun_trio._relay_in_process import RelayInProcess

from . import ends

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    import pytest

    from snaptun_trio import Address, RelayFlow, RelayStatistics


def check_flow(flow: RelayFlow) -> None:
    """Every datagram that came in is accounted for, once."""
    assert flow.datagrams_in + flow.datagrams_added == (
        flow.datagrams_out + sum(flow.dropped.values()) + flow.datagrams_waiting
    ), flow
    assert flow.datagrams_waiting >= 0, flow
    assert all(count > 0 for count in flow.dropped.values()), flow


def check_targets(seen: RelayStatistics) -> None:
    """What is told of targets is of all that went to targets, and nobody's is in none."""
    flow, targets = seen.to_targets, seen.targets
    assert len({target.address for target in targets}) == len(targets), seen
    assert sum(target.sessions for target in targets) == seen.sessions, seen
    assert sum(target.datagrams_out for target in targets) <= flow.datagrams_out, seen
    assert all(target.datagrams_out >= 0 for target in targets), seen
    for of_all, of_each in (
        (flow.dropped, [target.dropped for target in targets]),
        (flow.asynchronous_errors, [target.asynchronous_errors for target in targets]),
    ):
        together = sum(map(Counter, of_each), Counter())
        assert together <= Counter(of_all), seen
        assert all(count > 0 for one in of_each for count in one.values()), seen
        assert not {"table full", "too many at once", "stopping", "answer"} & set(together), seen


def laws(relay: UdpRelay) -> RelayStatistics:
    """What the relay counts, which adds up at any time."""
    seen = relay.statistics()
    check_flow(seen.to_targets)
    check_flow(seen.to_clients)
    check_targets(seen)
    assert seen.sessions_created == (
        seen.sessions
        + seen.sessions_expired
        + seen.sessions_evicted
        + seen.sessions_moved
        + seen.sessions_failed
        + seen.sessions_closed
    ), seen
    return seen


async def until(
    relay: UdpRelay,
    holds: Callable[[RelayStatistics], object],
    clock: Any = None,  # noqa: ANN401
) -> RelayStatistics:
    """Look at each turn of the scheduler, until something can be seen in the statistics.

    On a clock of a test's own the pauses of a relay need it to go on: so it does, a little.
    """
    give_up = time.monotonic() + ends.PATIENCE
    turns = 0
    while not holds(seen := laws(relay)):
        await trio.lowlevel.checkpoint()
        turns += 1
        if clock is not None and turns % 200 == 0:
            clock.jump(0.0005)
        assert time.monotonic() < give_up, seen
    return seen


async def receive(sock: socket.socket, count: int) -> list[tuple[bytes, Address]]:
    """The next ``count`` datagrams that a plain socket gets."""
    found: list[tuple[bytes, Address]] = []
    with trio.fail_after(ends.PATIENCE):
        while len(found) < count:
            try:
                found.append(sock.recvfrom(65_535))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
            except ConnectionRefusedError:
                continue
    return found


async def payloads(sock: socket.socket, count: int) -> list[bytes]:
    """The payloads of these."""
    return [payload for payload, _ in await receive(sock, count)]


def waiting(sock: socket.socket) -> list[tuple[bytes, Address]]:
    """What is in a socket's queue now."""
    found: list[tuple[bytes, Address]] = []
    while True:
        try:
            found.append(sock.recvfrom(65_535))
        except BlockingIOError:
            return found
        except ConnectionRefusedError:
            continue


@contextlib.asynccontextmanager
async def running(
    targets: Sequence[socket.socket | Address],
    local: Any = ("127.0.0.1", 0),  # noqa: ANN401
    **options: Any,  # noqa: ANN401
) -> AsyncIterator[UdpRelay]:
    """A relay to these targets, which is cancelled at the end of the block."""
    where = [ends.address_of(one) if isinstance(one, socket.socket) else one for one in targets]
    relay = UdpRelay(local, where, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        try:
            yield relay
        finally:
            nursery.cancel_scope.cancel()
    laws(relay)
    assert relay.statistics().to_targets.datagrams_waiting == 0
    assert relay.statistics().to_clients.datagrams_waiting == 0


class Stage:
    """Clients of one relay, each with a number, and what they and the targets send each other."""

    def __init__(self, relay: UdpRelay, clients: Sequence[socket.socket]) -> None:
        self.relay = relay
        self.clients = clients
        self.sent = relay.statistics().to_targets.datagrams_in

    async def send(self, number: int, *packets: bytes, to: Address | None = None) -> None:
        """Send from a client, and wait until the relay has done with it."""
        for packet in packets:
            self.clients[number].sendto(packet, to or self.relay.local_address)
        self.sent += len(packets)
        await self.settle()

    async def settle(self) -> RelayStatistics:
        """Until all that clients sent has been dealt with."""
        return await until(
            self.relay,
            lambda seen: (
                seen.to_targets.datagrams_in >= self.sent and not seen.to_targets.datagrams_waiting
            ),
        )


@contextlib.contextmanager
def same_descriptors() -> Iterator[None]:
    """No more descriptors are open at the end of the block than at its beginning."""
    gc.collect()
    before = _descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        gc.collect()
    after = _descriptors()
    assert after == before


def _descriptors() -> int:
    """How many descriptors are open."""
    found = 0
    for number in range(4096):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
        else:
            found += 1
    return found


def use_poller(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever relay begins from here on waits with this poller."""
    kind = _poller.EpollPoller if name == "epoll" else _poller.TaskPoller
    monkeypatch.setattr(_relay_front, "open_poller", kind)


def front_of(relay: UdpRelay) -> _relay_front.RelayFront:
    """What a relay that has begun in this process moves datagrams with."""
    assert isinstance(relay._running, RelayInProcess)
    return relay._running._front


def forwarding_of(relay: UdpRelay) -> Any:  # noqa: ANN401  # sessions or copies
    """What it forwards with."""
    return front_of(relay).forwarding
