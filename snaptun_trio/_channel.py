# UdpChannel: datagrams to and from one peer.
#
# What a program sees of a peer, wherever the datagrams come from: a connected socket of its own
# (`_client`), the one socket of a server (`_peer`), or no socket at all (`testing`). This file must
# not know sockets, nor how many peers there are.

from __future__ import annotations

import errno
from abc import abstractmethod
from typing import TYPE_CHECKING

import trio

from ._batch import PacketBatch, check_batch, packed_for
from ._closing import Closing
from ._errors import SendBatchError
from ._statistics import ChannelStatistics
from ._submitted import payloads_taken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from ._errors import SendFailure
    from ._statistics import ReceiverStatistics, SenderStatistics
    from ._train import Address, Packet


class UdpChannel(Closing, trio.abc.Channel[PacketBatch]):
    """Datagrams to and from one peer. UDP still loses, doubles and reorders them.

    `open_udp_channel` opens one to a server, and the handler of `serve_udp` is given one for each
    client. ``async for batch in channel`` goes on until there is no more to come; `receive_packet`
    and `send_packet` are for programs that deal with one packet at a time. What several tasks send
    through channels of one socket before the scheduler comes round leaves together.
    """

    def __init__(self) -> None:
        self._left: list[bytes] = []  # of a batch that `receive_packet` took, the next one last
        self._receiving = self._closed = False
        self._discarded = 0  # datagrams that waited when it was closed, or came after
        self._refused_size: int | None = None  # bytes of the smallest datagram that was too long

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"<{type(self).__name__} to {self.address[0]} port {self.address[1]}{closed}>"

    @property
    @abstractmethod
    def address(self) -> Address:
        """The peer."""

    @property
    @abstractmethod
    def local_address(self) -> Address:
        """The address of ours that the peer's last datagrams came to, with our port."""

    @property
    def mtu(self) -> int:
        """The largest datagram that can be sent to this peer, in payload bytes.

        Everything is sent with DF set, unless ``fragment`` was asked for. This is what the routing
        table says of the way (IP_MTU and IPV6_MTU, ip(7) and ipv6(7)), less the IP and UDP headers,
        and less still where a datagram was refused with EMSGSIZE. A narrower link farther away
        drops larger ones in silence. Where the system does not say it, it is 1232, which every IPv6
        path carries (RFC 8200, 5).
        """
        told = self._path_mtu()
        return told if self._refused_size is None else min(told, self._refused_size - 1)

    @abstractmethod
    async def _receive(self) -> PacketBatch[Address]:
        """`receive`, of what `receive_packet` has not taken."""

    @abstractmethod
    async def _send(self, batch: PacketBatch) -> None:
        """`send`."""

    def _send_packets(self, packets: list[bytes]) -> Awaitable[None]:
        """`send_packets`, of one at least."""
        return self._send(packed_for(None, packets))  # `_send` knows whom they are for

    @abstractmethod
    def _send_packets_nowait(self, packets: list[bytes]) -> None:
        """`send_packets_nowait`, of one at least."""

    @abstractmethod
    async def _send_packet(self, packet: Packet) -> None:
        """`send_packet`."""

    @abstractmethod
    def _path_mtu(self) -> int:
        """What the system says of `mtu`."""

    @abstractmethod
    def statistics(self) -> ChannelStatistics:
        """A snapshot of what the channel has counted; afterwards too, when it is closed."""

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> PacketBatch[Address]:
        """Receive what has come from the peer, at least one datagram, waiting for it if need be.

        A cancelled receive has received nothing: no datagram is ever lost to it.

        Raises:
          trio.EndOfChannel: nothing more will come: the server stopped, or gave this peer up.
          trio.ClosedResourceError: the channel is closed, before or during it.
          trio.BusyResourceError: another task is receiving.
          OSError: of a client, what the path or the peer's machine said, such as
            `ConnectionRefusedError`. The channel can be used on.
        """
        self._begin_to_receive()
        try:
            return await (self._receive_left() if self._left else self._receive())
        finally:
            self._receiving = False

    @trio.lowlevel.enable_ki_protection
    async def __anext__(self) -> PacketBatch[Address]:
        # The one that is inherited could be interrupted with the batch in its hands. And not by a
        # call of `receive`: most programs come this way, and each await has its price.
        self._begin_to_receive()
        try:
            return await (self._receive_left() if self._left else self._receive())
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        finally:
            self._receiving = False

    async def _receive_left(self) -> PacketBatch[Address]:
        """What `receive_packet` has not taken, as a batch."""
        await trio.lowlevel.checkpoint()
        if not self._left:  # not any more: it has been closed
            return await self._receive()
        # Made whole before they are taken: without memory for it, the next call gives them.
        left = packed_for(self.address, self._left[::-1])
        self._left = []
        return left

    @trio.lowlevel.enable_ki_protection
    async def receive_packet(self) -> bytes:
        """Receive one datagram, waiting for it if need be.

        A cancelled call has received nothing. The rest of what came with it is given by the next
        calls, of this or of `receive`, which then tells neither ECN bits nor times of it.

        Raises:
          trio.EndOfChannel, trio.ClosedResourceError, trio.BusyResourceError, OSError: see
            `receive`.
        """
        self._begin_to_receive()
        try:
            if self._left:
                await trio.lowlevel.checkpoint()
            if not self._left:
                batch = await self._receive()
                try:
                    packets = batch.packets()
                    if len(packets) == 1:
                        return packets[0][0]
                    self._left = [packet for packet, _ in reversed(packets)]
                except BaseException:
                    self._discarded += len(batch)  # there was no memory to take it apart
                    raise
            packet = self._left.pop()
            if self._closed:  # while it was under way: it is the last one
                self._discard_left()
            return packet  # noqa: ASYNC910
        finally:
            self._receiving = False

    def _begin_to_receive(self) -> None:
        if self._receiving:
            raise trio.BusyResourceError("another task is already receiving from this channel")
        self._receiving = True

    @trio.lowlevel.enable_ki_protection
    async def send(self, value: PacketBatch) -> None:
        """Send a batch to the peer, whoever its trains were for.

        Cancellation is as with `UdpBatchSender.send`.

        Raises:
          SendBatchError: some datagrams can never be sent. Everything else is sent.
          trio.ClosedResourceError: the channel is closed, before or during it.
          TypeError: not a batch.
        """
        check_batch(value)
        self._check_open()
        try:
            await self._send(value)
        except SendBatchError as error:
            self._learn_from(error)
            raise

    @trio.lowlevel.enable_ki_protection
    async def send_packets(self, packets: Iterable[Packet]) -> None:
        """Send several packets to the peer, in their order. Returns when all of them were sent.

        For the answers to a batch, or one answer in many packets: all are waited for together, and
        not each in its turn. Of none at all it is a checkpoint only.

        Cancellation is as with `UdpBatchSender.send`.

        Raises:
          SendBatchError: some packets can never be sent. Everything else is sent.
          trio.ClosedResourceError: the channel is closed, before or during it.
          TypeError: not bytes-like, or one packet instead of several. Nothing is sent.
          ValueError: a packet is over 65 527 bytes, which no UDP datagram can hold. Nothing is
            sent.
        """
        payloads = payloads_taken(packets)
        self._check_open()
        if not payloads:  # not so much as a batch of none, which waits for what is queued before it
            await trio.lowlevel.checkpoint()
            return
        try:
            await self._send_packets(payloads)
        except SendBatchError as error:
            self._learn_from(error)
            raise

    @trio.lowlevel.enable_ki_protection
    def send_packets_nowait(self, packets: Iterable[Packet]) -> None:
        """Have several packets sent to the peer, in their order, without waiting for it.

        For where nothing can be waited for, or need be: a plain function that somebody calls, or a
        handler that goes on at once. In a handler of `serve_udp` a few leave in the next turn of
        the scheduler, with what other handlers send; many, and a client's, leave at once. What the
        socket does not take yet leaves as soon as it does.

        What the kernel refuses is not told, but counted, with the errno, by the sender that
        `statistics` of the client, or of the server, has a snapshot of.

        Raises:
          trio.WouldBlock: too much waits to be sent already, where `send_packets` would wait for
            room. Nothing is sent.
          trio.ClosedResourceError: the channel is closed.
          TypeError, ValueError: see `send_packets`. Nothing is sent.
        """
        payloads = payloads_taken(packets)
        self._check_open()
        if payloads:
            self._send_packets_nowait(payloads)

    def _learn_from(self, error: SendBatchError) -> None:
        """Some of what was sent was refused."""
        self._refused(error)
        self._learn_sizes(error.failures)

    def _learn_sizes(self, failures: Iterable[SendFailure]) -> None:
        """These were refused, some for being too long perhaps."""
        for failure in failures:
            if failure.error.errno == errno.EMSGSIZE:
                self._learn_size(min(failure.train.segment_size, failure.train.nbytes))

    @trio.lowlevel.enable_ki_protection
    async def send_packet(self, packet: Packet) -> None:
        """Send one packet to the peer. Returns when it was sent.

        Cancellation is as with `UdpBatchSender.send_packet`.

        Raises:
          OSError: the kernel refused the packet; EMSGSIZE says that it is over `mtu`.
          PacketTooLargeError: it is larger than any UDP datagram.
          trio.ClosedResourceError: the channel is closed, before or during it.
          TypeError: not bytes-like.
        """
        self._check_open()
        try:
            await self._send_packet(packet)
        except OSError as error:
            self._refused(error)
            if error.errno == errno.EMSGSIZE:
                self._learn_size(memoryview(packet).nbytes)
            raise

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """Close the channel, now and for good. Closing again does nothing.

        A task that waits in `receive` gets `trio.ClosedResourceError`. What waits for the program
        is discarded, and counted. Of a server, what the peer sends after that is a new peer's.
        """
        if not self._closed:
            self._closed = True
            self._discard_left()
            self._close()

    @abstractmethod
    def _close(self) -> None:
        """`close`, once."""

    def _refused(self, error: OSError | SendBatchError) -> None:
        """What was sent was refused, and the program is told so by this error."""

    def _counted(
        self,
        *,
        received: int,
        waiting: int,
        sent: int,
        dropped: int = 0,
        receiver: ReceiverStatistics | None = None,
        sender: SenderStatistics | None = None,
    ) -> ChannelStatistics:
        """The snapshot: ``waiting`` is without what `receive_packet` left."""
        waiting += len(self._left)
        return ChannelStatistics(
            datagrams_received=received,
            datagrams_delivered=received - waiting - dropped - self._discarded,
            datagrams_waiting=waiting,
            datagrams_dropped=dropped,
            datagrams_discarded=self._discarded,
            datagrams_sent=sent,
            receiver=receiver,
            sender=sender,
        )

    def _discard_left(self) -> None:
        self._discarded += len(self._left)
        self._left = []

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the channel is closed")

    def _learn_size(self, size: int) -> None:
        known = self._refused_size
        self._refused_size = size if known is None else min(known, size)
