# The front of a relay: the socket that clients know, and the loop that moves datagrams.
#
# One task waits for this socket and for those towards targets, and moves what is there. What
# becomes of a datagram is in `_relay_sessions`, or in `_relay_copies`. This file must not know when
# a relay begins and ends, nor what was asked of it.

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from ._kernel._poller import open_poller
from ._kernel._sockets import is_wildcard, switched_off
from ._pool import PacketBufPool
from ._receiver import UdpBatchReceiver
from ._relay_copies import RelayCopies
from ._relay_protocol import ProtocolSessions
from ._relay_sessions import RelaySessions
from ._sender import UdpBatchSender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._kernel._interface import Socket
    from ._kernel._poller import Poller
    from ._relay_account import FlowAccount
    from ._relay_functions import RelayFunctions
    from ._relay_settings import RelaySettings
    from ._train import Address

# So many times in a row sockets were called ready and nothing was there, before we pause. What does
# so for ever is a broken socket; a datagram with a bad checksum does so once.
_PATIENCE = 16
_PAUSE = 0.001  # seconds
# After so many datagrams other tasks have their turn.
_A_TURN = 128
# How often it is looked whether somebody closed the clients' socket, in seconds.
_LOOK_INTERVAL = 1.0
# So many receive calls at most, at the end, for what still waits in the kernel.
_LAST_CALLS = 256


class RelayFront:
    """What a relay has while it runs.

    Args:
      sock: what clients send to. It is not closed here.
      targets: where to.
      settings: what was asked for.
      functions: the program's, where there are any.
      max_sessions: how many there may be, whether that was asked for or not.
      to_targets, to_clients: the accounts.

    Raises:
      OSError: there is no socket, or no way, to a target, with ``duplicate``.
    """

    def __init__(
        self,
        sock: Socket,
        targets: Sequence[Address],
        settings: RelaySettings,
        functions: RelayFunctions | None = None,
        *,
        max_sessions: int,
        to_targets: FlowAccount,
        to_clients: FlowAccount,
    ) -> None:
        pool = PacketBufPool()
        answers_from_where_it_was_asked = is_wildcard(sock) and not settings.duplicate
        self.receiver = UdpBatchReceiver(sock, pool, packet_info=answers_from_where_it_was_asked)
        self.sender = UdpBatchSender(sock)
        io = self.sender._io
        offloads = {"gro": not switched_off("GRO"), "gso": not switched_off("GSO")}
        fan = io.fan(io, pool._memory(io), **offloads)
        self._poller: Poller[Any] = open_poller()  # of upstreams; the clients' socket has None
        self._to_targets, self._to_clients = to_targets, to_clients
        self.forwarding: RelaySessions | RelayCopies
        try:
            self._poller.add(io, None)
            if settings.duplicate:
                self.forwarding = RelayCopies(
                    fan,
                    self._poller,
                    targets,
                    self.receiver.local_address,
                    options=settings.options,
                    to_targets=to_targets,
                    to_clients=to_clients,
                )
            else:
                kind: Callable[..., RelaySessions] = RelaySessions
                if functions is not None:
                    kind = partial(ProtocolSessions, functions)
                self.forwarding = kind(
                    self.sender,
                    fan,
                    self._poller,
                    targets,
                    max_sessions=max_sessions,
                    session_rate=settings.session_rate,
                    idle_timeout=settings.idle_timeout,
                    options=settings.options,
                    to_targets=to_targets,
                    to_clients=to_clients,
                )
        except BaseException:
            self._poller.close()
            raise

    @trio.lowlevel.enable_ki_protection
    async def move(self) -> None:
        """Move datagrams both ways, for ever.

        All sockets are waited for together: the clients' own wait, and the try before it, would be
        a third of what a wake-up costs.

        Raises:
          trio.ClosedResourceError, OSError: the clients' socket is closed, or has failed.
        """
        poller = self._poller
        in_vain = 0
        while True:
            if in_vain >= _PATIENCE:
                await trio.sleep(_PAUSE)
            await poller.wait()
            in_vain += 1
            moved = 0
            # What came meanwhile is looked for at once: a turn of the scheduler costs ten looks.
            while moved < _A_TURN and (ready := poller.poll()):
                asked = None in ready
                if asked:
                    ready.remove(None)
                begun = self.forwarding.counts.created
                # Answers first: to make room for a new client a session may end.
                found = self.forwarding.answer(ready)
                if asked:
                    with contextlib.suppress(trio.WouldBlock):
                        batch = self.receiver.receive_nowait()
                        found += len(batch)
                        await self.forwarding.forward(batch)
                        del batch  # or it would keep its slab while more is waited for
                if found:
                    in_vain = 0
                moved += found
                if not found or self.forwarding.counts.created > begun:  # which takes its time
                    break

    @trio.lowlevel.enable_ki_protection
    async def notice_closing(self) -> None:
        """Raise when somebody else has closed the clients' socket, of which nothing else tells.

        Raises:
          trio.ClosedResourceError: somebody has.
        """
        while not self.receiver._io.closed:  # noqa: ASYNC110  # nobody could set an event
            await trio.sleep(_LOOK_INTERVAL)
        raise trio.ClosedResourceError("the clients' socket was closed")

    @trio.lowlevel.enable_ki_protection
    async def expire(self) -> None:
        """End what is silent for too long, for ever."""
        await self.forwarding.expire()

    async def finish(self) -> None:  # noqa: ASYNC910
        """Send what is there, as far as that goes without waiting for anything, and end.

        Not to be cancelled.
        """
        self.forwarding.stopping = True
        try:
            with contextlib.suppress(trio.WouldBlock, trio.ClosedResourceError, OSError):
                for _ in range(_LAST_CALLS):
                    await self.forwarding.forward(self.receiver.receive_nowait())
        finally:
            self.forwarding.close()
            self.receiver.close()
            self.sender.close()
            self._poller.close()
            self._to_targets.finish()
            self._to_clients.finish()
