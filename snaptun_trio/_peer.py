# One peer of a server: its queue, and its way back.
#
# The server's receive loop puts in what has come, and never waits for anybody; the peer's handler
# takes it out. What does not fit is dropped, the newest first, and counted. This file must not know
# the other peers, nor what makes one come and go.

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import trio

from ._batch import PacketBatch, addressed, packed_for, part_of, way_back_of
from ._channel import UdpChannel
from ._errors import SendBatchError
from ._groups import leaves_of
from ._kernel._sockets import path_mtu
from ._shared_flush import are_few, is_small
from ._submitted import payload_of
from ._wake import wake

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from ._gathering import Item
    from ._sender import UdpBatchSender
    from ._statistics import ChannelStatistics
    from ._train import Address, Packet, Way


class Route(Protocol):
    """What a peer needs of its server."""

    @property
    def local_address(self) -> Address:
        """What the socket is bound to."""

    _sender: UdpBatchSender
    _most_waiting: int
    """Datagrams that may wait for one peer's handler."""

    def _forget(self, peer: PeerChannel) -> None:
        """The handler closed its channel."""


class PeerChannel(UdpChannel):
    """The channel that a handler is given.

    Attributes:
      last_heard, established: see `_peer_table.Peer`.
    """

    def __init__(self, route: Route, address: Address, now: float) -> None:
        super().__init__()
        self._route = route
        self._address = address
        self._way: Way | None = None  # from what the peer asks; on a wildcard socket only
        self._name: bytes | None = None  # the peer's raw one, when the way was looked at
        self._queue: deque[PacketBatch[Address]] | None = None  # made when something waits
        self._waiting = 0
        self._reader: trio.lowlevel.Task | None = None
        self._handed: PacketBatch[Address] | None = None
        self._ended = False
        self.last_heard = now
        self.established = False
        self._received = self._dropped = self._sent = 0  # datagrams

    @property
    def address(self) -> Address:
        return self._address

    @property
    def local_address(self) -> Address:
        bound = self._route.local_address
        _, host, interface = self._way or (None, None, None)
        if host is None:
            return bound
        # As the system spells an address of this family.
        return (host, bound[1]) if len(bound) == 2 else (host, bound[1], 0, interface or 0)

    # -- for the server

    def put(self, batch: PacketBatch[Address]) -> None:
        """Give the handler what has come, or as much of it as fits. Never waits."""
        datagrams = len(batch)
        # All that needs memory comes before anything is counted: who calls counts what fails here.
        received = self._received + datagrams
        if self._closed:
            self._discarded += datagrams
            self._received = received
            return
        if self._reader is not None and self._handed is None:
            wake(self._reader)
            self._handed, self._received = batch, received
            return
        handed = 0 if self._handed is None else len(self._handed)
        room = self._route._most_waiting - self._waiting - handed - len(self._left)
        if datagrams > room:
            batch = part_of(batch, 0, room)
        kept = len(batch)
        waiting, dropped = self._waiting + kept, self._dropped + datagrams - kept
        if kept:
            queue = deque() if self._queue is None else self._queue
            queue.append(batch)
            self._queue = queue
        self._received, self._waiting, self._dropped = received, waiting, dropped

    def note_way(self, way: Way | None) -> None:
        """Answer from an address of ours: the one that what came last has come to."""
        if way != self._way:
            self._way, self._name = way, None

    def end(self) -> None:
        """Nothing more will come. What waits can still be received."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        """Let the handler see that there is nothing more to wait for."""
        if self._reader is not None and self._handed is None:
            self._handed = _NOTHING
            wake(self._reader)

    # -- for the handler

    async def _receive(self) -> PacketBatch[Address]:
        if self._queue is not None or self._ended or self._closed:
            await trio.lowlevel.checkpoint_if_cancelled()
            batch = self._next()
            await trio.lowlevel.cancel_shielded_checkpoint()
            return batch
        self._reader = trio.lowlevel.current_task()
        try:
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        finally:
            self._reader = None
        handed, self._handed = self._handed, None
        if handed is None or handed is _NOTHING:
            return self._next()
        self.note_way(way_back_of(handed))
        return handed

    def _next(self) -> PacketBatch[Address]:
        """What waits, or why nothing does and never will."""
        self._check_open()
        if self._queue:
            batch = self._queue.popleft()
            self._waiting -= len(batch)
            if not self._queue:
                self._queue = None  # an idle peer keeps nothing
            self.note_way(way_back_of(batch))
            return batch
        assert self._ended, "woken for nothing"
        end = trio.EndOfChannel("nothing more will come from this peer")
        end._channel = self  # type: ignore[attr-defined]  # for `is_about_this`
        raise end

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _send(self, batch: PacketBatch) -> None:
        if is_small(batch):
            await self._send_few([packet for packet, _ in batch.packets()])
        else:
            await self._send_whole(batch)

    def _send_packets(self, packets: list[bytes]) -> Awaitable[None]:
        if are_few(packets):
            return self._send_few(packets)
        return self._send_whole(packed_for(self._address, packets))

    def _send_packets_nowait(self, packets: list[bytes]) -> None:
        sender = self._route._sender
        if are_few(packets):
            sender._unattended.put(self._items(packets))
        else:
            batch = addressed(packed_for(self._address, packets), self._address, self._way)
            sender._unattended.add(sender._accept(batch))
        self._sent += len(packets)

    async def _send_few(self, packets: list[bytes]) -> None:
        failures = await self._route._sender._shared.send_items(self._items(packets))
        self._sent += len(packets) - len(failures)
        if failures:
            raise SendBatchError(failures)

    async def _send_whole(self, batch: PacketBatch) -> None:
        batch = addressed(batch, self._address, self._way)
        try:
            await self._route._sender.send(batch)
        except SendBatchError as error:
            self._sent += len(batch) - sum(failure.datagrams for failure in error.failures)
            raise
        self._sent += len(batch)

    async def _send_packet(self, packet: Packet) -> None:
        sender = self._route._sender
        payload = payload_of(packet, self._address, sender.max_packet_size)
        for failure in await sender._shared.send_items(self._items([payload])):
            # Another one: the same refusal may be another peer's as well.
            raise OSError(failure.error.errno, failure.error.strerror)
        self._sent += 1

    def _items(self, payloads: Iterable[bytes | memoryview]) -> list[Item]:
        """Packets for the peer, as the sender's queue has them."""
        address, name, way = self._address, self._name, self._way
        if name is None:
            name = self._name = self._route._sender._way_to(address, way)
        return [(payload, len(payload), address, name, way) for payload in payloads]

    def _refused(self, error: OSError | SendBatchError) -> None:
        error._channel = self  # type: ignore[union-attr]  # for `is_about_this`

    def is_about_this(self, error: BaseException) -> bool:
        """Whether an error says what became of this peer, and nothing else: that something could
        not be sent to it, or that it has gone."""
        return all(getattr(leaf, "_channel", None) is self for leaf in leaves_of(error))

    def _path_mtu(self) -> int:
        return path_mtu(self._address)

    def statistics(self) -> ChannelStatistics:
        handed = 0 if self._handed is None else len(self._handed)
        return self._counted(
            received=self._received,
            waiting=self._waiting + handed,
            dropped=self._dropped,
            sent=self._sent,
        )

    def _close(self) -> None:
        self._discarded += self._waiting
        self._waiting, self._queue = 0, None
        if self._handed is not None:  # to a task that has not run since
            self._discarded += len(self._handed)
            self._handed = _NOTHING
        self._wake()
        self._route._forget(self)


_NOTHING: PacketBatch[Address] = PacketBatch(())
