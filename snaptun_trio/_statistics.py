# What each part has counted so far, as frozen snapshots.
#
# A counter says in its name what it counts: datagrams, trains (what one kernel message carried),
# calls or bytes. This file knows nothing of how the counting is done.
#
# What help() shows of a class is its docstring, so that says which law holds between the counters,
# after any exception and any cancellation. What each field is stands below it, for editors and the
# reference.

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Generic

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.frozen(kw_only=True)
class PoolStatistics:
    """A snapshot of a `PacketBufPool`: slabs that are lent out, that wait, and that were made."""

    slabs_in_use: int
    """Slabs that a batch, a packet view or a receive call holds at this moment."""
    slabs_idle: int
    """Slabs that wait in the pool to be used again."""
    most_in_use: int
    """The largest number of slabs that were ever in use at the same time."""
    reused: int
    """How many times a slab was served from the pool."""
    allocated: int
    """How many slabs were allocated, those beyond the capacity included."""
    allocated_beyond_capacity: int
    """How many slabs were allocated while ``capacity`` slabs were in use already."""


@attrs.frozen(kw_only=True)
class ReceiverStatistics:
    """A snapshot of a `UdpBatchReceiver`. At any time::

        datagrams_received == datagrams_delivered + datagrams_held

    Of a train that arrived cut, what did not come in is counted beside it, in
    ``datagrams_lost_to_truncation``; what the kernel dropped before is in
    ``buffers_dropped_by_kernel``.
    """

    receive_calls: int
    """System calls that brought at least one message."""
    trains_received: int
    """Messages that the kernel handed over; with GRO a message is a train of datagrams."""
    datagrams_received: int
    """Datagrams that the kernel handed over, as far as they fitted into the buffers."""
    bytes_received: int
    """Their payload bytes."""
    datagrams_delivered: int
    """Datagrams that left the receiver: in a batch, or through a handler that returned."""
    datagrams_held: int
    """Datagrams that a raising handler left over for the next receive."""
    datagrams_truncated: int
    """Datagrams that were delivered cut, because the buffer ended inside them."""
    datagrams_lost_to_truncation: int
    """Datagrams of which nothing came in, because the buffer ended before them."""
    bytes_lost_to_truncation: int
    """Bytes that the kernel threw away because a buffer was too small."""
    trains_with_unknown_boundaries: int
    """Messages dropped because their control messages came cut (MSG_CTRUNC): where one datagram
    ends and the next begins cannot be known then."""
    bytes_with_unknown_boundaries: int
    """The payload bytes of those messages."""
    asynchronous_errors: Mapping[int, int]
    """Errors about an earlier datagram that a receive call reported, by errno (ECONNREFUSED and
    the like). They end nothing."""
    buffers_dropped_by_kernel: int | None
    """What the kernel dropped from this socket's queue since the receiver was made: **buffers**.
    With GRO on a buffer is a whole train, with GRO off a datagram. `None` where the system does
    not tell (SO_MEMINFO is Linux's)."""
    receive_buffer_size: int
    """SO_RCVBUF, in bytes as the kernel accounts them; 0 once the socket is closed."""
    gro: bool
    """Whether the kernel coalesces datagrams into trains on this socket; `False` once it is
    closed."""


@attrs.frozen(kw_only=True)
class SenderStatistics:
    """A snapshot of a `UdpBatchSender`. At any time::

        datagrams_submitted == (datagrams_sent + datagrams_failed + datagrams_queued
                                + datagrams_discarded)

    ``failures`` and ``asynchronous_errors`` are counted by errno.
    """

    send_calls: int
    """System calls that took at least one message."""
    trains_sent: int
    """Messages that the kernel took; one message carries one datagram or a GSO train of them."""
    datagrams_submitted: int
    """Datagrams that were put into the queue or given to ``send``."""
    datagrams_sent: int
    """Datagrams that the kernel took. It may still drop them on the way, silently."""
    bytes_sent: int
    """Their payload bytes."""
    datagrams_failed: int
    """Datagrams that the kernel refused for good; each was reported in a `SendBatchError`."""
    datagrams_discarded: int
    """Datagrams that were still queued when the sender was closed."""
    failures: Mapping[int, int]
    """``datagrams_failed`` by errno."""
    datagrams_queued: int
    """Datagrams that wait in the queue now."""
    asynchronous_errors: Mapping[int, int]
    """Errors about an earlier datagram that a send call reported, by errno. The datagrams of
    that call were sent all the same."""
    gso_fallbacks: int
    """Trains that had to be sent datagram by datagram because the kernel refused to segment."""
    send_buffer_size: int
    """SO_SNDBUF, in bytes as the kernel accounts them; 0 once the socket is closed."""
    gso: bool
    """Whether trains are segmented by the kernel (UDP_SEGMENT) on this socket; what it was at the
    end, once the sender or the socket is closed."""


@attrs.frozen(kw_only=True)
class ChannelStatistics:
    """A snapshot of a `UdpChannel`. At any time::

        datagrams_received == (datagrams_delivered + datagrams_waiting + datagrams_dropped
                               + datagrams_discarded)

    A client's has the snapshots of its receiver and sender beside it.
    """

    datagrams_received: int
    """Datagrams that came from the peer."""
    datagrams_delivered: int
    """Of those, what the program took."""
    datagrams_waiting: int
    """Of those, what waits for the program."""
    datagrams_dropped: int
    """Of those, what was dropped because too many waited."""
    datagrams_discarded: int
    """Of those, what still waited when the channel was closed, or came after."""
    datagrams_sent: int
    """Datagrams that were sent to the peer; of `UdpChannel.send_packets_nowait` what was accepted,
    unless it is a client's."""
    receiver: ReceiverStatistics | None = None
    """Of a client, the receiver's own snapshot: among others what the kernel dropped."""
    sender: SenderStatistics | None = None
    """Of a client, the sender's own snapshot: among others what was refused."""


