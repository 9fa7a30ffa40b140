# UdpRelay: a forwarder between clients and one or several targets.
#
# It checks what is asked for, opens the socket that clients know, and begins and ends everything in
# the right order. How datagrams are moved is in `_relay_front`.

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

from ._expiry import check_seconds
from ._groups import raise_single
from ._kernel._sockets import (
    check_socket,
    close_socket,
    descriptor_limits,
    open_connected,
)
from ._relay_account import FlowAccount, SessionCounts, told
from ._relay_front import RelayFront
from ._sockets import (
    DEFAULT_BUFFER,
    check_local,
    checked_options,
    checked_targets,
    open_udp_socket,
    refuse_options,
    resolve,
)
from ._train import check_flags, check_int

if TYPE_CHECKING:
    import socket as stdlib_socket
    from collections.abc import Iterable, Sequence

    from ._kernel._interface import Socket
    from ._relay_statistics import RelayStatistics
    from ._sockets import Local
    from ._train import Address

# Of the descriptors that the process may have, what sessions get; and what where none is told.
_SHARE_OF_DESCRIPTORS = 0.7
_MANY_SESSIONS = 10_000
# A relay that was stopped is done when nothing has come for so long, in seconds.
_QUIET = 0.1


@final
class UdpRelay:
    """Forwards datagrams from clients to targets, and the answers back.

    Each client gets a *session*: a socket of its own towards its target, so that answers find their
    way back and each target sees who is who. Whole trains go through it both ways, one system call
    each::

        relay = UdpRelay(("::", 5353), [("192.0.2.1", 53)])
        async with trio.open_nursery() as nursery:
            await nursery.start(relay.run)
            print("relaying on port", relay.local_address[1])

    **Which target** a client has is decided by rendezvous hashing of its host: it is the same after
    every restart and in every process, and when a target is taken away only its own sessions move.
    With ``duplicate`` there are no sessions: everything goes to every target, and what they answer
    is dropped.

    **Nobody is held up.** The sockets' buffers are the only queues. What a target's socket does not
    take at once is dropped, for that session alone, and counted; and so are answers that the
    clients' socket does not take.

    **Strangers** cannot grow it. There are at most ``max_sessions``. For one more, a client that
    has sent only once has to go, the one that was silent for longest; sessions of clients that sent
    more are never given up for a newcomer's sake, and where all are of that kind the newcomer is
    shed. At most 1024 sessions are begun at once, and ``session_rate`` a second; what goes beyond
    is shed too.

    **The end.** `stop`, and `drain` which waits for it, turns new clients away, lets the sessions
    go on until each was answered and nothing has come for 0.1 seconds, at most for ``grace``, and
    ends `run`. Cancelling `run` ends it at once. Either way what the kernel has received by then is
    sent, as far as that goes without waiting.

    Args:
      local: where clients send to: what `open_udp_socket` takes as ``local``, or a bound UDP
        socket, which is closed at the end. On a wildcard address answers leave from the address
        that a client's first datagram came to.
      targets: ``(host, port)`` of each, at least one, and none twice. Names are resolved when it
        begins; two that turn out to be one address are one target.
      duplicate: send everything to every target.
      max_sessions: by default 70 % of the descriptors that the process may have, and at most as
        many as it may ever have (the hard RLIMIT_NOFILE). It may be smaller in fact: each session
        takes a port of its own as well.
      session_rate: how many sessions may be begun in a second, after the first 1024 at once; beyond
        it new clients are turned away. Where each question comes from a port of its own, as those
        of DNS resolvers do, it is also how many questions a second get through.
      idle_timeout: after so many seconds without a datagram either way a session ends; `math.inf`
        for never.
      grace: how many seconds `stop` lets the sessions go on at most.
      reuse_port: see `open_udp_socket`; for the clients' socket.
      receive_buffer, send_buffer: see `open_udp_socket`; for every socket.
      fragment: let IP fragment what is over the MTU of the next link, which is refused otherwise
        (the relay cannot choose its sizes). Trains go out datagram by datagram then.

    Raises:
      TypeError, ValueError: an argument has the wrong type, a number is out of its range, or a
        target is given twice.
    """

    def __init__(
        self,
        local: Local | trio.socket.SocketType | stdlib_socket.socket,
        targets: Iterable[Address],
        *,
        duplicate: bool = False,
        max_sessions: int | None = None,
        session_rate: int = 8192,
        idle_timeout: float = 60.0,
        grace: float = 1.0,
        reuse_port: bool = False,
        receive_buffer: int = DEFAULT_BUFFER,
        send_buffer: int = DEFAULT_BUFFER,
        fragment: bool = False,
    ) -> None:
        check_flags(duplicate=duplicate)
        options = checked_options(reuse_port, receive_buffer, send_buffer, fragment)
        limits = descriptor_limits()
        if max_sessions is None:
            share = int((limits.now or 0) * _SHARE_OF_DESCRIPTORS)
            max_sessions = _MANY_SESSIONS if limits.now is None else max(1, share)
        check_int("max_sessions", max_sessions, 1, 2**31)
        # Each has a descriptor. The soft limit does not count: a program may raise it later.
        if limits.ever is not None and max_sessions > limits.ever:
            raise ValueError(
                f"max_sessions={max_sessions}: a process may have at most {limits.ever} open files "
                "here"
            )
        check_int("session_rate", session_rate, 1, 2**31)
        check_seconds("idle_timeout", idle_timeout)
        check_seconds("grace", grace, zero=True)
        self._given: Socket | None = None
        self._local: Local = None
        if local is None or isinstance(local, tuple | int):
            check_local(local, reuse_port=reuse_port)
            self._local = local
        else:
            wanted = "a socket, an address (host, port) or a descriptor"
            self._given = check_socket(local, wanted)
            refuse_options(reuse_port=(reuse_port, False))
        self._asked = checked_targets(targets)
        self._duplicate = duplicate
        self._max_sessions = max_sessions
        self._session_rate = session_rate
        self._idle_timeout = idle_timeout
        self._grace = grace
        self._reuse_port = reuse_port
        self._options = options._replace(reuse_port=False)
        self._targets: tuple[Address, ...] = ()
        self._stop, self._end = trio.Event(), trio.Event()
        self._began = False
        self._local_address: Address | None = None
        self._front: RelayFront | None = None
        self._to_targets, self._to_clients = FlowAccount(), FlowAccount()

    def __repr__(self) -> str:
        where = "not begun" if self._local_address is None else f"on {self._local_address}"
        return f"<UdpRelay {where}: {len(self._targets or self._asked)} targets>"

    @property
    def local_address(self) -> Address:
        """The address that clients send to, afterwards too, when it has ended.

        Raises:
          RuntimeError: it has not begun.
        """
        if self._local_address is None:
            raise RuntimeError("the relay has not begun")
        return self._local_address

    @property
    def targets(self) -> tuple[Address, ...]:
        """The numeric addresses of the targets; none before it has begun."""
        return self._targets

    @trio.lowlevel.enable_ki_protection
    async def run(  # noqa: ASYNC910  # it waits until it is stopped
        self, *, task_status: trio.TaskStatus[UdpRelay] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Relay, until it is stopped or cancelled. Once only.

        Args:
          task_status: ``await nursery.start(relay.run)`` returns the relay once it can be sent to.

        Raises:
          OSError: a name is not known, the address cannot be bound, or there is no way to a target;
            or the clients' socket failed.
          RuntimeError: it has begun before.
          ValueError: a target is the relay's own address.
        """
        if self._began:
            raise RuntimeError("a relay runs only once")
        self._began = True
        sock = self._given
        try:
            self._targets = await self._resolved(self._asked)
            if sock is None:
                sock = await open_udp_socket(
                    self._local,
                    reuse_port=self._reuse_port,
                    receive_buffer=self._options.receive_buffer,
                    send_buffer=self._options.send_buffer,
                    fragment=self._options.fragment,
                )
            await self._run(sock, task_status)
        except BaseExceptionGroup as group:
            raise_single(group)
        finally:
            if sock is not None:
                close_socket(sock)
            self._end.set()

    def stop(self) -> None:
        """Turn new clients away, and end `run` when nothing more comes, or after ``grace``.

        Stopping again does nothing.
        """
        if self._front is not None:
            self._front.forwarding.stopping = True
        self._stop.set()

    async def drain(self) -> None:
        """`stop`, and wait until `run` has returned. A checkpoint; if cancelled, it is stopped."""
        self.stop()
        await trio.lowlevel.checkpoint()
        if self._began:
            await self._end.wait()

    @trio.lowlevel.enable_ki_protection
    async def set_targets(self, targets: Iterable[Address]) -> None:
        """Have other targets from now on, after their names are resolved. A checkpoint.

        As in the constructor, names that turn out to be one address are one target. Sessions whose
        target is none of them any more end; what their clients send next begins new ones. All
        others stay as they are. If cancelled, nothing has changed.

        Raises:
          OSError: a name is not known, or there is no way to a target.
          RuntimeError: it has not begun, or has ended.
          TypeError, ValueError: an address is none, or is given twice, or there is no target.
        """
        asked = checked_targets(targets)
        found = await self._resolved(asked)
        if self._front is None or self._end.is_set():
            raise RuntimeError("the relay does not run")
        self._front.forwarding.set_targets(found)
        self._targets = found

    def statistics(self) -> RelayStatistics:
        """A snapshot of what it has counted; afterwards too, when it has ended.

        With more than 200 sessions what the kernel dropped from their sockets is some calls old.
        """
        if self._front is None:
            return told(
                SessionCounts(), 0, self._to_targets.snapshot(), self._to_clients.snapshot()
            )
        forwarding, received = self._front.forwarding, self._front.receiver.statistics()
        senders = [one.sender for one in forwarding.upstreams() if one.sender is not None]
        return told(
            forwarding.counts,
            len(forwarding),
            self._to_targets.snapshot(senders, received.buffers_dropped_by_kernel or 0),
            self._to_clients.snapshot([self._front.sender], forwarding.buffers_dropped()),
        )

    # -- from beginning to end

    async def _resolved(self, asked: Sequence[Address]) -> tuple[Address, ...]:
        """The first address of each that there is a way to, each once."""
        found: dict[Address, None] = {}
        for target in asked:
            tried: OSError | None = None
            for address in await resolve("targets", target):
                try:
                    open_connected(address, self._options).close()
                except OSError as error:
                    tried = OSError(error.errno, f"{error.strerror}: target {address}")
                else:
                    found[address] = None
                    break
            else:
                raise tried or OSError(f"no address is known of {target}")
        return tuple(found)  # noqa: ASYNC910  # there is one, and to resolve it was a checkpoint

    async def _run(self, sock: Socket, task_status: trio.TaskStatus[UdpRelay]) -> None:
        if sock.getsockname() in self._targets:
            raise ValueError(f"a target is the relay itself: {sock.getsockname()}")
        self._front = front = RelayFront(
            sock,
            self._targets,
            duplicate=self._duplicate,
            max_sessions=self._max_sessions,
            session_rate=self._session_rate,
            idle_timeout=self._idle_timeout,
            options=self._options,
            to_targets=self._to_targets,
            to_clients=self._to_clients,
        )
        self._local_address = front.receiver.local_address
        front.forwarding.stopping = self._stop.is_set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(front.move)
                nursery.start_soon(front.expire)
                nursery.start_soon(front.notice_closing)
                task_status.started(self)
                await self._stop.wait()
                await self._until_quiet()
                nursery.cancel_scope.cancel(reason="the relay was stopped")
        finally:
            with trio.CancelScope(shield=True):
                await front.finish()

    async def _until_quiet(self) -> None:  # noqa: ASYNC910  # it was one to be stopped
        assert self._front is not None
        with trio.move_on_after(self._grace):  # noqa: ASYNC912
            before = -1
            while (now := self._came) != before or self._front.forwarding.is_asked:
                before = now
                await trio.sleep(_QUIET)

    @property
    def _came(self) -> int:
        return self._to_targets.datagrams_in + self._to_clients.datagrams_in
