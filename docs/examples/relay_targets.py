from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from snaptun_trio import Address, UdpRelay

logger = logging.getLogger(__name__)


async def addresses_of(name: str, port: int) -> list[Address]:
    """All that a name stands for now; a relay alone takes the first that there is a way to."""
    found = await trio.socket.getaddrinfo(name, port, type=socket.SOCK_DGRAM)
    return [(str(where[0]), port) for *_, where in found]


async def follow(relay: UdpRelay, name: str, port: int, every: float = 60.0) -> None:
    """Look a name up again every so many seconds, and relay to where it leads."""
    while True:
        await trio.sleep(every)
        try:
            await relay.set_targets(await addresses_of(name, port))
        except OSError as error:  # the targets stay as they are
            logger.warning("no new targets: %s", error)


async def take_out(relay: UdpRelay, target: Address) -> None:
    """Take a target out of service: its clients get one of the others with what they send next."""
    await relay.set_targets([one for one in relay.targets if one != target])


def dead_targets(relay: UdpRelay) -> list[Address]:
    """Where nobody listened, so far: whether that is so still is for a check of yours to say."""
    targets = relay.statistics().targets
    return [one.address for one in targets if one.asynchronous_errors.get("ECONNREFUSED")]
