# Waits for one direction of a borrowed socket.
#
# One task at a time; woken by `close`; never on a closed socket; never in a spin. Receiver and
# sender own one each. It must not know what is moved, nor when waiting is called for.

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from ._kernel._interface import SocketIO

# Some sockets are "ready" for ever and give nothing: after shutdown(SHUT_RD) on a connected one,
# say. After so many tries in a row that found nothing on a socket that was still called ready we
# sleep between them, from the first pause on twice as long each time.
#
# What strangers can do must not look like that, at whatever rate they do it. A datagram with a bad
# checksum wakes us and gives nothing; but it is gone then, the socket is no longer called ready,
# and where the next one has come meanwhile, the count of what the kernel dropped has moved.
PATIENCE = 16
_FIRST_PAUSE = 0.001  # seconds
_LONGEST_PAUSE = 0.064


class ReadinessWaiter:
    """One direction of a socket, as one task after the other may use it.

    As a context manager it keeps other tasks from reading, with `trio.BusyResourceError`. Who of
    those that send waits for the socket is `_shared_flush`'s matter.

    Args:
      io: the socket.
      reading: the direction, and so whether it is a receiver's or a sender's.

    Attributes:
      closed: whether `close` was called.
      fruitless: how many wake-ups in a row brought nothing. Who moves data sets it to 0.
      asynchronous_errors: errors about earlier datagrams that came to light here, by errno.
      on_error: is called with the errno of each that `note` is told of.
    """

    def __init__(self, io: SocketIO, *, reading: bool) -> None:
        self._io = io
        self._wait = io.wait_readable if reading else io.wait_writable
        self._reading = reading
        self._dropped_before: int | None = None
        self._busy = False
        # What `close` cancels to wake the task that waits, and nobody else who waits for the same
        # borrowed socket, as trio.lowlevel.notify_closing would.
        self._scope: trio.CancelScope | None = None
        self._lasting: trio.CancelScope | None = None
        self._lasting_task: trio.lowlevel.Task | None = None
        self._tell: Callable[[], object] | None = None  # of the group that waits for it
        self.fruitless = 0
        self.closed = False
        self.asynchronous_errors: Counter[int] = Counter()
        self.on_error: Callable[[int], object] | None = None

    def __enter__(self) -> None:
        if self._busy:
            self.check_free()
        self._busy = True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._busy = False

    @contextlib.contextmanager
    def lasting(self, scope: trio.CancelScope) -> Iterator[None]:
        """While this task waits again and again: a scope that it is in, to be ended by `close`.

        Otherwise each wait makes a scope of its own, which is a tenth of the price of a round trip.
        Any other task that waits meanwhile, between two waits of this one, is not in the scope.
        """
        self._lasting, self._lasting_task = scope, trio.lowlevel.current_task()
        try:
            yield
        finally:
            self._lasting = self._lasting_task = None

    def check_open(self) -> None:
        """Refuse to go on after `close`, or when the socket's owner closed it.

        Raises:
          trio.ClosedResourceError: one of the two.
        """
        if self.closed:
            whose = "receiver" if self._reading else "sender"
            raise trio.ClosedResourceError(f"the {whose} is closed") from None
        if self._io.sock.fileno() < 0:
            raise trio.ClosedResourceError("the socket was closed") from None

    def check_free(self) -> None:
        """Refuse to go on while a task, or a group, is receiving.

        Raises:
          trio.BusyResourceError: one is.
        """
        if self._tell is not None:
            raise trio.BusyResourceError("a group is receiving from this receiver")
        if self._busy:
            raise trio.BusyResourceError("another task is already receiving from this receiver")

    def join(self, tell: Callable[[], object]) -> None:
        """Let a group wait for this direction, and keep all others out, until `leave`.

        Args:
          tell: is called by `close`, and by `tell_group`.

        Raises:
          trio.ClosedResourceError: see `check_open`.
          trio.BusyResourceError: a task is receiving, or another group.
        """
        self.check_open()
        self.check_free()
        self._busy = True
        self._tell = tell

    def leave(self) -> None:
        """The group waits no longer."""
        self._tell = None
        self._busy = False

    def tell_group(self) -> None:
        """There is something to be had of which the socket says nothing: tell the group, if any."""
        if self._tell is not None:
            self._tell()

    async def wait(self) -> None:
        """Wait until the socket is ready, or until a pause is over that keeps us from spinning.

        A checkpoint, always.

        Raises:
          trio.ClosedResourceError: `close` was called, or the socket closed, before or during it.
        """
        # Not even to be asked with a closed socket: trio would remember descriptor -1 as taken.
        self.check_open()
        if self.fruitless and self.something_happened():
            self.fruitless = 0
        try:
            if self._lasting is not None and self._lasting_task is trio.lowlevel.current_task():
                self._scope = self._lasting
                await self._wait_or_pause()
            else:
                with trio.CancelScope() as self._scope:
                    await self._wait_or_pause()
        finally:
            self._scope = None
        self.check_open()

    async def _wait_or_pause(self) -> None:
        if self.fruitless >= PATIENCE:
            await trio.sleep(self.pause)
            self.check_open()  # the owner may have closed the socket during the pause
        await self._wait()
        # Only a wake-up can be fruitless: a wait that was cancelled says nothing of the socket.
        self.fruitless += 1

    @property
    def pause(self) -> float:
        """How long to leave the socket alone after so many fruitless wake-ups, in seconds."""
        doublings = min(self.fruitless - PATIENCE, 16)
        return min(_FIRST_PAUSE * 2.0**doublings, _LONGEST_PAUSE)

    def something_happened(self) -> bool:
        """Whether a wake-up that brought nothing had a reason that is gone now."""
        errors = self._io.drain_errors()
        self.asynchronous_errors += errors
        if errors or not self._io.is_ready(reading=self._reading):
            return True
        if not self._reading:
            return False
        before, self._dropped_before = self._dropped_before, self._io.drops()
        return before != self._dropped_before

    def note(self, errors: Iterable[int]) -> None:
        """Count errors about earlier datagrams, by errno, and tell whoever wants to know."""
        self.asynchronous_errors.update(errors)
        if self.on_error is not None:
            for number in errors:
                self.on_error(number)

    def wake(self) -> None:
        """End the wait of the task that waits, if any: it looks again."""
        if self._scope is not None and self._scope is not self._lasting:
            self._scope.cancel(reason="there is something else than what the socket says")
        self.tell_group()

    def close(self) -> None:
        """Let nobody through any more, and wake the task that waits."""
        self.closed = True
        if self._scope is not None:
            self._scope.cancel(reason="closed while waiting")
        self.tell_group()
