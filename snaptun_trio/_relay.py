# UdpRelay: a forwarder between clients and one or several targets.
#
# It checks what is asked for, finds the targets, and opens the sockets that clients know and closes
# them. What forwards is in `_relay_in_process`, or in the processes of `_relay_workers`.

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, final

import trio

from ._expiry import check_seconds
from ._groups import raise_single
from ._kernel._sockets import check_socket, close_socket, descriptor_limits, open_connected
from ._relay_functions import RelayFunctions
from ._relay_in_process import RelayInProcess
from ._relay_settings import RelaySettings
from ._relay_sums import nothing
from ._relay_workers import RelayWorkers
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
    from collections.abc import Iterable, Sequence

    from ._kernel._interface import Socket
    from ._relay_functions import Admit, OnError, RelayFunction
    from ._relay_statistics import RelayStatistics
    from ._sockets import Local
    from ._train import Address

_MOST_WORKERS = 1024  # more is a mistake


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

    **A protocol** goes into ``from_client`` and ``from_target``: what they return goes on, as whole
    batches, and costs no task for each client. They cannot wait; `RelayClient.answer` sends to the
    client itself, and `RelayClient.close` ends its session. A client that is shed is never seen by
    them, and the last answers of a session are, however it ends. If one raises, the relay sends
    what others have returned, gives up the rest, as ``"closed"``, and calls none any more.

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
      admit: a plain function ``(address, first_batch) -> bool`` that decides before a session is
        begun, and before anybody has to go for it. What it refuses is dropped, as ``"refused"``.
      from_client: a plain function that is called with what one client sent in one batch, and the
        `RelayClient`. It returns what goes on to the client's target: a batch, whoever its trains
        are addressed to, or the packets, any iterable of them, or `None` for nothing. Anything else
        is a `TypeError`. An exception ends the relay, unless there is ``on_error``.
      from_target: the same for what a client's target answered, which comes addressed to the
        client; what it returns goes to the client.
      on_error: a plain function that is called with the exception and the `RelayClient` when one of
        them raises; what it was called with is dropped then, and the relay goes on. What it raises
        itself ends the relay.
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
      workers: 0 relays in this process. With more, so many processes of their own relay, on one
        port (``SO_REUSEPORT``), and ``max_sessions`` and ``session_rate`` are each worker's. One
        that dies is replaced, which is logged: its socket stays, so that what comes meanwhile
        waits, and nobody else's clients move. Not on Windows.
      reuse_port: see `open_udp_socket`; for the clients' socket.
      receive_buffer, send_buffer: see `open_udp_socket`; for every socket.
      fragment: let IP fragment what is over the MTU of the next link, which is refused otherwise
        (the relay cannot choose its sizes). Trains go out datagram by datagram then.

    Raises:
      TypeError, ValueError: an argument has the wrong type, a number is out of its range, or a
        target is given twice; a function is async; there are functions together with ``duplicate``,
        which has no sessions, or with ``workers``, which are other processes.
    """

    def __init__(
        self,
        local: Local | trio.socket.SocketType | socket.socket,
        targets: Iterable[Address],
        *,
        admit: Admit | None = None,
        from_client: RelayFunction | None = None,
        from_target: RelayFunction | None = None,
        on_error: OnError | None = None,
        duplicate: bool = False,
        max_sessions: int | None = None,
        session_rate: int = 8192,
        idle_timeout: float = 60.0,
        grace: float = 1.0,
        workers: int = 0,
        reuse_port: bool = False,
        receive_buffer: int = DEFAULT_BUFFER,
        send_buffer: int = DEFAULT_BUFFER,
        fragment: bool = False,
    ) -> None:
        check_flags(duplicate=duplicate)
        options = checked_options(reuse_port, receive_buffer, send_buffer, fragment)
        check_int("workers", workers, 0, _MOST_WORKERS)
        if workers and sys.platform == "win32":
            raise ValueError("workers: a socket cannot be handed to a process on Windows")
        functions = RelayFunctions(admit, from_client, from_target, on_error)
        self._functions = functions if functions.any else None
        if functions.any and duplicate:
            raise ValueError("duplicate: there are no sessions, and so no functions")
        if functions.any and workers:
            raise ValueError("workers: a function cannot be handed to a process")
        if max_sessions is not None:
            check_int("max_sessions", max_sessions, 1, 2**31)
            # Each has a descriptor. The soft limit does not count: a program may raise it later.
            most = descriptor_limits().ever
            if most is not None and max_sessions > most:
                may = f"a process may have at most {most} open files here"
                raise ValueError(f"max_sessions={max_sessions}: {may}")
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
        if workers > 1 and (self._given is not None or isinstance(local, int)):
            raise ValueError("workers: each needs a socket of its own, so give an address")
        self._asked = checked_targets(targets)
        self._reuse_port = reuse_port
        self._settings = RelaySettings(
            duplicate=duplicate,
            max_sessions=max_sessions,
            session_rate=session_rate,
            idle_timeout=idle_timeout,
            grace=grace,
            options=options._replace(reuse_port=False),
        )
        self._worker_count = workers
        self._targets: tuple[Address, ...] = ()
        self._began = self._stopped = False
        self._end = trio.Event()
        self._local_address: Address | None = None
        self._running: RelayInProcess | RelayWorkers | None = None

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
          Exception: what a function raised, unless ``on_error`` was asked.
          OSError: a name is not known, the address cannot be bound, or there is no way to a target;
            or the clients' socket failed.
          RuntimeError: it has begun before.
          ValueError: a target is the relay's own address.
        """
        if self._began:
            raise RuntimeError("a relay runs only once")
        self._began = True
        sockets = [] if self._given is None else [self._given]
        try:
            self._targets = await self._resolved(self._asked)
            if not sockets:
                await self._open(sockets)
            self._local_address = sockets[0].getsockname()
            if self._local_address in self._targets:
                raise ValueError(f"a target is the relay itself: {self._local_address}")
            self._running = running = self._begin(sockets)
            if self._stopped:
                running.stop()
            await running.run(lambda: task_status.started(self))
        except BaseExceptionGroup as group:
            raise_single(group)
        finally:
            for sock in sockets:
                close_socket(sock)
            self._end.set()
            if self._functions is not None:
                self._functions.raise_failure()  # itself, be it a group of the program's

    @trio.lowlevel.enable_ki_protection
    def stop(self) -> None:
        """Turn new clients away, and end `run` when nothing more comes, or after ``grace``.

        Stopping again does nothing.
        """
        self._stopped = True
        if self._running is not None:
            self._running.stop()

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
        if self._running is None or self._end.is_set():
            raise RuntimeError("the relay does not run")
        self._running.set_targets(found)
        self._targets = found

    def statistics(self) -> RelayStatistics:
        """A snapshot of what it has counted; afterwards too, when it has ended.

        With more than 200 sessions what the kernel dropped from their sockets is some calls old.
        """
        return nothing() if self._running is None else self._running.statistics()

    # -- from beginning to end

    async def _resolved(self, asked: Sequence[Address]) -> tuple[Address, ...]:
        """The first address of each that there is a way to, each once."""
        found: dict[Address, None] = {}
        for target in asked:
            tried: OSError | None = None
            for address in await resolve("targets", target):
                try:
                    open_connected(address, self._settings.options).close()
                except OSError as error:
                    tried = OSError(error.errno, f"{error.strerror}: target {address}")
                else:
                    found[address] = None
                    break
            else:
                raise tried or OSError(f"no address is known of {target}")
        return tuple(found)  # noqa: ASYNC910  # there is one, and to resolve it was a checkpoint

    async def _open(self, sockets: list[Socket]) -> None:  # noqa: ASYNC910  # it was one to resolve
        """Open a socket, or one for each worker, and put them into the list as they come."""
        options = {**self._settings.options._asdict(), "reuse_port": self._reuse_port}
        sockets.append(await open_udp_socket(self._local, **options))
        if self._worker_count > 1:
            # Not before: a port that is in use is told, though its owner may share it too.
            sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        options["reuse_port"] = True
        while len(sockets) < self._worker_count:
            sockets.append(await open_udp_socket(sockets[0].getsockname(), **options))

    def _begin(self, sockets: Sequence[Socket]) -> RelayInProcess | RelayWorkers:
        if not self._worker_count:
            return RelayInProcess(sockets[0], self._targets, self._settings, self._functions)
        return RelayWorkers(sockets, self._targets, self._settings)
