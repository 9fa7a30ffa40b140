# The seam between the library and the operating system: what a backend is.
#
# A backend receives into memory that it lends, lays out what is to be sent, and sends it as it is
# told. Receiver and sender know nothing else of it, so a test can put a scripted kernel in its
# place. What an errno means is not decided down here.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import socket

    import trio

    from .._batch import Columns, Target

    Socket = trio.socket.SocketType | socket.socket


class Laid(NamedTuple):
    """A batch in the form in which a backend sends it."""

    columns: Columns
    name: Any
    """Whom it is for, in the backend's own terms."""


class Memory(Protocol):
    """What a pool lends to receive calls, and takes back by itself."""

    def get(self) -> memoryview:
        """One writable buffer."""

    def statistics(self) -> tuple[int, int, int, int, int, int]:
        """Slabs in use, idle, most in use, reused, allocated, allocated beyond the capacity."""


class Transmission(Protocol):
    """Something that is to be sent, laid out for the kernel. It lives for one turn of sending.

    A refused message costs no more than the call that refused it: the ones behind it stay laid out.
    """

    @property
    def more(self) -> bool:
        """Whether messages are left that were neither sent nor skipped."""

    @property
    def messages(self) -> int:
        """Messages that the last call took."""

    @property
    def datagrams(self) -> int:
        """Datagrams in them."""

    @property
    def nbytes(self) -> int:
        """Payload bytes in them."""

    @property
    def train(self) -> int:
        """The train that the next message begins in."""

    @property
    def offset(self) -> int:
        """The payload bytes before it in that train."""

    @property
    def end_train(self) -> int:
        """The train that the next message ends in, or the one behind it."""

    @property
    def end_offset(self) -> int:
        """The payload bytes before its end in that train, 0 where it ends with a train."""

    @property
    def segmented(self) -> bool:
        """Whether the next message asks the kernel to segment."""

    def send(self, fd: int, most: int) -> int:
        """Send at most ``most`` messages with one call where the system can; never wait.

        Returns 0, or the errno with which nothing was sent. It is about the next message, or an
        asynchronous error about an earlier datagram.
        """

    def skip(self) -> object:
        """Leave out the next message."""

    def close(self) -> object:
        """Let go of everything that the messages point to."""


class Backend(Protocol):
    """Moves batches. It keeps nothing between calls, so one serves all sockets."""

    name: str

    def memory(self, buffer_size: int, capacity: int) -> Memory:
        """Memory for a pool: buffers of so many bytes, so many slabs of them kept."""

    def receive(self, sock: Socket, memory: Any, offered: int, slots: int) -> Columns | None:  # noqa: ANN401
        """Receive at most ``offered`` messages of what is queued at the socket; never wait.

        ``slots`` is the most that this receiver is ever offered. Returns `None` where nothing is
        queued.

        Raises:
          OSError: nothing was received.
        """

    def lay_out(self, columns: Columns, target: Target, family: int) -> Laid:
        """Bring a batch into the form in which it is sent on sockets of this family.

        ``target`` replaces the columns' own addresses, unless it is ``KEEP``.

        Raises:
          TypeError, ValueError: an address, or a local address, is none of this family.
        """

    def prepare(
        self,
        sock: Socket,
        laid: Laid,
        train: int,
        offset: int,
        *,
        gso: bool,
        single: bool,
    ) -> Transmission:
        """Lay out what is to be sent from there on, as much as one call takes.

        Without ``gso`` each datagram is a message of its own; ``single`` lays out the one datagram
        there.
        """
