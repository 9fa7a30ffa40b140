# RelayClient: what the functions of a relay see of one client, for as long as its session lasts.
#
# What it is asked for is done by whoever has the sessions. This file must not know sockets, nor
# what a session is made of.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, final

import trio

from ._batch import PacketBatch, messages_of, packed_for
from ._submitted import payloads_taken

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._messages import Messages
    from ._train import Address, Packet


class Sessions(Protocol):
    """Whoever has the sessions."""

    def send_back(self, client: RelayClient, messages: Messages) -> None:
        """Send something to a client, whoever it is addressed to."""

    def end(self, client: RelayClient) -> None:
        """End its session."""


@final
class RelayClient:
    """A client of a `UdpRelay`, as ``from_client`` and ``from_target`` are given it.

    It stands for one session: every call for the same session has the same object, and a client
    that comes back after its session has ended is another one. It is hashable, compared by
    identity, and may be kept.
    """

    __slots__ = ("__weakref__", "_address", "_sessions", "_target", "state")

    state: Any
    """The program's own, `None` at first. It goes with the object, which the relay lets go of when
    the session ends, however that comes about."""

    def __init__(self, address: Address, target: Address, sessions: Sessions) -> None:
        self._address, self._target = address, target
        self._sessions = sessions
        self.state = None

    def __repr__(self) -> str:
        return f"<RelayClient {self._address}, to {self._target}>"

    @property
    def address(self) -> Address:
        """The client's own address."""
        return self._address

    @property
    def target(self) -> Address:
        """The target of its session, one of `UdpRelay.targets`. It never changes."""
        return self._target

    @trio.lowlevel.enable_ki_protection
    def answer(self, packets: PacketBatch | Iterable[Packet]) -> None:
        """Send to the client itself, whoever a batch is addressed to.

        Best effort, as all that a relay sends: what the clients' socket does not take is dropped,
        and what is for a session that has ended as well. ``to_clients`` counts it, as added. What a
        function answers leaves, in its order, at the latest when the batches that came in together
        are done with; what somebody else answers leaves at once.

        Args:
          packets: a batch, or each packet, any bytes-like object.

        Raises:
          TypeError: not bytes-like, or one packet instead of several. Nothing is sent.
          ValueError: a packet is over 65 527 bytes, which no UDP datagram can hold. Nothing is
            sent.
        """
        if isinstance(packets, PacketBatch):
            batch: PacketBatch = packets
        elif payloads := payloads_taken(packets):
            batch = packed_for(self._address, payloads)
        else:
            return
        if batch:
            self._sessions.send_back(self, messages_of(batch)[0])

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """End the session; `RelayStatistics.sessions_closed` counts it.

        What the target has answered by then still goes through ``from_target``. A function that
        calls it is not interrupted: the session ends when the batches that came in together are
        done with. What the client sends after that begins a new one. Closing again does nothing.
        """
        self._sessions.end(self)
