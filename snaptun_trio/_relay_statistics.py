# What a `UdpRelay` has counted so far, as frozen snapshots.
#
# As in `_statistics`: a class says which law holds, and each field what it is.

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.frozen(kw_only=True)
class RelayFlow:
    """One direction of a `UdpRelay`. At any time::

        datagrams_in + datagrams_added == (
            datagrams_out + sum(dropped.values()) + datagrams_waiting)

    *In* is what was received, *out* what the kernel took.
    """

    datagrams_in: int
    """Datagrams that were received."""
    bytes_in: int
    """Their payload bytes."""
    datagrams_added: int
    """With ``duplicate``, the copies beyond the first of each; else 0."""
    datagrams_out: int
    """Datagrams that the kernel took."""
    bytes_out: int
    """Their payload bytes."""
    datagrams_waiting: int
    """Datagrams that wait for the socket, or are being handed out at this moment."""
    dropped: Mapping[str, int]
    """Datagrams that were received and not sent, by reason.

    ``"table full"``
        of new clients, for whom there was no room;
    ``"too many at once"``
        of new clients that came faster than sessions can be opened;
    ``"no socket"``
        of new clients, because the system had no socket, or no way to the target;
    ``"stopping"``
        of new clients, after `UdpRelay.stop`;
    ``"socket full"``
        the socket that they were for took no more: the target, or the way to it, is too slow;
    ``"closed"``
        still being handed out when the relay ended, or the clients' socket was closed by somebody;
    ``"answer"``
        with ``duplicate``, what targets sent back;
    ``"EMSGSIZE"`` and the like
        the errno with which the kernel refused them for good."""
    asynchronous_errors: Mapping[str, int]
    """Errors about earlier datagrams that sockets told of, by the errno's name: ``"ECONNREFUSED"``
    where nobody listens at a target. They end nothing, and cost no datagram."""
    buffers_dropped_by_kernel: int
    """What the kernel dropped from the receiving sockets' queues, in **buffers**, see
    `ReceiverStatistics`. These were never received, and are in no other count."""
    receive_calls: int
    """System calls that brought something."""
    trains_in: int
    """Messages that they brought; with GRO a message is a train of datagrams."""
    send_calls: int
    """System calls that sent something."""
    trains_out: int
    """Messages that they took; with GSO a message is a train of datagrams."""


@attrs.frozen(kw_only=True)
class RelayStatistics:
    """A snapshot of a `UdpRelay`. At any time::

        sessions_created == (
            sessions + sessions_expired + sessions_evicted + sessions_moved + sessions_failed
            + sessions_closed)

    With ``duplicate`` there are no sessions.
    """

    sessions: int
    """Sessions that there are now."""
    sessions_created: int
    """Sessions that were ever begun."""
    sessions_expired: int
    """Sessions that ended because nothing went through them for ``idle_timeout``."""
    sessions_evicted: int
    """Sessions of clients that had sent once only, which made room for new ones."""
    sessions_moved: int
    """Sessions that ended because `UdpRelay.set_targets` took their target away."""
    sessions_failed: int
    """Sessions that ended because the system reported an error of their socket as a whole."""
    sessions_closed: int
    """Sessions that were there when the relay ended."""
    sessions_shed: int
    """Times that a new client was turned away; ``to_targets.dropped`` says why."""
    to_targets: RelayFlow
    """From clients to targets."""
    to_clients: RelayFlow
    """From targets to clients."""
