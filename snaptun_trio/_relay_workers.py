# The worker processes of a relay, and what they have counted. One that dies is replaced.
#
# The sockets are this process's, one for each worker, and it never reads them: when a worker dies
# its socket stays in the port's group, so that nobody else's clients move, what comes meanwhile
# waits in its buffer, and the next worker reads on. What becomes of a datagram, this file must not
# know.

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from contextlib import suppress
from signal import Signals
from typing import TYPE_CHECKING

import attrs
import trio

from ._kernel._interface import drops_of
from ._lines import LineReader
from ._relay_sums import after_the_end, decoded, nothing, summed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio.abc import SendStream

    from ._kernel._interface import Socket
    from ._relay_settings import RelaySettings
    from ._relay_statistics import RelayStatistics
    from ._train import Address

logger = logging.getLogger("snaptun_trio")

# A worker that dies again and again is not started again and again at once.
_STEADY_AFTER = _LONGEST_PAUSE = 10.0
_FIRST_PAUSE = 0.1
# A worker reports twice a second, and with many thousand sessions a bit more seldom. Who has said
# nothing for so long is not counted among those that relay.
_SILENT_AFTER = 5.0
# What a worker gets to end in, after its grace, and when the relay is cancelled.
_END_WITHIN, _CANCELLED_WITHIN = 15.0, 1.0


class _Worker:
    """What is known of one that runs."""

    def __init__(self) -> None:
        self.last: RelayStatistics | None = None
        self.heard = 0.0
        self.error: OSError | None = None


class _Drops:
    """What the kernel dropped from a socket's queue, whoever reads it; 0 where it does not say."""

    def __init__(self, sock: Socket) -> None:
        self._sock, self._last = sock, 0
        self._before = drops_of(sock) or 0

    def so_far(self) -> int:
        """In buffers; once the socket is closed, what it was when it was asked last."""
        if (drops := drops_of(self._sock)) is not None:
            self._last = (drops - self._before) & 0xFFFFFFFF  # it counts in 32 bits
        return self._last


