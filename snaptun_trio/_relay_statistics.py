# What a `UdpRelay` has counted so far, as frozen snapshots.
#
# As in `_statistics`: a class says which law holds, and each field what it is.

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._train import Address


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
    """With ``duplicate``, the copies beyond the first of each. With functions, what these returned
    beyond what they were given, and what `RelayClient.answer` was given. Else 0."""
    datagrams_out: int
    """Datagrams that the kernel took."""
    bytes_out: int
    """Their payload bytes."""
    datagrams_waiting: int
    """Datagrams that wait for the socket, or are being handed out at this moment."""
    dropped: Mapping[str, int]
    """Datagrams that were received, or added, and not sent, by reason.

    ``"table full"``
        of new clients, for whom there was no room;
    ``"too many at once"``
        of new clients that came faster than sessions can be opened;
    ``"no socket"``
        of new clients, because the system had no socket, or no way to the target;
    ``"stopping"``
        of new clients, after `UdpRelay.stop`;
    ``"refused"``
        of new clients, by ``admit``;
    ``"socket full"``
        the socket that they were for took no more: the target, or the way to it, is too slow;
    ``"handler"``
        what ``from_client`` or ``from_target`` did not return, or raised at;
    ``"closed"``
        still being handed out when the relay ended, or the clients' socket was closed by somebody;
        what a `RelayClient` was to be answered whose session had ended;
    ``"answer"``
        with ``duplicate``, what targets sent back;
    ``"EMSGSIZE"`` and the like
        the errno with which the kernel refused them for good; ``"ENOMEM"`` also where there was no
        memory to answer a client with."""
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
class RelayTarget:
    """What a `UdpRelay` counts of one target, from when it became one. At any time::

        to_targets.datagrams_out >= sum(target.datagrams_out for target in targets)

    and likewise for each reason in ``dropped`` and each error. They are equal as long as
    `UdpRelay.set_targets` took no target away, but for what was dropped as ``"closed"``, or before
    it was any target's, such as ``"table full"``.
    """

    address: Address
    """Its numeric address, as in `UdpRelay.targets`."""
    sessions: int
    """Sessions that it has now; none with ``duplicate``."""
    datagrams_out: int
    """Datagrams for it that the kernel took."""
    dropped: Mapping[str, int]
    """Datagrams for it that were not sent, by reason, see `RelayFlow.dropped`. ``"no socket"`` is
    here where there was no way to it, and not where the system had none for anybody."""
    asynchronous_errors: Mapping[str, int]
    """What the sockets to it told of, see `RelayFlow.asynchronous_errors`."""


@attrs.frozen(kw_only=True)
class RelayStatistics:
    """A snapshot of a `UdpRelay`. At any time::

        sessions_created == (
            sessions + sessions_expired + sessions_evicted + sessions_moved + sessions_failed
            + sessions_closed)
        sessions == sum(target.sessions for target in targets)

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
    """Sessions that were there when the relay ended, or that `RelayClient.close` ended."""
    sessions_shed: int
    """Times that a new client was turned away; ``to_targets.dropped`` says why."""
    to_targets: RelayFlow
    """From clients to targets."""
    to_clients: RelayFlow
    """From targets to clients."""
    targets: tuple[RelayTarget, ...]
    """Each target of now, or of when the relay ended. One that `UdpRelay.set_targets` takes away is
    not here any more, and begins anew if it comes back; what it had counted stays in the sums. With
    ``workers`` it is here until they have said that its sessions have ended."""
    workers: int = 0
    """Processes that relay, and have said so within five seconds; 0 without ``workers``. What they
    have counted is up to half a second old."""
    worker_restarts: int = 0
    """Workers that died and were replaced. What one had counted since its last report is lost."""
    worker_seconds: float = 0.0
    """How long workers have relayed, those that have ended too, summed over all of them."""
    worker_cpu_seconds: float = 0.0
    """The CPU time that they took, user and system."""