@attrs.frozen(kw_only=True)
class ServerStatistics:
    """A snapshot of a `UdpServer`. At any time::

        datagrams_received == (datagrams_delivered + datagrams_waiting + datagrams_dropped
                               + datagrams_discarded + datagrams_answered + datagrams_refused
                               + datagrams_shed)

    *Waiting* and *dropped* are of the peers' queues, *answered* is ``answer``'s doing and *refused*
    ``admit``'s, and *shed* came from newcomers for whom there was no room.
    """

    peers: int
    """Peers that there are now."""
    handlers: int
    """Handlers that run now, of peers that are gone as well."""
    peers_admitted: int
    """Peers for which a handler was started, ever."""
    peers_refused: int
    """Times that ``admit`` refused a peer."""
    peers_shed: int
    """Times that a new peer was not let in, because there was no room."""
    peers_evicted: int
    """Peers that had to make room for a new one."""
    peers_expired: int
    """Peers that were silent for too long."""
    peers_unreachable: int
    """Peers whose handlers ended with the error that what they sent was refused."""
    datagrams_received: int
    """Datagrams that came in."""
    datagrams_delivered: int
    """Of those, what handlers took."""
    datagrams_waiting: int
    """Of those, what waits for handlers."""
    datagrams_dropped: int
    """Of those, what was dropped because too many waited for the same handler."""
    datagrams_discarded: int
    """Of those, what still waited when a handler returned, or when the server failed; and where
    ``answer`` raised."""
    datagrams_answered: int
    """Of those, what ``answer`` settled. Its answers are in ``sender``, with all that was sent."""
    datagrams_refused: int
    """Of those, what ``admit`` refused."""
    datagrams_shed: int
    """Of those, what came from peers that were not let in."""
    receiver: ReceiverStatistics
    """The receiver's own snapshot: among others what the kernel dropped."""
    sender: SenderStatistics
    """The sender's own snapshot, of all peers together."""


if TYPE_CHECKING:
    from typing_extensions import TypeVar  # for the defaults: PEP 696, in typing from 3.13 on

    # What is at the ends of a pump: those of this package keep count, others need not.
    ReceiverStatisticsT_co = TypeVar(
        "ReceiverStatisticsT_co",
        ReceiverStatistics,
        ReceiverStatistics | None,
        default=ReceiverStatistics | None,
        covariant=True,
    )
    SenderStatisticsT_co = TypeVar(
        "SenderStatisticsT_co",
        SenderStatistics,
        SenderStatistics | None,
        default=SenderStatistics | None,
        covariant=True,
    )
else:
    ReceiverStatisticsT_co = typing.TypeVar("ReceiverStatisticsT_co")
    SenderStatisticsT_co = typing.TypeVar("SenderStatisticsT_co")


@attrs.frozen(kw_only=True)
class PumpStatistics(Generic[ReceiverStatisticsT_co, SenderStatisticsT_co]):
    """A snapshot of a `BatchPump`. At any time::

        datagrams_received + datagrams_added == (
            datagrams_sent + datagrams_failed + datagrams_discarded + datagrams_waiting
            + datagrams_taken)

    To a type checker it is generic in ``receiver`` and ``sender``. A pump between two UDP ends
    gives a ``PumpStatistics[ReceiverStatistics, SenderStatistics]``; in a plain
    ``PumpStatistics``, of a pump between any channels, both may be `None`.
    """

    batches_received: int
    """Batches that the receiving channel gave."""
    datagrams_received: int
    """Datagrams in them."""
    datagrams_taken: int
    """Datagrams that the application took from ``incoming``."""
    datagrams_added: int
    """Datagrams that the application sent through ``outgoing``, or with which a handler answered
    beyond those that it was given."""
    batches_sent: int
    """Batches that were sent to the end, those with failures included."""
    datagrams_sent: int
    """Datagrams that the sending channel took, and did not refuse."""
    batches_discarded: int
    """Batches that a handler answered with `None` or with nothing, that waited in ``incoming`` when
    it was closed, or that waited to be sent or were under way when the pump ended."""
    datagrams_discarded: int
    """Datagrams in them that were not sent, and those that a handler left out of its answers."""
    datagrams_failed: int
    """Datagrams that the sending channel refused for good."""
    failures: Mapping[int, int]
    """``datagrams_failed`` by errno."""
    datagrams_waiting: int
    """Datagrams that wait in the pump: for the application, in the handler, or to be sent. What the
    application put into ``outgoing`` counts from when the sending task takes it."""
    batches_incoming: int
    """Batches that wait for the application, or for the sending task where there is a handler."""
    batches_outgoing: int
    """Batches that wait to be sent."""
    receiver: ReceiverStatisticsT_co
    """The receiver's own snapshot, where it has one: among others what the kernel dropped."""
    sender: SenderStatisticsT_co
    """The sender's own snapshot, where it has one."""
