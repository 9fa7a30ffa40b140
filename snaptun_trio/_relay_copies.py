# A relay that sends everything to every target, and drops what they answer.
#
# Each target has a socket of its own: what is full, or refused, for one is nothing to the others.

from __future__ import annotations

from typing import TYPE_CHECKING

from ._batch import messages_of
from ._relay_account import SessionCounts, TargetAccount, accounts_of
from ._upstream import Upstream, send_each

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._batch import PacketBatch
    from ._kernel._fan import Fan
    from ._kernel._poller import Poller
    from ._kernel._sockets import SocketOptions
    from ._relay_account import FlowAccount
    from ._train import Address


class RelayCopies:
    """The ways to all targets.

    Args:
      fan: to targets.
      poller: is told which sockets to watch.
      targets: where to.
      nobody: an address for answers, which go nowhere.
      to_targets, to_clients: the accounts.

    Attributes:
      accounts: of each target.

    Raises:
      OSError: there is no socket, or no way, to one of them.
    """

    def __init__(
        self,
        fan: Fan,
        poller: Poller[Upstream],
        targets: Sequence[Address],
        nobody: Address,
        *,
        options: SocketOptions,
        to_targets: FlowAccount,
        to_clients: FlowAccount,
    ) -> None:
        self._fan = fan
        self._nobody = nobody
        self._options = options
        self._to_targets, self._to_clients = to_targets, to_clients
        self._poller = poller
        self._upstreams: dict[Address, Upstream] = {}
        self._dropped_before = 0
        self.accounts: dict[Address, TargetAccount] = {}
        self.counts = SessionCounts()  # it has no sessions
        self.stopping = False
        self.is_asked = False  # nobody waits for an answer
        try:
            self.set_targets(targets)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return 0

    def upstreams(self) -> Iterator[Upstream]:
        """All of them."""
        return iter(self._upstreams.values())

    def buffers_dropped(self) -> int:
        """What the kernel dropped of what targets sent back."""
        return self._dropped_before + sum([one.io.drops() or 0 for one in self.upstreams()])

    async def forward(self, batch: PacketBatch[Address]) -> None:  # noqa: ASYNC910
        """Send what clients sent to every target."""
        account, upstreams = self._to_targets, list(self._upstreams.values())
        messages = messages_of(batch)[0]
        copies = len(upstreams) * messages.datagrams
        account.received(1, messages)
        account.added += copies - messages.datagrams
        account.handing_out += copies
        send_each(upstreams, [messages] * len(upstreams), self._fan, account)

    def answer(self, ready: list[Upstream]) -> int:
        """Drop what these targets answer. Returns how much it was, in datagrams and errors."""
        found = 0
        while ready:
            messages, served, error = self._fan.receive(ready)
            found += messages.datagrams + bool(error)
            if error:
                ready[served - 1].account.note_error(error)
            self._to_clients.received(served, messages)
            self._to_clients.drop("answer", messages.datagrams)
            ready = ready[served:]
        return found

    async def expire(self) -> None:
        """Nothing expires."""

    def set_targets(self, targets: Sequence[Address]) -> None:
        """Other targets from now on.

        Raises:
          OSError: there is no socket, or no way, to one of them; nothing has changed.
        """
        accounts = accounts_of(targets, self._to_targets, self.accounts)
        opened: list[Upstream] = []
        try:
            for target, account in accounts.items():
                if target not in self._upstreams:
                    more = (account, self._nobody, None, self._options, self._fan)
                    opened.append(Upstream(target, *more))
                    self._poller.add(opened[-1].io, opened[-1])
        except BaseException:
            for upstream in opened:
                self._close(upstream)
            raise
        for target in set(self._upstreams).difference(targets):
            self._close(self._upstreams.pop(target))
        self._upstreams.update({upstream.target: upstream for upstream in opened})
        self.accounts = accounts

    def _close(self, upstream: Upstream) -> None:
        self._poller.remove(upstream.io.sock.fileno(), upstream.io)
        self._dropped_before += upstream.io.drops() or 0
        upstream.close()

    def close(self) -> None:
        """Close everything."""
        while self._upstreams:
            self._close(self._upstreams.popitem()[1])
