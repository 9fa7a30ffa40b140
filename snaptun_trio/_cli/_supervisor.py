# Keeps the workers of a relay running. The sockets are the supervisor's, one for each worker, and
# it never reads them: when a worker dies its socket stays in the port's group, so that nobody
# else's clients move, what comes meanwhile waits in its buffer, and the next worker reads on. What
# becomes of a datagram, and who looks at the totals, it must not know.

from __future__ import annotations

import json
import socket
from signal import Signals
from typing import TYPE_CHECKING

import trio

from .. import open_udp_socket
from ._arguments import CommandError
from ._child import END_WITHIN_SECONDS, Child, open_child

if TYPE_CHECKING:
    from trio.socket import SocketType

    from ._arguments import HostPort
    from ._child import Facts
    from ._relay_totals import RelayTotals

STEADY_AFTER_SECONDS = LONGEST_PAUSE_SECONDS = 10.0


async def open_sockets(local: HostPort, count: int, fragment: bool) -> list[SocketType]:
    """So many sockets on one port."""
    # The first asks for the port alone: one that others share is in use all the same.
    found = [await open_udp_socket(local, fragment=fragment)]
    address = found[0].getsockname()
    if count > 1:
        found[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    while len(found) < count:
        found.append(await open_udp_socket(address, reuse_port=True, fragment=fragment))
    return found


class Supervisor:
    """The workers, from the beginning, when ``begun`` is set as all of them relay, to the end, when
    ``ended`` is set. ``news`` is what somebody should be told; who tells it takes it away."""

    def __init__(self, sockets: list[SocketType], totals: RelayTotals, settings: Facts) -> None:
        self._sockets, self.totals, self._settings = sockets, totals, settings
        self._stop, self._resolved, self.begun, self.ended = (trio.Event() for _ in range(4))
        self.news: list[str] = []

    def stop(self) -> None:
        """Have all workers finish what they have begun, and end."""
        self.totals.stopping = True
        self._stop.set()
        self._resolved.set()

    async def run(self) -> None:
        """Keep them running until `stop`. Raises `CommandError` if one cannot begin."""
        async with trio.open_nursery() as nursery:
            for number, sock in enumerate(self._sockets, 1):
                nursery.start_soon(self._keep, number, sock)
            await self._stop.wait()
            patience = self._settings["grace"] + END_WITHIN_SECONDS
            nursery.cancel_scope.deadline = trio.current_time() + patience
        if nursery.cancel_scope.cancelled_caught:
            self.news.append("not all workers ended in time: the others were killed")
        self.ended.set()
        self.begun.set()

    async def _keep(self, number: int, sock: SocketType) -> None:  # noqa: ASYNC910
        """Have a worker on this socket, and if it dies another."""
        if number > 1:  # the first one resolves the targets for all
            await self._resolved.wait()
        pause = 0.0
        while not self._stop.is_set():
            began = trio.current_time()
            how = await self._run_worker(number, sock)
            if self._stop.is_set():
                return
            if not self.begun.is_set():
                raise CommandError(how)
            self.totals.restarts += 1
            lost = "what it counted since its last report is in no sum"
            self.news.append(f"worker {number} is replaced: {how}; {lost}")
            steady = trio.current_time() - began > STEADY_AFTER_SECONDS
            pause = 0.0 if steady else min(2 * pause + 0.1, LONGEST_PAUSE_SECONDS)
            with trio.move_on_after(pause):
                await self._stop.wait()

    async def _run_worker(self, number: int, sock: SocketType) -> str:
        """Run a worker to its end, and return how it ended."""
        arguments = json.dumps({**self._settings, "local": sock.fileno()})
        command = ("-m", "snaptun_trio._cli._relay_worker", arguments)
        async with open_child(f"worker {number}", command, [sock.fileno()]) as child:
            error = ""
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._order_to_stop, child)
                    while (report := await child.read()) is not None:
                        if not (error := report.get("error", "")):
                            self._take(number, report)
                    nursery.cancel_scope.cancel(reason="the worker has ended")
                code = await child.process.wait()
            finally:
                child.process.kill()
                self.totals.take(number, None)
        return error or (f"ended by {Signals(-code).name}" if code < 0 else f"ended with {code}")

    def _take(self, number: int, report: Facts) -> None:
        self._settings["targets"] = report.pop("targets")
        self._resolved.set()
        self.totals.take(number, report)
        if self.totals.ready:
            self.begun.set()

    async def _order_to_stop(self, child: Child) -> None:
        await self._stop.wait()
        await child.order()
