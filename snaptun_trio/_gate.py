# Waits for one direction of a borrowed socket.
#
# One task at a time; woken by `close`; never on a closed socket; never in a spin. Receiver and
# sender own one gate each. It must not know what is moved, nor when waiting is called for.

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import trio

from ._kernel import _error_queue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from ._kernel._interface import Socket

# Some sockets are "ready" for ever and give nothing: after shutdown(SHUT_RD) on a connected one,
# say. After so many tries in a row that found nothing on a socket that was still called ready we
# sleep between them, from the first pause on twice as long each time.
#
# What strangers can do must not look like that, at whatever rate they do it. A datagram with a bad
# checksum wakes us and gives nothing; but it is gone then, the socket is no longer called ready,
# and where the next one has come meanwhile, the count of what the kernel dropped has moved.
_PATIENCE = 16
_FIRST_PAUSE = 0.001  # seconds
_LONGEST_PAUSE = 0.064


class Gate:
    """One direction of a socket, as one task after the other may use it.

    As a context manager it keeps others out, with `trio.BusyResourceError`.

    Args:
      wait: waits until the socket is ready for this direction.
      ready: whether the kernel says now that it is.
      doing: what a task does that goes through, for messages.
      dropped: how much the kernel took out of the socket's queue because it was no good.

    Attributes:
      closed: whether `close` was called.
      asynchronous_errors: errors about earlier datagrams that came to light here, by errno.
    """

    def __init__(
        self,
        sock: Socket,
        wait: Callable[[Socket], Awaitable[None]],
        ready: Callable[[Socket], bool],
        doing: str,
        *,
        dropped: Callable[[Socket], int | None] = lambda _: None,
    ) -> None:
        self._sock = sock
        self._wait = wait
        self._ready = ready
        self._doing = doing
        self._dropped = dropped
        self._dropped_before: int | None = None
        self._busy = False
        self._scope: trio.CancelScope | None = None
        self._fruitless = 0
        self.closed = False
        self.asynchronous_errors: Counter[int] = Counter()

    def __enter__(self) -> None:
        if self._busy:
            raise trio.BusyResourceError(f"another task is already {self._doing}")
        self._busy = True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._busy = False

    def check_open(self) -> None:
        """Refuse to go on after `close`, or when the socket's owner closed it.

        Raises:
          trio.ClosedResourceError: one of the two.
        """
        if self.closed or self._sock.fileno() < 0:
            raise trio.ClosedResourceError(f"closed while {self._doing}") from None

    def progress(self) -> None:
        """Tell that the last wait was worth it."""
        self._fruitless = 0

    async def wait(self) -> None:
        """Wait until the socket is ready, or until a pause is over that keeps us from spinning.

        A checkpoint, always.

        Raises:
          trio.ClosedResourceError: `close` was called, or the socket closed, before or during it.
        """
        # Not even to be asked with a closed socket: trio would remember descriptor -1 as taken.
        self.check_open()
        if self._fruitless and self._something_happened():
            self._fruitless = 0
        # A scope of our own, so that closing wakes this task and nobody else who waits for the
        # same borrowed socket, as trio.lowlevel.notify_closing would.
        with trio.CancelScope() as self._scope:
            if self._fruitless >= _PATIENCE:
                doublings = min(self._fruitless - _PATIENCE, 16)
                await trio.sleep(min(_FIRST_PAUSE * 2.0**doublings, _LONGEST_PAUSE))
                self.check_open()  # the owner may have closed the socket during the pause
            await self._wait(self._sock)
            # Only a wake-up can be fruitless: a wait that was cancelled says nothing of the socket.
            self._fruitless += 1
        self._scope = None
        self.check_open()

    def _something_happened(self) -> bool:
        """Whether a wake-up that brought nothing had a reason that is gone now."""
        errors = _error_queue.drain(self._sock)
        self.asynchronous_errors += errors
        if errors or not self._ready(self._sock):
            return True
        before, self._dropped_before = self._dropped_before, self._dropped(self._sock)
        return before != self._dropped_before

    def close(self) -> None:
        """Let nobody through any more, and wake the task that waits."""
        self.closed = True
        if self._scope is not None:
            self._scope.cancel(reason="closed while waiting")
