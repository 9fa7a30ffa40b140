# The sessions of a relay: a way to a target for each client, and the answers' way back.
#
# What came from clients is never held up: what cannot go on at once is dropped and counted. Answers
# of all sessions are read by one group, and leave together through the socket that clients know.
# Who may come and who has to go is `_peer_table`'s matter, how fast `_openings`'.

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from ._batch import PacketBatch, addressed, first_train, merged
from ._expiry import let_go_of_the_silent
from ._openings import Openings
from ._peer_table import PeerTable
from ._rare_log import RareLog
from ._relay_account import SessionCounts
from ._rendezvous import choose
from ._shared_flush import is_small
from ._train import way_back
from ._upstream import Upstream, send_or_drop

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ._kernel._sockets import SocketOptions
    from ._pool import PacketBufPool
    from ._receiver import UdpBatchReceiver
    from ._receiver_group import Received, UdpReceiverGroup
    from ._relay_account import FlowAccount
    from ._sender import UdpBatchSender
    from ._train import Address, Way

# So many sessions are served, or a sixteenth of it opened, before other tasks have their turn: to
# send takes 5 us, to open 80.
_SERVED_A_TURN = 256
_AN_OPENING = 16
# So many receive calls at most for a session that has to go.
_LAST_CALLS = 16


class RelaySession(Upstream):
    """One client's way to its target.

    Attributes:
      address: the client's.
      way: from which address of ours the answers leave; on a wildcard socket only.
      last_heard, established: see `_peer_table.Peer`. It is established once its client has sent a
        second time.
    """

    __slots__ = ("address", "established", "last_heard", "way")

    def __init__(
        self,
        client: Address,
        target: Address,
        options: SocketOptions,
        pool: PacketBufPool,
        now: float,
    ) -> None:
        super().__init__(target, options, pool)
        self.address = client
        self.way: Way | None = None
        self.last_heard = now
        self.established = False


