# IncomingChannel: where an application takes the batches that a pump received.
#
# A memory channel drops what waits in it when its last receiver closes. Here that is counted, or
# those datagrams would be the only ones that vanish without a trace. It knows nothing of the pump.

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

from ._closing import Closing

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._batch import PacketBatch
    from ._train import Address


@final
class IncomingChannel(Closing, trio.abc.ReceiveChannel["PacketBatch[Address]"]):
    """The batches that a `BatchPump` received, for the application.

    It behaves like a `trio.MemoryReceiveChannel`. ``async for batch in pump.incoming`` goes on
    until the pump's receiving side has ended. Closing it, and every clone of it, tells the pump to
    stop receiving; what waits in it then is discarded, and counted in the pump's statistics.
    """

    def __init__(
        self,
        channel: trio.MemoryReceiveChannel[PacketBatch[Address]],
        taken: Callable[[PacketBatch], None],
        discarded: Callable[[PacketBatch], None],
    ) -> None:
        self._channel = channel
        self._taken = taken
        self._discarded = discarded

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> PacketBatch[Address]:
        """Take the next batch, waiting for it if need be. A cancelled call has taken nothing.

        Raises:
          trio.EndOfChannel: the receiving side has ended, and everything was taken.
          trio.ClosedResourceError: this channel is closed.
        """
        batch = await self._channel.receive()
        self._taken(batch)
        return batch

    @trio.lowlevel.enable_ki_protection
    def receive_nowait(self) -> PacketBatch[Address]:
        """Take the next batch, without waiting.

        Raises:
          trio.WouldBlock: none waits.
          trio.EndOfChannel, trio.ClosedResourceError: see `receive`.
        """
        batch = self._channel.receive_nowait()
        self._taken(batch)
        return batch

    def clone(self) -> IncomingChannel:
        """Another end of the same channel, to be closed on its own. Each batch goes to one of them.

        Raises:
          trio.ClosedResourceError: this channel is closed.
        """
        return IncomingChannel(self._channel.clone(), self._taken, self._discarded)

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """Close this end. Where it is the last one, what waits is discarded, and counted.

        A task that waits in `receive` of this end gets `trio.ClosedResourceError`.
        """
        try:
            last = self._channel.statistics().open_receive_channels == 1
            while last:
                self._discarded(self._channel.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            pass  # nothing waits, nothing will, or it was closed before
        self._channel.close()

    def statistics(self) -> trio.MemoryChannelStatistics:
        """What trio tells of a memory channel. Its items are batches."""
        return self._channel.statistics()
