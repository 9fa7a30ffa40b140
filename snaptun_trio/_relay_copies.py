# A relay that sends everything to every target, and drops what they answer.
#
# Each target has a socket of its own: what is full, or refused, for one is nothing to the others.

from __future__ import annotations

from typing import TYPE_CHECKING

from ._relay_account import FlowAccount, SessionCounts
from ._upstream import Upstream, send_or_drop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._batch import PacketBatch
    from ._kernel._sockets import SocketOptions
    from ._pool import PacketBufPool
    from ._receiver import UdpBatchReceiver
    from ._receiver_group import Received, UdpReceiverGroup
    from ._train import Address


class RelayCopies:
    """The ways to all targets.

    Args:
      group: receives from targets.
      targets: where to.
      to_targets, to_clients: the accounts.

    Raises:
      OSError: there is no socket, or no way, to one of them.
    """

    stopping = False

    def __init__(
        self,
        group: UdpReceiverGroup,
        targets: Sequence[Address],
        *,
        options: SocketOptions,
        pool: PacketBufPool,
        to_targets: FlowAccount,
        to_clients: FlowAccount,
    ) -> None:
        self._options = options
        self._pool = pool
        self._to_targets, self._to_clients = to_targets, to_clients
        self._group = group
        self._upstreams: dict[Address, Upstream] = {}
        self.counts = SessionCounts()  # it has no sessions
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

    async def forward(self, batch: PacketBatch[Address]) -> None:
        """Send what clients sent to every target."""
        account = self._to_targets
        account.added += (len(self._upstreams) - 1) * len(batch)
        copy = batch.to(None)
        for upstream in self._upstreams.values():
            send_or_drop(upstream.sender, copy, account)

    def answer(self, received: list[Received]) -> None:
        """Drop what targets answered."""
        for _, batch in received:
            self._to_clients.drop("answer", len(batch))

    def failed_one(self, receiver: UdpBatchReceiver) -> None:
        """What a target answers is not received any more. Its datagrams go on all the same."""

    async def expire(self) -> None:
        """Nothing expires."""

    def set_targets(self, targets: Sequence[Address]) -> None:
        """Other targets from now on.

        Raises:
          OSError: there is no socket, or no way, to one of them; those before it are served.
        """
        for target in set(self._upstreams).difference(targets):
            self._close(target)
        for target in targets:
            if target not in self._upstreams:
                upstream = Upstream(target, self._options, self._pool)
                self._upstreams[target] = upstream
                self._group.add(upstream.receiver)

    def _close(self, target: Address) -> None:
        upstream = self._upstreams.pop(target)
        self._group.discard(upstream.receiver)
        upstream.close()
        self._to_targets.forget_sender(upstream.sender)
        self._to_clients.forget_receiver(upstream.receiver)

    def close(self) -> None:
        """Close everything."""
        for target in list(self._upstreams):
            self._close(target)
