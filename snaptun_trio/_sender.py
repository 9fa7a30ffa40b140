# UdpBatchSender: what a program sends with. The queue's door, and the waiting.
#
# What waits is in `_send_queue`, what a refusal of the kernel means in `_flush`, who sends where
# several tasks want to in `_shared_flush`, how a batch turns into system calls in `_kernel`. This
# file checks what comes in before any of it is queued, and reports. It must not know the receiver.

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, final

import trio

from ._batch import PacketBatch, check_batch, messages_of
from ._closing import Closing
from ._coalesce import MAX_PAYLOAD_IPV4, MAX_PAYLOAD_IPV6, MAX_SEGMENTS
from ._errors import QueueFullError, SendBatchError
from ._flush import Flush, FlushStatus
from ._kernel import socket_io
from ._kernel._abi import MAX_BATCH_SIZE
from ._kernel._sockets import switched_off
from ._messages import own_view
from ._send_queue import SendQueue, Submission
from ._shared_flush import SharedFlush, is_small
from ._statistics import SenderStatistics
from ._submitted import check_train, payload_of
from ._train import check_int
from ._unattended import Unattended
from ._waiter import ReadinessWaiter

if TYPE_CHECKING:
    import socket as stdlib_socket
    from collections.abc import Callable

    from ._errors import SendFailure
    from ._send_queue import PendingSend
    from ._train import Address, Packet, PacketTrain, Way

_NOTHING_ASKED = (None, None, None)


