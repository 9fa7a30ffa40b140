# The sessions of a relay: a way to a target for each client, and the answers' way back.
#
# Nothing here waits for a socket: what cannot go on at once is dropped and counted. All sessions'
# sockets are read and written together; that goes through no receiver group, because a batch object
# for each socket costs more than its system calls do. Who may come and who has to go is
# `_peer_table`'s matter, how fast `_openings`'.

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ._batch import PacketBatch, messages_of
from ._expiry import let_go_of_the_silent
from ._kernel import _errnos
from ._messages import PER_TRAIN_ADDRESS
from ._openings import Openings
from ._peer_table import PeerTable
from ._rare_log import RareLog
from ._relay_account import SessionCounts, accounts_of
from ._rendezvous import choose
from ._upstream import Upstream, send_each, send_or_drop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._kernel._fan import Fan
    from ._kernel._poller import Poller
    from ._kernel._sockets import SocketOptions
    from ._messages import Messages
    from ._relay_account import FlowAccount
    from ._relay_client import RelayClient
    from ._sender import UdpBatchSender
    from ._train import Address, Way

# So many sessions are opened before other tasks have their turn: to open one takes 50 us.
_OPENED_A_TURN = 32
# That a session is in use is noted so many times in an ``idle_timeout``: to do so each time takes
# a tenth of what the whole session's turn does.
_NOTES = 64
# So many sockets are asked at once what the kernel dropped; each takes some microseconds.
_ASKED_AT_ONCE = 200
# So many receive calls at most for a session that has to go: as many as a full buffer can need.
_LAST_CALLS = 1024


class RelaySession(Upstream):
    """One client's way to its target.

    Attributes:
      last_heard, established: see `_peer_table.Peer`. It is established once its client has sent a
        second time.
      noted_until: when it has to be noted again that it is in use.
      unanswered: whether the client was the last to send something.
      buffers_dropped: what the kernel had dropped from its socket when it was asked last.
      way: from which address of ours answers leave.
      client, asked: see `_relay_protocol`, which alone has them.
    """

    __slots__ = (
        *("asked", "buffers_dropped", "client", "established"),
        *("last_heard", "noted_until", "unanswered", "way"),
    )

    asked: bool
    buffers_dropped: int
    client: RelayClient
    last_heard: float
    established: bool
    noted_until: float
    unanswered: bool
    way: Way | None


