# Pollers: which of many sockets are ready, and one task that waits for all of them.
#
# On Linux that is an epoll descriptor of our own, which trio's waits for as for any other. Where
# there is none, a task waits for each socket, as long as the wait lasts. Sockets are known by their
# descriptors here, so it is here that a number which became another socket's is noticed. It must
# not know what is received, nor what a receiver is: each socket comes with a key, and a poll gives
# keys.

from __future__ import annotations

import contextlib
import select
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from ._interface import SocketIO

T = TypeVar("T")

# How long a socket is left alone for which another task waits already, in seconds: trio admits one.
_OTHERS_TURN = 0.05


class Poller(ABC, Generic[T]):
    """Which of many sockets have something to receive. One task may wait at a time."""

    def __init__(self) -> None:
        self._watched: dict[int, tuple[SocketIO, T]] = {}  # by descriptor
        self._muted: set[int] = set()

    def add(self, io: SocketIO, key: T) -> T | None:
        """Watch a socket that is open.

        Returns the key of one that had the same descriptor: it must have been closed, or it could
        not. It is watched no longer.

        Raises:
          ValueError: this very socket is watched.
          OSError: the system has no room for one more.
        """
        fd = io.sock.fileno()
        before = self._watched.get(fd)
        if before is not None and before[0].sock.fileno() == fd:
            raise ValueError("a receiver of the same socket is in the group")
        self._muted.discard(fd)
        self._start(fd)
        self._watched[fd] = (io, key)
        return None if before is None else before[1]

    def remove(self, fd: int, io: SocketIO) -> None:
        """Watch a socket no longer. Does nothing where its descriptor is another one's by now."""
        if self._is_watched(fd, io):
            del self._watched[fd]
            self._muted.discard(fd)
            if (
                io.sock.fileno() == fd
            ):  # if not, the system has forgotten it, and the number is free
                self._stop(fd)

    def mute(self, fd: int, io: SocketIO) -> None:
        """Say nothing of a socket that is watched until `unmute`."""
        if self._is_watched(fd, io) and io.sock.fileno() == fd:
            self._muted.add(fd)
            self._stop(fd)

    def unmute(self, fd: int, io: SocketIO) -> None:
        """Watch it again, if it is still there to be watched."""
        if fd in self._muted and self._is_watched(fd, io):
            self._muted.discard(fd)
            if io.sock.fileno() == fd:
                self._start(fd)

    def _is_watched(self, fd: int, io: SocketIO) -> bool:
        watched = self._watched.get(fd)
        return watched is not None and watched[0] is io

    @abstractmethod
    def _start(self, fd: int) -> None: ...

    @abstractmethod
    def _stop(self, fd: int) -> None: ...

    @abstractmethod
    def poll(self) -> list[T]:
        """The keys of the sockets that are ready now, or many of them: the others come next time.

        One that was closed may be among them.
        """

    @abstractmethod
    async def wait(self) -> None:
        """Wait until a socket is ready, or `wake` is called. A checkpoint, always."""

    @abstractmethod
    def wake(self) -> None:
        """End the wait of the task that waits, if one does."""

    def check(self, fd: int, io: SocketIO) -> None:
        """Make sure that what is said of a socket is about this one.

        For one that was called ready again and again, and had nothing.
        """

    def close(self) -> None:
        """Watch nothing any more. The task that waits is woken."""
        self._watched.clear()
        self.wake()


class EpollPoller(Poller[T]):
    """One epoll descriptor, level-triggered, inside trio's."""

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()
        self._waiting = False

    # Whatever is closed disappears from an epoll set, but not while a child process has it open as
    # well: then its events go on, under the number that it had here, and nobody can end them but by
    # giving up the whole set. `poll` sees it where the number is nobody's, `check` where it has
    # become the number of another socket of ours.

    def _start(self, fd: int) -> None:
        with contextlib.suppress(FileExistsError):  # the same socket, as another Python object
            self._epoll.register(fd, select.EPOLLIN)

    def _stop(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)

    def poll(self) -> list[T]:
        watched = self._watched
        try:
            return [watched[fd][1] for fd, _ in self._epoll.poll(0)]
        except KeyError:
            self._renew()
            return [watched[fd][1] for fd, _ in self._epoll.poll(0) if fd in watched]

    async def wait(self) -> None:  # noqa: ASYNC910  # it was woken, so it has waited
        self._waiting = True
        try:
            await trio.lowlevel.wait_readable(self._epoll)
        except trio.ClosedResourceError:
            pass  # how `wake` does it
        finally:
            self._waiting = False

    def wake(self) -> None:
        # Nobody else waits for this descriptor, and it stays open.
        if self._waiting:
            trio.lowlevel.notify_closing(self._epoll)

    def check(self, fd: int, io: SocketIO) -> None:
        if io.sock.fileno() != fd:
            return
        self._stop(fd)
        haunted = fd in dict(self._epoll.poll(0))
        self._start(fd)
        if haunted:
            self._renew()

    def _renew(self) -> None:
        """Begin a new set, with those that are watched."""
        self._epoll.close()  # first: there may be no descriptor left for the new one
        self._epoll = select.epoll()
        for fd, (io, _) in self._watched.items():
            if fd not in self._muted and io.sock.fileno() == fd:
                self._start(fd)

    def close(self) -> None:
        super().close()
        self._epoll.close()


class TaskPoller(Poller[T]):
    """A task for each socket, while somebody waits. What trio itself waits with does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[int, T] = {}  # by the last wait
        self._scope: trio.CancelScope | None = None

    def _start(self, fd: int) -> None:
        self.wake()  # the wait begins anew, with this one

    def _stop(self, fd: int) -> None:
        self._found.pop(fd, None)
        self.wake()  # and without that one: somebody else may want to wait for it

    def poll(self) -> list[T]:
        found, self._found = self._found, {}
        if found:
            return list(found.values())
        return [
            key
            for fd, (io, key) in self._watched.items()
            if fd not in self._muted and (io.sock.fileno() != fd or io.is_ready(reading=True))
        ]

    async def wait(self) -> None:
        self._found.clear()
        with trio.CancelScope() as self._scope:
            try:
                async with trio.open_nursery() as nursery:
                    for fd, (io, key) in self._watched.items():
                        if fd not in self._muted:
                            nursery.start_soon(self._wait_for, fd, io, key)
                    await trio.sleep_forever()
            finally:
                self._scope = None

    @trio.lowlevel.enable_ki_protection
    async def _wait_for(  # noqa: ASYNC910  # a task of its own
        self, fd: int, io: SocketIO, key: T
    ) -> None:
        """Wait for one socket, and end the wait for all."""
        try:
            if io.sock.fileno() == fd:
                await io.wait_readable()
            else:
                await trio.lowlevel.checkpoint()
        except trio.BusyResourceError:
            await trio.sleep(_OTHERS_TURN)
        except (trio.ClosedResourceError, OSError):
            pass  # a receive will say so
        self._found[fd] = key
        self.wake()

    def wake(self) -> None:
        if self._scope is not None:
            self._scope.cancel(reason="a socket of the group is ready")


def open_poller() -> Poller[T]:
    """The best poller of this system."""
    if hasattr(select, "epoll"):
        return EpollPoller()
    return TaskPoller()