class RelaySessions:
    """All sessions of one relay.

    Args:
      front: sends to clients.
      group: receives from targets.
      targets: where to; at least one.
      knows_ways: whether what clients send tells which address of ours it came to.
      to_targets, to_clients: the accounts.
    """

    def __init__(
        self,
        front: UdpBatchSender,
        group: UdpReceiverGroup,
        targets: Sequence[Address],
        *,
        max_sessions: int,
        idle_timeout: float,
        knows_ways: bool,
        options: SocketOptions,
        pool: PacketBufPool,
        to_targets: FlowAccount,
        to_clients: FlowAccount,
    ) -> None:
        self._front = front
        self._targets = targets
        self._idle_timeout = idle_timeout
        self._knows_ways = knows_ways
        self._options = options
        self._pool = pool
        self._to_targets, self._to_clients = to_targets, to_clients
        self._table: PeerTable[RelaySession] = PeerTable(max_sessions, "strangers")
        self._of_receiver: dict[UdpBatchReceiver, RelaySession] = {}
        self._group = group
        self._openings = Openings()
        self._rare_log = RareLog()
        self.stopping = False
        self.counts = SessionCounts()

    def __len__(self) -> int:
        return len(self._table)

    def upstreams(self) -> Iterator[Upstream]:
        """All of them."""
        return iter(self._table)

    # -- from clients to targets

    async def forward(self, batch: PacketBatch[Address]) -> None:  # noqa: ASYNC910
        """Send on what clients sent."""
        now, table, account = trio.current_time(), self._table, self._to_targets
        account.handing_out += len(batch)
        work = 0
        for client, part in batch.by_address().items():
            session = table.get(client)
            if session is not None:
                table.heard(session, now, more=True)
            else:
                work += _AN_OPENING
                session = self._let_in(client, part, now)
            account.handing_out -= len(part)
            if session is not None:
                send_or_drop(session.sender, part.to(None), account)
            work += 1
            if work >= _SERVED_A_TURN:
                # Shielded: what the kernel has handed over is not lost to a cancellation.
                await trio.lowlevel.cancel_shielded_checkpoint()
                work = 0

    def _let_in(
        self, client: Address, first: PacketBatch[Address], now: float
    ) -> RelaySession | None:
        """A session for a new client, or `None`, and what it sent first is dropped."""
        victim = self._table.next_to_go() if self._table.is_full else None
        if self.stopping:
            reason = "stopping"
        elif self._table.is_full and victim is None:
            reason = "table full"
        elif not self._openings.take(now):
            reason = "too many at once"
        else:
            if victim is not None:
                self.counts.evicted += 1
                self._let_go(victim)
            session = self._open(client, now)
            if session is not None:
                self._begin(session, first)
                return session
            reason = "no socket"
        self.counts.shed += 1
        self._to_targets.drop(reason, len(first))
        return None

    def _open(self, client: Address, now: float) -> RelaySession | None:
        """A session whose answers are waited for, `None` where the system has none for us."""
        target = choose(client, self._targets)
        try:
            session = RelaySession(client, target, self._options, self._pool, now)
            try:
                self._group.add(session.receiver)
            except BaseException:
                session.close()
                raise
        except OSError as error:
            self._openings.pause(now)
            message = "no session could be opened to %s: %s"
            self._rare_log.warn(error.errno or 0, message, target, error)
            return None
        return session

    def _begin(self, session: RelaySession, first: PacketBatch[Address]) -> None:
        if self._knows_ways:
            host, interface = way_back(first_train(first))
            session.way = None if host is None else (None, host, interface)
        session.established = len(first) > 1
        self._table.add(session)
        self._of_receiver[session.receiver] = session
        self.counts.created += 1

    # -- from targets to clients

    def answer(self, received: list[Received]) -> None:
        """Send to the clients what targets answered."""
        answers: list[PacketBatch] = []
        now = trio.current_time()
        for receiver, batch in received:
            session = self._of_receiver[receiver]
            self._table.heard(session, now, more=False)
            self._to_clients.handing_out += len(batch)
            answers.append(addressed(batch, session.address, session.way))
        for answer in in_common(answers):
            self._to_clients.handing_out -= len(answer)
            send_or_drop(self._front, answer, self._to_clients)

    def failed_one(self, receiver: UdpBatchReceiver) -> None:
        """The socket of a session is of no more use."""
        self.counts.failed += 1
        self._close(self._of_receiver[receiver])

    # -- the end of sessions

    async def expire(self) -> None:
        """Close the sessions through which nothing goes, for ever."""
        await let_go_of_the_silent(self._table, self._idle_timeout, self._expire)

    def _expire(self, session: RelaySession) -> None:
        self.counts.expired += 1
        self._close(session)

    def set_targets(self, targets: Sequence[Address]) -> None:
        """Other targets from now on. Sessions whose target is none of them any more are closed."""
        self._targets = targets
        for session in list(self._table):
            if session.target not in targets:
                self.counts.moved += 1
                self._let_go(session)

    def _let_go(self, session: RelaySession) -> None:
        """Close a session whose last answers may have come already."""
        with contextlib.suppress(trio.WouldBlock, trio.ClosedResourceError, OSError):
            for _ in range(_LAST_CALLS):
                self.answer([(session.receiver, session.receiver.receive_nowait())])
        self._close(session)

    def _close(self, session: RelaySession) -> None:
        self._table.remove(session)
        del self._of_receiver[session.receiver]
        self._group.discard(session.receiver)
        session.close()
        self._to_targets.forget_sender(session.sender)
        self._to_clients.forget_receiver(session.receiver)

    def close(self) -> None:
        """Close everything, after a last look for answers."""
        for session in list(self._table):
            self.counts.closed += 1
            self._let_go(session)


def in_common(batches: Iterable[PacketBatch]) -> Iterator[PacketBatch]:
    """The same in as few batches as it is worth: small ones that follow one another are one."""
    small: list[PacketBatch] = []
    for batch in batches:
        if is_small(batch):
            small.append(batch)
            continue
        if small:
            yield small[0] if len(small) == 1 else merged(small)
            small = []
        yield batch
    if small:
        yield small[0] if len(small) == 1 else merged(small)