@final
class UdpBatchSender(Closing, trio.abc.SendChannel[PacketBatch]):
    """Sends UDP datagrams in batches: as few system calls as the kernel allows.

    The sender is created once for a socket and reused. It borrows the socket and never closes it.
    It sets the path MTU discovery of the socket to PROBE, so that everything is sent with DF: a
    datagram that is larger than the interface's MTU is refused with EMSGSIZE, and none is ever
    fragmented. Only on a socket that its owner opened with ``fragment=True`` (`open_udp_socket`) is
    that left as it is, and nothing segmented.

    Any number of tasks may send with one sender at once, and each learns of its own refusals only.
    What they submit before the scheduler comes round leaves together: each call is a checkpoint,
    and whoever runs first after it sends everything that is queued; the others find theirs sent.

    The order of the datagrams to one address is kept. Between addresses it may change: packets for
    one are gathered into trains even when packets for others stood between them.

    Args:
      socket: a bound or connected UDP socket of IPv4 or IPv6, a `trio.socket.SocketType` or a
        non-blocking `socket.socket`.
      batch_size: the datagrams that the queue holds, 1 to `MAX_BATCH_SIZE`. A `send` adds its
        whole batch while there is room for one datagram.
      max_packet_size: the largest datagram that is accepted, in bytes, 1 to 65 527. No IPv4
        datagram holds more than the default.
      gso: let the kernel cut trains into datagrams (UDP_SEGMENT). It is switched off by itself
        where the kernel shows that it cannot. ``SNAPTUN_TRIO_GSO=0`` in the environment switches it
        off as well, for a kernel that corrupts trains.
      max_segments: the most datagrams that leave as one train, 1 to 64. A train leaves the machine
        as one burst; where the path drops the end of such, fewer help, at more CPU for each.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: the socket is not fit, or a number is out of its range.
    """

    def __init__(
        self,
        socket: trio.socket.SocketType | stdlib_socket.socket,
        *,
        batch_size: int = 64,
        max_packet_size: int = MAX_PAYLOAD_IPV4,
        gso: bool = True,
        max_segments: int = MAX_SEGMENTS,
    ) -> None:
        self._io = socket_io(socket)
        check_int("batch_size", batch_size, 1, MAX_BATCH_SIZE)
        self._batch_size = batch_size
        check_int("max_packet_size", max_packet_size, 1, MAX_PAYLOAD_IPV6)
        self._max_packet_size = max_packet_size
        check_int("max_segments", max_segments, 1, MAX_SEGMENTS)
        self._io.max_segments = max_segments
        self._io.prepare_for_sending(gso=gso and not switched_off("GSO"))
        self._waiter = ReadinessWaiter(self._io, reading=False)
        self._queue = SendQueue(self._io)
        self._flush = Flush(self._io, self._queue, self._waiter)
        self._shared = SharedFlush(self._queue, self._flush, self._waiter, batch_size)
        self._unattended = Unattended(self._queue, self._shared)
        self._discarded = 0

    def __repr__(self) -> str:
        return f"<UdpBatchSender on {self._io}: {self._queue.datagrams} datagrams queued>"

    @property
    def socket(self) -> trio.socket.SocketType | stdlib_socket.socket:
        """The socket that was lent."""
        return self._io.sock

    @property
    def local_address(self) -> Address:
        """The address that the socket is bound to.

        Raises:
          trio.ClosedResourceError: the socket is closed.
        """
        return self._io.local_address()

    @property
    def batch_size(self) -> int:
        """The datagrams that the queue holds."""
        return self._batch_size

    @property
    def max_packet_size(self) -> int:
        """The largest datagram that is accepted, in bytes."""
        return self._max_packet_size

    @property
    def gso(self) -> bool:
        """Whether the kernel cuts the trains; what it was at the end, once that is closed."""
        return self._io.gso

    @property
    def max_segments(self) -> int:
        """The most datagrams that leave as one train."""
        return self._io.max_segments

    @property
    def is_empty(self) -> bool:
        """Whether everything that was queued has been sent, or was refused for good."""
        return self._queue.datagrams == 0

    @property
    def is_full(self) -> bool:
        """Whether the queue holds ``batch_size`` datagrams, or more that a `send` left over."""
        return self._queue.datagrams >= self._batch_size

    # -- the queue

    def try_queue_packet(
        self,
        packet: Packet,
        address: Address | None,
        *,
        ecn: int | None = None,
        local_address: str | None = None,
        interface_index: int | None = None,
    ) -> None:
        """Queue one packet; nothing is sent before a flush. Neither waits nor copies.

        Args:
          packet: any bytes-like object. If it can change, it must not before it is sent.
          address: a numeric address, or `None` for the connected peer.
          ecn, local_address, interface_index: as for `send_packet`.

        Raises:
          QueueFullError: the queue is full. Nothing was queued.
          PacketTooLargeError: the packet is over ``max_packet_size``. Nothing was queued.
          trio.ClosedResourceError: the sender is closed. That the socket is, the flush notices;
            what was queued stays queued then, until the sender is closed.
          TypeError, ValueError: not a packet, or not an address that this socket can send to.
        """
        self._check_open()
        payload = payload_of(packet, address, self._max_packet_size)
        if self._queue.datagrams >= self._batch_size:
            raise QueueFullError(packet, address, self._batch_size)
        name = self._queue.name(address)
        way = None
        if not (ecn is None and local_address is None and interface_index is None):
            way = self._queue.way(name, ecn, local_address, interface_index)
        self._queue.put((payload, len(payload), address, name, way), owned=False)

    def try_queue_train(self, train: PacketTrain) -> None:
        """Queue a whole train, to be sent as one where the kernel allows. Neither waits nor copies.

        It fits if the queue is empty, however long it is, or if there is room for all of it.

        Raises:
          QueueFullError: it does not fit. Nothing was queued.
          PacketTooLargeError: its datagrams are over ``max_packet_size``. Nothing was queued.
          trio.ClosedResourceError: the sender is closed, see `try_queue_packet`.
          TypeError, ValueError: not a train, or its address is none that this socket can send to.
        """
        self._check_open()
        check_train(train, self._max_packet_size)
        datagrams = len(train)
        if self._queue.datagrams and self._queue.datagrams + datagrams > self._batch_size:
            raise QueueFullError(train.data, train.address, self._batch_size)
        name = self._queue.name(train.address)
        way = self._queue.way(name, train.ecn, train.local_address, train.interface_index)
        # The program may release the view that it sees; this one it does not.
        data, address = own_view(train.data), train.address
        asked = None if way == _NOTHING_ASKED else way
        self._queue.put((data, train.segment_size, address, name, asked), datagrams, owned=False)

    @trio.lowlevel.enable_ki_protection
    async def send_packet(
        self,
        packet: Packet,
        address: Address | None,
        *,
        ecn: int | None = None,
        local_address: str | None = None,
        interface_index: int | None = None,
    ) -> None:
        """Send one packet, together with what other tasks send meanwhile. Copies nothing.

        Waits while the queue is full, and then until the packet is sent, whoever sends it.

        If cancelled while the queue is full, nothing was accepted. If cancelled later, which only
        happens while the socket is full or more than a turn's work is before it, the packet stays
        queued, and goes with the next that is sent; should it be refused then, the next `flush`
        reports that.

        Args:
          packet: any bytes-like object. If it can change, it must not before this returns.
          address: a numeric address, or `None` for the connected peer.
          ecn: the two ECN bits, 0 to 3; `None` is the socket's own setting.
          local_address: the numeric host to send from; `None` leaves it to the kernel.
          interface_index: the interface to leave by, likewise.

        Raises:
          OSError: the kernel refused this packet.
          PacketTooLargeError: the packet is over ``max_packet_size``.
          trio.ClosedResourceError: the sender or the socket is closed, before or during it.
          TypeError, ValueError: not a packet, or not an address that this socket can send to.
        """
        self._check_open()
        payload = payload_of(packet, address, self._max_packet_size)
        name, way = self._queue.name(address), None
        if not (ecn is None and local_address is None and interface_index is None):
            way = self._queue.way(name, ecn, local_address, interface_index)
        for failure in await self._shared.send_items([(payload, len(payload), address, name, way)]):
            # Another one: the same refusal may be another task's as well.
            raise OSError(failure.error.errno, failure.error.strerror)

    @trio.lowlevel.enable_ki_protection
    def try_flush_best_effort(self) -> None:
        """Send what can be sent now; never waits.

        Raises:
          SendBatchError: some datagrams can never be sent; they are out of the queue. Whether
            something else had to stay in it is told by `is_empty`.
          trio.WouldBlock: something had to stay queued.
          trio.ClosedResourceError: the sender or the socket is closed.
          OSError: the kernel reported an error of the socket as a whole.
        """
        self._waiter.check_open()
        status = self._shared.now()
        self._raise_unclaimed()
        if status is not FlushStatus.DONE:
            raise trio.WouldBlock

    @trio.lowlevel.enable_ki_protection
    async def flush(self) -> None:
        """Send everything that is queued, waiting for the socket as often as need be.

        It returns when all that was queued before is sent or refused, whoever sent it. If
        cancelled, exactly what was not sent yet stays in the queue.

        Raises:
          SendBatchError: some datagrams can never be sent, of those that were queued without
            waiting, or whose `send` or `send_packet` was cancelled. Everything else is sent.
          trio.ClosedResourceError: the sender or the socket is closed, before or during it.
          OSError: see `try_flush_best_effort`.
        """
        await self._shared.send_all()
        self._raise_unclaimed()

    @trio.lowlevel.enable_ki_protection
    async def send(self, value: PacketBatch) -> None:
        """Send a batch of any length, after everything that is queued.

        Waits while the queue is full, and then until all of the batch is sent or refused, whoever
        sends it. If cancelled while the queue is full, nothing of the batch was accepted. If
        cancelled later, exactly what was not sent yet stays in the queue, and goes with the next
        that is sent.

        Args:
          value: the batch. Its trains are split where they are over the kernel's limits.

        Raises:
          SendBatchError: some datagrams of the batch can never be sent. Everything else is sent.
          trio.ClosedResourceError: the sender or the socket is closed, before or during it.
          TypeError, ValueError: not a batch, or an address is none that this socket can send to.
          OSError: see `try_flush_best_effort`.
        """
        # Where nothing else is queued so far, it need not be taken apart.
        if self._queue.datagrams and isinstance(value, PacketBatch) and is_small(value):
            name = self._queue.name
            failures = await self._shared.send_items(
                [(packet, len(packet), peer, name(peer), None) for packet, peer in value.packets()]
            )
        else:
            pending, submission = self._accept(value), Submission()
            await self._shared.send_batch(pending, submission)
            failures = submission.failures
        if failures:
            raise SendBatchError(failures)

    def _way_to(self, address: Address, way: Way | None) -> bytes | None:
        """For a channel: the raw name of its peer, after a look at how packets for it leave."""
        name = self._queue.name(address)
        if way is not None:
            self._queue.way(name, *way)
        return name

    @trio.lowlevel.enable_ki_protection
    def send_nowait(self, value: PacketBatch) -> None:
        """Send a batch without waiting, after everything that is queued.

        If the socket takes only a part of it, the rest stays queued and the batch is accepted.

        Raises:
          trio.WouldBlock: the socket takes nothing now. Nothing of the batch was accepted.
          SendBatchError: some datagrams can never be sent. The batch was accepted.
          trio.ClosedResourceError, TypeError, ValueError, OSError: see `send`.
        """
        pending, submission = self._accept(value), Submission()
        self._shared.send_batch_now(pending, submission)
        self._flush.disown(submission)
        self._raise_unclaimed()

    def statistics(self) -> SenderStatistics:
        """A snapshot of what the sender has counted; afterwards too, when it is closed."""
        return SenderStatistics(
            send_calls=self._flush.calls,
            trains_sent=self._flush.trains,
            datagrams_submitted=self._queue.submitted,
            datagrams_sent=self._flush.datagrams,
            bytes_sent=self._flush.nbytes,
            datagrams_failed=sum(self._flush.failed.values()),
            datagrams_discarded=self._discarded,
            failures=MappingProxyType(dict(self._flush.failed)),
            datagrams_queued=self._queue.datagrams,
            asynchronous_errors=MappingProxyType(dict(self._waiter.asynchronous_errors)),
            gso_fallbacks=self._flush.gso_fallbacks,
            send_buffer_size=self._io.send_buffer_size,
            gso=self._io.gso,
        )

    def close(self) -> None:
        """Stop sending, now and for good. The socket stays open.

        What is queued is discarded, and counted. The tasks that wait for something of it get
        `trio.ClosedResourceError`. Closing again does nothing.
        """
        if not self._waiter.closed:
            self._waiter.close()
            self._discarded += self._queue.clear()
            self._shared.closed()

    def _check_open(self) -> None:
        if self._waiter.closed:
            raise trio.ClosedResourceError("the sender is closed")

    def _accept(self, batch: PacketBatch) -> PendingSend:
        check_batch(batch)
        self._waiter.check_open()
        return self._queue.prepare(*messages_of(batch))

    def _tell_errors(self, listener: Callable[[int], object]) -> None:
        """For a channel: the errno of an earlier datagram's error that a send is told of."""
        self._waiter.on_error = listener

    def _discard_queue(self) -> None:
        """For the relay: discard all that is left."""
        self._discarded += self._queue.clear()
        self._shared.withdrawn()

    def _withdraw(self, submission: Submission) -> None:
        """For the pump: discard what is left of a batch."""
        self._discarded += self._queue.withdraw(submission)
        self._shared.withdrawn()

    def _take_unclaimed(self) -> list[SendFailure]:
        """What was refused for good, and nobody waits for."""
        failures, self._flush.unclaimed = self._flush.unclaimed, []
        return failures

    def _raise_unclaimed(self) -> None:
        if self._flush.unclaimed:
            # Made whole before they are taken: without memory for it, the next call tells of them.
            error = SendBatchError(self._flush.unclaimed)
            self._take_unclaimed()
            raise error
