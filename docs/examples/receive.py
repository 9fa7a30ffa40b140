from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from snaptun_trio import UdpBatchReceiver

if TYPE_CHECKING:
    import trio

    from snaptun_trio import Address


async def count_by_peer(sock: trio.socket.SocketType, wanted: int) -> Counter[Address]:
    """Count each peer's datagrams until there have been as many as wanted."""
    seen: Counter[Address] = Counter()
    with UdpBatchReceiver(sock) as receiver:
        async for batch in receiver:
            for train in batch.trains:
                seen[train.address] += len(train)
            if seen.total() >= wanted:
                break
    return seen


async def longest_by_peer(sock: trio.socket.SocketType) -> dict[Address, int]:
    """Receive once, and note the longest datagram of each peer."""
    longest: dict[Address, int] = {}

    def look_at(packet: bytes, address: Address) -> None:
        longest[address] = max(len(packet), longest.get(address, 0))

    with UdpBatchReceiver(sock) as receiver:
        await receiver.recv_batch(look_at)
    return longest
