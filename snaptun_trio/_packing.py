# Pairs of packets and addresses into trains, peer by peer.
#
# No train is made here: what comes out are the columns of a batch. This file must not know batches.

from __future__ import annotations

from typing import TYPE_CHECKING

from ._brief import brief
from ._coalesce import joined
from ._train import check_address, flat_view, max_train_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._train import Address, Packet


def packed(
    pairs: Iterable[tuple[Packet, Address | None]],
) -> tuple[list[bytes | memoryview], list[int], list[Address | None]]:
    """The data, the segment size and the address of each train, see `PacketBatch.pack`.

    Raises:
      TypeError, ValueError: see there.
    """
    by_address: dict[Address | None, list[bytes]] = {}
    # By identity, so that each address is checked: 80.0 equals 80, and is no port. Those that are
    # known are kept alive, or another one could take the place of one that is gone.
    known: dict[int, list[bytes]] = {}
    alive: list[Address | None] = []
    for pair in pairs:
        try:
            packet, address = pair
        except (TypeError, ValueError):
            raise TypeError(f"a pair is (packet, address), not {brief(pair)}") from None
        packets = known.get(id(address))
        if packets is None:
            check_address(address)
            alive.append(address)
            packets = known[id(address)] = by_address.setdefault(address, [])
        packets.append(packet if isinstance(packet, bytes) else bytes(flat_view(packet)))
    payloads: list[bytes | memoryview] = []
    sizes: list[int] = []
    addresses: list[Address | None] = []
    for address, packets in by_address.items():
        for data, size in joined(packets, max_train_bytes(address)):
            payloads.append(data)
            sizes.append(size)
            addresses.append(address)
    return payloads, sizes, addresses
