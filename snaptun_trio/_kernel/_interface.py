# The seam between the library and the operating system: what a backend is.
#
# A backend is two operations, "fill this memory, tell me what came" and "lay out these columns, and
# send them as I say", and the memory it wants. Receiver and sender know nothing else of it, so a
# test can put a scripted kernel in its place. What an errno means is not decided down here.

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import socket

    import trio

    from .._batch import Columns, Target
    from ._slab import Slab

    Socket = trio.socket.SocketType | socket.socket


class Position(NamedTuple):
    """A place in columns that are being sent."""

    train: int
    """The number of trains before it."""
    offset: int = 0
    """The payload bytes before it in its own train."""


START = Position(0)


class Sent(NamedTuple):
    """How far one send call got."""

    position: Position
    """Everything before it was taken by the kernel."""
    messages: int
    datagrams: int
    nbytes: int
    error: OSError | None = None
    """Why nothing was sent at all. It is about the message from ``position`` to ``refused``, or an
    asynchronous error about an earlier datagram; a socket that is full is a `BlockingIOError`."""
    refused: Position = START
    """Where the refused message ends."""
    segmented: bool = False
    """Whether the refused message asked for segmentation."""


class Transmission(Protocol):
    """Something that is to be sent, laid out for the kernel. It lives for one turn of sending.

    A refused message costs no more than the call that refused it: the ones behind it stay laid out.
    """

    @property
    def more(self) -> bool:
        """Whether messages are left that were neither sent nor skipped."""

    def send(self, most: int) -> Sent:
        """Send at most ``most`` messages with one call where the system can; never wait."""

    def skip(self) -> None:
        """Leave out the next message."""

    def close(self) -> None:
        """Let go of everything that the messages point to."""


class Backend(Protocol):
    """The two operations. A backend keeps nothing between calls, so one serves all sockets."""

    name: str

    def receive(self, sock: Socket, slab: Slab, slots: int) -> Columns:
        """Fill at most ``slots`` slots of ``slab`` with what is queued at the socket; never wait.

        The columns hold a token of the slab, unless they have memory of their own.

        Raises:
          OSError: nothing was received; `BlockingIOError` where nothing is queued.
        """

    def prepare(
        self, sock: Socket, columns: Columns, target: Target, position: Position, gso: bool
    ) -> Transmission:
        """Lay out what is to be sent from ``position`` on, as much as one call takes.

        ``target`` replaces the columns' own addresses, unless it is ``KEEP``. Without ``gso`` each
        datagram is a message of its own.
        """

    def prepare_single(
        self, sock: Socket, columns: Columns, target: Target, position: Position
    ) -> Transmission:
        """Lay out the one datagram at ``position``, unsegmented: is it the data, or is it GSO?"""