class RelayWorkers:
    """As many as there are sockets.

    Args:
      settings: of the relay that each of them runs.
    """

    def __init__(
        self, sockets: Sequence[Socket], targets: Sequence[Address], settings: RelaySettings
    ) -> None:
        self._sockets, self._targets, self._settings = sockets, targets, settings
        self._stop = trio.Event()
        self._running: dict[int, _Worker] = {}
        self._gone = nothing()  # what those that have ended had counted
        self._restarts = 0
        self._failed = False
        # That all have begun is not waited for once they are to stop.
        self._all_have_begun, self._change = trio.Event(), trio.Event()
        self._drops = [_Drops(sock) for sock in sockets]

    async def run(self, begun: Callable[[], None]) -> None:  # noqa: ASYNC910  # it waits
        """Keep them running until they are to stop and have ended, or it is cancelled.

        Args:
          begun: called once all of them relay.

        Raises:
          OSError: one cannot begin.
          trio.ClosedResourceError: a socket was closed, and its worker has died.
        """
        try:
            async with trio.open_nursery() as nursery:
                for number, sock in enumerate(self._sockets, 1):
                    nursery.start_soon(self._keep, number, sock)
                await self._all_have_begun.wait()
                begun()
                await self._stop.wait()
                nursery.cancel_scope.deadline = (
                    trio.current_time() + self._settings.grace + _END_WITHIN
                )
        finally:
            for drops in self._drops:
                drops.so_far()  # the sockets are closed next
        if nursery.cancel_scope.cancelled_caught:
            logger.warning("not all workers of a relay ended in time: the others were killed")

    def stop(self) -> None:
        """Have all of them take no new clients, and end when nothing more comes."""
        self._stop.set()
        self._all_have_begun.set()
        self._announce()

    def set_targets(self, targets: Sequence[Address]) -> None:
        """Have all workers use these from soon on, those that are yet to begin as well."""
        self._targets = targets
        self._gone = summed([self._gone], targets)  # one that comes back begins anew
        self._announce()

    def _announce(self) -> None:
        self._change.set()
        self._change = trio.Event()

    def statistics(self) -> RelayStatistics:
        """What all that there ever were have counted, as far as they have said."""
        since = time.monotonic() - _SILENT_AFTER
        told = [worker for worker in self._running.values() if worker.last is not None]
        told_last = [worker.last for worker in told if worker.last is not None]
        total = summed([self._gone, *told_last], self._targets)
        alive = sum(worker.heard > since for worker in told)
        # Workers do not see what is dropped while there is none.
        dropped = sum([drops.so_far() for drops in self._drops])
        to_targets = attrs.evolve(total.to_targets, buffers_dropped_by_kernel=dropped)
        return attrs.evolve(
            total, to_targets=to_targets, workers=alive, worker_restarts=self._restarts
        )

    @trio.lowlevel.enable_ki_protection
    async def _give_orders(self, orders: SendStream, targets: Sequence[Address]) -> None:  # noqa: ASYNC910  # it waits
        """Tell a worker that began with these targets of each change, and to stop."""
        with suppress(trio.BrokenResourceError):  # it has ended
            while True:
                if targets is not self._targets:
                    targets = self._targets
                    await orders.send_all(json.dumps(targets).encode() + b"\n")
                elif self._stop.is_set():
                    await orders.send_all(b"null\n")
                    return
                else:
                    await self._change.wait()

    @trio.lowlevel.enable_ki_protection
    async def _keep(self, number: int, sock: Socket) -> None:
        """Have a worker on this socket, and if it dies another."""
        pause = 0.0
        while True:
            began = trio.current_time()
            how = await self._work(number, sock)
            if how is None:
                return
            if not self._all_have_begun.is_set():
                if self._failed:
                    return  # all may fail of one cause, and one error says so
                self._failed = True
                raise how if how.errno else OSError(f"a worker of the relay {how}")
            logger.warning(
                "worker %d %s: %s; what it counted since its last report is in no sum",
                *(number, "is gone" if self._stop.is_set() else "is replaced"),
                how.strerror or how,
            )
            if self._stop.is_set():
                return
            self._restarts += 1
            pause = _next_pause(pause, trio.current_time() - began)
            with trio.move_on_after(pause):
                await self._stop.wait()
                return

    async def _work(self, number: int, sock: Socket) -> OSError | None:
        """Run a worker to its end.

        Returns how it ended, or why there is none; `None` if it was to end, and did.
        """
        targets = self._targets
        try:
            process = await self._start(sock, targets)
        except OSError as error:
            return error  # noqa: ASYNC910
        except RuntimeError as error:  # there is no thread to start it in
            return OSError(str(error))  # noqa: ASYNC910
        assert process.stdin is not None
        assert process.stdout is not None
        self._running[number] = worker = _Worker()
        reader, patience = LineReader(process.stdout), _CANCELLED_WITHIN
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_orders, process.stdin, targets)
                await self._listen(worker, reader)
                nursery.cancel_scope.cancel(reason="the worker has ended")
            patience = _END_WITHIN
        finally:
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()
                with trio.move_on_after(patience):
                    await self._listen(worker, reader)  # if it was cancelled, its last report
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                code = await process.wait()
                await process.stdout.aclose()
            del self._running[number]
            if worker.last is not None:
                self._gone = summed([self._gone, after_the_end(worker.last)], self._targets)
        if code == 0 and self._stop.is_set():
            return None
        return worker.error or OSError(_ended(code))

    async def _start(self, sock: Socket, targets: Sequence[Address]) -> trio.Process:
        import fcntl  # not on every system

        if sock.fileno() < 0:
            raise trio.ClosedResourceError("the clients' socket was closed")
        # Behind what the worker has for its orders, its reports, and its complaints.
        local = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
        try:
            settings = {**self._settings.as_arguments(), "local": local, "targets": targets}
            return await trio.lowlevel.open_process(
                [sys.executable, "-P", "-m", "snaptun_trio._relay_worker", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # So it imports the very package that runs here, wherever both were started.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                start_new_session=True,  # Ctrl-C is for this process, which then ends the others
                pass_fds=[local],
            )
        finally:
            os.close(local)

    async def _listen(self, worker: _Worker, reader: LineReader) -> None:
        """Take what a worker reports, to its end."""
        while (line := await reader.read()) is not None:
            try:
                report = decoded(line)
            except (ValueError, TypeError, KeyError):
                continue  # what a program prints that Python has it run first, or half a report
            if isinstance(report, OSError):
                worker.error = report
            else:
                self._take(worker, report)

    def _take(self, worker: _Worker, report: RelayStatistics) -> None:
        worker.last, worker.heard = report, time.monotonic()
        if sum(one.last is not None for one in self._running.values()) == len(self._sockets):
            self._all_have_begun.set()


def _next_pause(before: float, lived: float) -> float:
    """How long to wait before the next worker is started, when this one has lived for so long."""
    return 0.0 if lived > _STEADY_AFTER else min(2 * before + _FIRST_PAUSE, _LONGEST_PAUSE)


def _ended(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"ended by {Signals(-code).name}"
    except ValueError:  # most of the real-time ones have no name
        return f"ended by signal {-code}"