class RelaySessions:
    """All sessions of one relay.

    Args:
      front: sends to clients.
      fan: between clients' socket and the sessions'.
      poller: is told which sockets to watch.
      targets: where to; at least one.
      to_targets, to_clients: the accounts.

    Attributes:
      accounts: of each target.
    """

    def __init__(
        self,
        front: UdpBatchSender,
        fan: Fan,
        poller: Poller[RelaySession],
        targets: Sequence[Address],
        *,
        max_sessions: int,
        session_rate: int,
        idle_timeout: float,
        options: SocketOptions,
        to_targets: FlowAccount,
        to_clients: FlowAccount,
    ) -> None:
        self._front = front
        self._fan = fan
        self._targets = targets
        self._idle_timeout = idle_timeout
        self._grain = min(idle_timeout / _NOTES, 1.0)
        self._options = options
        self._to_targets, self._to_clients = to_targets, to_clients
        self.accounts = accounts_of(targets, to_targets, {})
        self._table: PeerTable[RelaySession] = PeerTable(max_sessions, "strangers")
        self._poller = poller
        self._openings = Openings(session_rate)
        self._rare_log = RareLog()
        self._buffers_dropped = 0
        self._to_ask: list[Address] = []  # no sessions, which it would keep beyond their end
        self.counts = SessionCounts()
        self.stopping = False

    def __len__(self) -> int:
        return len(self._table)

    def upstreams(self) -> Iterator[Upstream]:
        """All of them."""
        return iter(self._table)

    @property
    def is_asked(self) -> bool:
        """Whether a client waits for an answer, as far as one can know."""
        return any(session.unanswered for session in self._table)

    def buffers_dropped(self) -> int:
        """What the kernel dropped from the sockets of all sessions that there are.

        Some are asked each time, one after the other: with thousands it is some calls old.
        """
        for _ in range(min(_ASKED_AT_ONCE, len(self._table))):
            if not self._to_ask:
                self._to_ask = [session.address for session in self._table]
            session = self._table.get(self._to_ask.pop())
            if session is not None:
                self._ask(session)
        return self._buffers_dropped

    def _ask(self, session: RelaySession) -> None:
        dropped = session.io.drops()
        if dropped is not None:  # nor is the socket closed
            self._buffers_dropped += dropped - session.buffers_dropped
            session.buffers_dropped = dropped

    def _in_use(self, session: RelaySession, now: float, *, more: bool) -> None:
        self._table.heard(session, now, more=more)
        session.noted_until = now + self._grain

    # -- from clients to targets

    async def forward(self, batch: PacketBatch[Address]) -> None:  # noqa: ASYNC910
        """Send on what clients sent."""
        now, get = trio.current_time(), self._table.get
        everything = messages_of(batch)[0]
        self._to_targets.received(1, everything)
        self._to_targets.handing_out += everything.datagrams
        sessions: list[RelaySession] = []
        parts: list[Messages] = []
        opened = 0
        for client, messages in everything.by_address().items():
            assert client is not None, "whatever was received came from somewhere"
            session = get(client)
            if session is None:
                # Somebody may have to go for it, whose turn comes first.
                self._send(sessions, parts)
                session = self._let_in(client, messages, now)
                if session is None:
                    self._to_targets.handing_out -= messages.datagrams
                    continue
                opened += 1
            elif not session.established or now > session.noted_until:
                self._in_use(session, now, more=True)
            session.unanswered = True
            sessions.append(session)
            parts.append(messages)
            if opened >= _OPENED_A_TURN:
                self._send(sessions, parts)
                # Shielded: what the kernel has handed over is not lost to a cancellation.
                await trio.lowlevel.cancel_shielded_checkpoint()
                opened = 0
        self._send(sessions, parts)

    def _send(self, sessions: list[RelaySession], parts: list[Messages]) -> None:
        """Send to each session's target, and forget what was to be sent."""
        if sessions:
            send_each(sessions, parts, self._fan, self._to_targets)
            sessions.clear()
            parts.clear()

    def _let_in(self, client: Address, first: Messages, now: float) -> RelaySession | None:
        """A session for a new client, or `None`, and what it sent first is dropped."""
        victim = self._table.next_to_go() if self._table.is_full else None
        if self.stopping:
            reason = "stopping"
        elif self._table.is_full and victim is None:
            reason = "table full"
        elif not self._openings.take(now):
            reason = "no socket" if self._openings.paused(now) else "too many at once"
        else:
            if victim is not None:
                self.counts.evicted += self._let_go(victim)
            session = self._open(client, first, now)
            self.counts.shed += session is None
            return session
        self.counts.shed += 1
        self._to_targets.drop(reason, first.datagrams)
        return None

    def _open(self, client: Address, first: Messages, now: float) -> RelaySession | None:
        """A session whose answers are waited for.

        `None` where the system has none for us, or no way to the target; what came is dropped.
        """
        target = choose(client, self._targets)
        account = self.accounts[target]
        way = first.way_back()
        try:
            session = RelaySession(target, account, client, way, self._options, self._fan)
            try:
                self._poller.add(session.io, session)
            except BaseException:
                session.close()
                raise
        except OSError as error:
            nothing_left = error.errno in _errnos.NOTHING_LEFT  # which is no target's affair
            if nothing_left:
                self._openings.pause(now)
            (self._to_targets if nothing_left else account).drop("no socket", first.datagrams)
            message = "no session could be opened to %s: %s"
            self._rare_log.warn(error.errno or 0, message, target, error)
            return None
        session.last_heard, session.noted_until = now, now + self._grain
        session.buffers_dropped = 0
        session.way = way
        session.established = first.datagrams > 1
        self._table.add(session)
        self.counts.created += 1
        account.sessions += 1
        return session

    # -- from targets to clients

    def answer(self, ready: list[RelaySession]) -> int:
        """Read each of these sessions' sockets, and send to their clients what comes.

        Returns how much was there, in datagrams and errors.
        """
        now, found = trio.current_time(), 0
        while ready:
            messages, served, error = self._fan.receive(ready)
            if messages.datagrams:
                found += messages.datagrams
                self._to_clients.received(served, messages)
                self._to_clients.handing_out += messages.datagrams
                self._pass_back(messages)
            for session in ready[:served]:
                session.unanswered = False
                if now > session.noted_until:
                    self._in_use(session, now, more=False)
            if error:
                found += 1
                if error in _errnos.ASYNCHRONOUS:
                    ready[served - 1].account.note_error(error)
                else:
                    self.counts.failed += self._close(ready[served - 1])
            ready = ready[served:]
        return found

    def _pass_back(self, messages: Messages) -> None:
        """Send answers to the clients that they are for."""
        outgoing = self._front._io.outgoing(messages, PER_TRAIN_ADDRESS)
        send_or_drop(self._front, outgoing, self._to_clients)
        self._to_clients.handing_out -= messages.datagrams

    # -- the end of sessions

    async def expire(self) -> None:
        """Close the sessions through which nothing goes, for ever."""
        # A session may have been in use for so long after it was last noted.
        idle_timeout = self._idle_timeout + self._grain
        await let_go_of_the_silent(self._table, idle_timeout, self._expire)

    def _expire(self, session: RelaySession) -> None:
        self.counts.expired += self._let_go(session)

    def set_targets(self, targets: Sequence[Address]) -> None:
        """Other targets from now on. Sessions whose target is none of them any more are closed."""
        accounts = accounts_of(targets, self._to_targets, self.accounts)
        self._targets = targets
        self.accounts = self.accounts | accounts
        for session in list(self._table):
            if session.target not in targets:
                self.counts.moved += self._let_go(session)
        self.accounts = accounts

    def _let_go(self, session: RelaySession) -> bool:
        """Close a session whose last answers may have come already.

        Returns whether it was there to be closed: its socket may fail meanwhile.
        """
        for _ in range(_LAST_CALLS):
            if self._table.get(session.address) is not session or not self.answer([session]):
                break
        return self._close(session)

    def _close(self, session: RelaySession) -> bool:
        if self._table.get(session.address) is not session:
            return False
        self._table.remove(session)
        session.account.sessions -= 1
        fd = session.io.sock.fileno()
        self._poller.remove(fd, session.io)
        self._ask(session)
        session.close()
        return True

    def close(self) -> None:
        """Close everything, after a last look for answers."""
        for session in list(self._table):
            gone = self._let_go(session)
            self.counts.closed += gone  # not before: others may be closed meanwhile
