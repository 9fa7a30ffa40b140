# A relay that runs in this process: from its beginning to its end, and what it has counted. How
# datagrams are moved is in `_relay_front`; what was asked for is in `_relay`.

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ._kernel._sockets import descriptor_limits
from ._relay_account import FlowAccount, told
from ._relay_front import RelayFront

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._kernel._interface import Socket
    from ._relay_functions import RelayFunctions
    from ._relay_settings import RelaySettings
    from ._relay_statistics import RelayStatistics
    from ._sender import UdpBatchSender
    from ._train import Address

# Of the descriptors that the process may have, what sessions get; and what where none is told.
_SHARE_OF_DESCRIPTORS = 0.7
_MANY_SESSIONS = 10_000
# A relay that was stopped is done when nothing has come for so long, in seconds.
_QUIET = 0.1


def sessions_for(descriptors: int | None) -> int:
    """How many sessions there may be, where that is not said."""
    return (
        _MANY_SESSIONS if descriptors is None else max(1, int(descriptors * _SHARE_OF_DESCRIPTORS))
    )


class RelayInProcess:
    """One that forwards by itself.

    Args:
      sock: what clients send to. It is not closed here.
      targets: where to.
      settings: what was asked for.
      functions: the program's, where there are any.

    Raises:
      OSError: there is no socket, or no way, to a target, with ``duplicate``.
    """

    def __init__(
        self,
        sock: Socket,
        targets: Sequence[Address],
        settings: RelaySettings,
        functions: RelayFunctions | None = None,
    ) -> None:
        most = settings.max_sessions
        self._stop, self._grace = trio.Event(), settings.grace
        self._to_targets, self._to_clients = FlowAccount(), FlowAccount()
        self._functions = functions
        self._front = RelayFront(
            sock,
            targets,
            settings,
            functions,
            max_sessions=sessions_for(descriptor_limits().now) if most is None else most,
            to_targets=self._to_targets,
            to_clients=self._to_clients,
        )

    def stop(self) -> None:
        """Take no new clients, and end when nothing more comes."""
        self._front.forwarding.stopping = True
        self._stop.set()

    def set_targets(self, targets: Sequence[Address]) -> None:
        """Have these from now on."""
        self._front.forwarding.set_targets(targets)

    async def run(self, begun: Callable[[], None]) -> None:  # noqa: ASYNC910  # until it is to stop
        """Relay until it is to stop and nothing more comes, a function raises, or it is cancelled.

        What a function raised is not raised here.

        Args:
          begun: called once it can be sent to.

        Raises:
          OSError, trio.ClosedResourceError: the clients' socket has failed, or was closed.
        """
        front, functions = self._front, self._functions
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(front.move)
                nursery.start_soon(front.expire)
                nursery.start_soon(front.notice_closing)
                if functions is not None:
                    nursery.start_soon(functions.watch, nursery.cancel_scope)
                begun()
                await self._stop.wait()
                await self._until_quiet()
                nursery.cancel_scope.cancel(reason="the relay was stopped")
        finally:
            with trio.CancelScope(shield=True):
                await front.finish()

    def statistics(self) -> RelayStatistics:
        """A snapshot, also when it has ended."""
        forwarding, received = self._front.forwarding, self._front.receiver.statistics()
        senders: dict[Address, list[UdpBatchSender]] = {}
        for one in forwarding.upstreams():
            if one.sender is not None:  # few have one
                senders.setdefault(one.target, []).append(one.sender)
        of_all = [sender for some in senders.values() for sender in some]
        return told(
            forwarding.counts,
            len(forwarding),
            self._to_targets.snapshot(of_all, received.buffers_dropped_by_kernel or 0),
            self._to_clients.snapshot([self._front.sender], forwarding.buffers_dropped()),
            [
                account.snapshot(address, senders.get(address, ()))
                for address, account in forwarding.accounts.items()
            ],
        )

    async def _until_quiet(self) -> None:  # noqa: ASYNC910  # it was one to be stopped
        with trio.move_on_after(self._grace):  # noqa: ASYNC912
            before = -1
            while (now := self._came) != before or self._front.forwarding.is_asked:
                before = now
                await trio.sleep(_QUIET)

    @property
    def _came(self) -> int:
        return self._to_targets.datagrams_in + self._to_clients.datagrams_in
