# A batch that nobody holds but its iterator: `for packet, address in await receiver.receive()`.
#
# The packets are cut while the loop runs. Until it ends, the batch's memory must not be lent to the
# next receive, though nobody can name the batch any more.

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from snaptun_trio import PacketBatch, PacketBufPool, PacketTrain, UdpBatchReceiver, UdpBatchSender

from . import ends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from snaptun_trio import Address

pytestmark = pytest.mark.needs_gso


def trains_of(letters: str, target: Address | None) -> PacketBatch:
    """A train of three datagrams for each letter, each train of a size of its own."""
    return PacketBatch(
        [
            PacketTrain(letter.encode() * 3 * size, size, target)
            for size, letter in enumerate(letters, 10)
        ]
    )


def receive(receiver: UdpBatchReceiver, datagrams: int) -> PacketBatch:
    """All of them in one batch: on loopback they are there when the send returns."""
    batch = receiver.receive_nowait()
    assert len(batch) == datagrams
    return batch


@pytest.mark.parametrize("forwarded", [False, True])
def test_what_is_received_inside_the_loop_does_not_show_in_it(
    backend: str, udp: ends.MakeSocket, forwarded: bool
) -> None:
    into = udp()
    target = ends.address_of(into)
    sender = UdpBatchSender(udp())
    pool = PacketBufPool(capacity=1)
    receiver = UdpBatchReceiver(into, pool, gro=backend == "linux")
    letters = "abcd"

    def packets() -> Iterator[tuple[bytes, Address | None]]:
        batch = receive(receiver, 12)
        return iter(batch.to(target) if forwarded else batch)

    sender.send_nowait(trains_of(letters, target))
    seen: list[bytes] = []
    for packet, _ in packets():
        seen.append(packet)
        gc.collect()
        sender.send_nowait(trains_of("wxyz", target))
        del packet
        receive(receiver, 12)
    assert seen == [
        letter.encode() * size for size, letter in enumerate(letters, 10) for _ in range(3)
    ]
