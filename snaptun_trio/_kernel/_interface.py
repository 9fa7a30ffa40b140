# The seam between the library and the operating system: one object for each socket.
#
# A `SocketIO` holds what is known of a borrowed socket: its family, its options, whether trains are
# segmented. It fills memory that it lends with what came in, brings what is to be sent into its own
# form, and sends it as it is told. What an errno means is decided above it. A test can put a
# scripted kernel in its place: a socket that brings its own `SocketIO`.

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys
from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import trio

from .._coalesce import MAX_SEGMENTS
from .._messages import PER_TRAIN_ADDRESS, TrainMessages
from .._train import make_train
from . import _abi
from ._fan import Fan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._messages import Messages, Recipient
    from .._train import Address, Way
    from ._outgoing import Memory, Outgoing

Socket = trio.socket.SocketType | socket.socket

_LINUX = sys.platform == "linux"
_MEMINFO = struct.Struct(f"={_abi.SK_MEMINFO_VARS}I")
# The error queue is charged to the receive buffer, so it is short; the bound is for a storm.
_MOST_ERRORS = 1024
# struct sock_extended_err begins with the errno (include/uapi/linux/errqueue.h)
_ERRNO = struct.Struct("=I")
_RECVERR = ((_abi.SOL_IP, _abi.IP_RECVERR), (_abi.SOL_IPV6, _abi.IPV6_RECVERR))
# IPv4 peers of a dual-stack socket report ECN under the IPv4 option only; and that option alone
# tells of an IPv4 broadcast which address of ours it came to.
_REPORTS = {
    "ecn": ((_abi.SOL_IP, _abi.IP_RECVTOS), (_abi.SOL_IPV6, _abi.IPV6_RECVTCLASS)),
    "packet_info": ((_abi.SOL_IP, _abi.IP_PKTINFO), (_abi.SOL_IPV6, _abi.IPV6_RECVPKTINFO)),
    "timestamps": ((_abi.SOL_SOCKET, _abi.SO_TIMESTAMPNS),),
}
# poll(2); Windows has select only, which on sockets is not limited by the descriptor's number.
_HAS_POLL = hasattr(select, "poll")


class SocketIO(ABC):
    """What is known of one socket, and what can be done with it.

    Nothing here waits but `wait_readable` and `wait_writable`.


    Attributes:
      backend: the name of what moves the data.
      sock: the socket, which stays its owner's.
      family: its address family.
      gso: whether the kernel segments trains; not before `prepare_for_sending`.
      max_segments: the most datagrams of one message that it segments.
      most_messages: the most that one receive call brings, however many it is offered.
    """

    backend: ClassVar[str]
    most_messages: ClassVar[int] = _abi.MAX_BATCH_SIZE

    def __init__(self, sock: Socket) -> None:
        self.sock = sock
        self.family = int(sock.family)
        self.gso = False
        self.max_segments = MAX_SEGMENTS

    def __str__(self) -> str:
        """Where it is, for a reader: whose repr it stands in names what is done with it."""
        try:
            host, port = self.sock.getsockname()[:2]
        except OSError:
            return "a closed socket"
        return f"{host} port {port}"

    # -- data

    @staticmethod
    @abstractmethod
    def memory(buffer_size: int, capacity: int) -> Memory:
        """Memory for a pool: buffers of so many bytes, so many slabs of them kept."""

    @staticmethod
    def fan(front: SocketIO, memory: Any, *, gro: bool, gso: bool) -> Fan:  # noqa: ANN401
        """See `Fan`."""
        return Fan(front, memory, gro=gro, gso=gso)

    @abstractmethod
    def receive(self, memory: Any, offered: int, slots: int) -> Messages | None:  # noqa: ANN401
        """Receive at most ``offered`` messages of what is queued; `None` where nothing is.

        ``slots`` is the most that this receiver is ever offered.

        Raises:
          OSError: nothing was received.
        """

    @abstractmethod
    def outgoing(self, messages: Messages, address: Recipient) -> Outgoing:
        """Bring a batch into the form in which it is sent here.

        ``address`` replaces the messages' own, unless it is ``PER_TRAIN_ADDRESS``.

        Raises:
          TypeError, ValueError: an address, or a local address, is none of this family.
        """

    def gathered(
        self,
        payloads: list[bytes | memoryview],
        sizes: list[int],
        addresses: list[Address | None],
        names: list[bytes | None],
        ways: list[Way | None],
    ) -> Outgoing:
        """The same of what was queued one by one, train by train.

        ``names`` are the raw names of the addresses, ``ways`` what is asked for beside them.
        """
        trains = None
        if any(ways):
            trains = tuple(
                [
                    make_train(data, size, address, *(way or ()))
                    for data, size, address, way in zip(payloads, sizes, addresses, ways)
                ]
            )
        return self.outgoing(TrainMessages(payloads, sizes, addresses, trains), PER_TRAIN_ADDRESS)

    def send(self, outgoing: Outgoing, budget: int, *, single: bool = False) -> int:
        """Send what is next of it, with one call where the system can.

        At least one message, and more only as far as the ``budget`` of work allows. None has more
        than `max_segments` datagrams; without `gso` each is a message of its own. ``single`` sends
        the one datagram that is next.

        Returns 0, or the errno with which nothing was sent. It is about the next message, or an
        asynchronous error about an earlier datagram.
        """
        segments = self.max_segments if self.gso else 0
        return outgoing.send(self.sock.fileno(), budget, segments, single)

    # -- readiness

    @property
    def closed(self) -> bool:
        """Whether the socket's owner closed it."""
        return self.sock.fileno() < 0

    async def wait_readable(self) -> None:
        """Wait until the socket is called ready for reading."""
        await trio.lowlevel.wait_readable(self.sock)

    async def wait_writable(self) -> None:
        """Wait until the socket is called ready for writing."""
        await trio.lowlevel.wait_writable(self.sock)

    def is_ready(self, *, reading: bool) -> bool:
        """Whether a task that waits for this direction would be woken at once.

        What a wake-up was about cannot be told from the wake-up. But right after a try that found
        nothing it can be asked whether the socket is still called ready.
        """
        fd = self.sock.fileno()
        if not _HAS_POLL:
            return any(select.select([fd] * reading, [fd] * (not reading), [], 0))
        # Errors and hang-ups are reported unasked, here as in the wait itself.
        poll = select.poll()
        poll.register(fd, select.POLLIN if reading else select.POLLOUT)
        return bool(poll.poll(0))

    def drain_errors(self) -> Counter[int]:
        """Empty the error queue. Returns how often it held each errno.

        We never switch IP_RECVERR on: one unread entry keeps the descriptor "ready" for reading and
        writing alike, and a task that waits for it spins at full speed. But the socket is borrowed,
        so its owner may have. On other systems there is no such queue.
        """
        found: Counter[int] = Counter()
        if not _LINUX or self.closed:
            return found
        with self.plain() as plain:
            for _ in range(_MOST_ERRORS):
                try:
                    _, control, _, _ = plain.recvmsg(0, _abi.CONTROL_SIZE, _abi.MSG_ERRQUEUE)
                except OSError:
                    break
                for level, kind, data in control:
                    if (level, kind) in _RECVERR and len(data) >= _ERRNO.size:
                        found[_ERRNO.unpack_from(data)[0]] += 1
        return found

    @contextlib.contextmanager
    def plain(self) -> Iterator[socket.socket]:
        """The socket as the standard library's, for as long as no other task can run.

        A trio socket has no synchronous methods. The same descriptor in an object of its own has,
        and it is let go again before anybody could close it.
        """
        if isinstance(self.sock, socket.socket):
            yield self.sock
            return
        plain = socket.socket(
            self.sock.family, self.sock.type, self.sock.proto, fileno=self.sock.fileno()
        )
        try:
            plain.setblocking(False)
            yield plain
        finally:
            plain.detach()

    # -- what the kernel says of the socket

    def option(self, level: int, name: int) -> int | None:
        """An integer option, `None` where the system does not know it."""
        try:
            return self.sock.getsockopt(level, name)
        except OSError:
            return None

    @property
    def receive_buffer_size(self) -> int:
        """SO_RCVBUF, 0 where the socket is closed."""
        return self.option(socket.SOL_SOCKET, socket.SO_RCVBUF) or 0

    @property
    def send_buffer_size(self) -> int:
        """SO_SNDBUF, 0 where the socket is closed."""
        return self.option(socket.SOL_SOCKET, socket.SO_SNDBUF) or 0

    @property
    def gro(self) -> bool:
        """Whether a received message can be a train; `False` where the socket is closed."""
        return _LINUX and bool(self.option(_abi.SOL_UDP, _abi.UDP_GRO))

    def local_address(self) -> Address:
        """What the socket is bound to.

        Raises:
          trio.ClosedResourceError: it is closed.
        """
        if self.closed:
            raise trio.ClosedResourceError("the socket was closed")
        address: Address = self.sock.getsockname()
        return address

    def peer(self) -> Address | None:
        """Whom the socket is connected to; `None` where it is not."""
        try:
            peer: Address = self.sock.getpeername()
        except OSError:
            return None
        return peer

    def hears_errors(self) -> bool:
        """Whether errors about earlier datagrams can be pending at this socket.

        They can where it is connected, or its owner switched IP_RECVERR on.
        """
        if self.peer() is not None:
            return True
        levels = _RECVERR if self.family == socket.AF_INET6 else _RECVERR[:1]
        return _LINUX and any(self.option(level, name) for level, name in levels)

    def drops(self) -> int | None:
        """What the kernel dropped from the socket's queue: buffers, see `ReceiverStatistics`."""
        return drops_of(self.sock)

    # -- what we switch on

    def enable_gro(self) -> None:
        """Ask for trains, where the kernel has them.

        It is never switched off again: with trains queued that would glue their datagrams together
        without a trace.
        """
        if _LINUX:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(_abi.SOL_UDP, _abi.UDP_GRO, 1)

    def prepare_for_sending(self, *, gso: bool) -> None:
        """Make sure that the socket can send, forbid fragmentation, and see whether there is GSO.

        The latter is only asked, not tried: a UDP_SEGMENT left set on the socket would segment
        every plain send of the program that lent it to us. Where the socket's owner lets IP
        fragment that stays so, and nothing is segmented: see `_forbid_fragmentation`.

        Raises:
          ValueError: the socket is neither bound nor connected, or segments whatever is sent.
        """
        self._check_bound()
        segmenting = self.option(_abi.SOL_UDP, _abi.UDP_SEGMENT) if _LINUX else None
        if segmenting:
            raise ValueError("UDP_SEGMENT is set on the socket; it would segment every plain send")
        self.gso = self._forbid_fragmentation() and gso and segmenting is not None

    def _check_bound(self) -> None:
        # The kernel would look for a port on the first send, and where all are taken it answers
        # EAGAIN while it says that the socket is writable: a loop without end, a millisecond of
        # kernel time each turn.
        try:
            port = self.sock.getsockname()[1]
        except OSError:  # Windows has no name for a socket that was never bound
            port = 0
        if not port:
            raise ValueError("the socket must be bound, or connected, before it can send")

    def _forbid_fragmentation(self) -> bool:
        """Returns whether that is so now."""
        # Set DF on everything sent, and let nothing but the interface's MTU refuse a datagram.
        # Without it the kernel sends trains with DF clear and overlapping IPv4 identifications, so
        # that fragments of different datagrams can be put together to a wrong one; and an oversize
        # datagram would be fragmented when it goes alone and refused when it goes in a train. PROBE
        # also ignores what strangers' ICMP messages claim about the path's MTU (RFC 8899, 4.1).
        #
        # A dual-stack socket reaches IPv4 peers under the IPv4 option. Where a sandbox refuses,
        # sends work all the same.
        #
        # Modes that are nobody's default are their owner's wish (DONT is one for IPv4, where
        # net.ipv4.ip_no_pmtu_disc is set). Trains would have to go with DF clear then, see above,
        # and those of oversize datagrams would be refused; so each datagram goes alone.
        options = [(_abi.SOL_IP, _abi.IP_MTU_DISCOVER, {_abi.IP_PMTUDISC_OMIT})]
        if self.family == socket.AF_INET6:
            chosen = {_abi.IP_PMTUDISC_OMIT, _abi.IP_PMTUDISC_DONT}
            options.append((_abi.SOL_IPV6, _abi.IPV6_MTU_DISCOVER, chosen))
        forbidden = True
        for level, name, fragmenting in options if _LINUX else ():
            if self.option(level, name) in fragmenting:
                forbidden = False
                continue
            with contextlib.suppress(OSError):
                self.sock.setsockopt(level, name, _abi.IP_PMTUDISC_PROBE)
        return forbidden

    def report(self, flag: str) -> None:
        """Switch on the control messages that fill one of a train's ancillary fields.

        Args:
          flag: "ecn", "packet_info" or "timestamps".

        Raises:
          ValueError: this system cannot report it.
        """
        if not _LINUX:
            raise ValueError(f"{flag}=True: only Linux reports it")
        for level, name in _REPORTS[flag]:
            if level == _abi.SOL_IPV6 and self.family != socket.AF_INET6:
                continue
            try:
                self.sock.setsockopt(level, name, 1)
            except OSError as error:
                raise ValueError(f"{flag}=True: this system cannot report it ({error})") from error


@runtime_checkable
class BringsIO(Protocol):
    """A socket that is no socket of the system: whoever uses it does so through what it brings."""

    def _open_io(self) -> SocketIO: ...


def drops_of(sock: Socket) -> int | None:
    """What the kernel dropped from a socket's queue; `None` if it does not say, or it is closed."""
    if not _LINUX:
        return None
    try:
        raw = sock.getsockopt(_abi.SOL_SOCKET, _abi.SO_MEMINFO, _MEMINFO.size)
    except OSError:
        return None
    whole = len(raw) == _MEMINFO.size
    return int(_MEMINFO.unpack(raw)[_abi.SK_MEMINFO_DROPS]) if whole else None
