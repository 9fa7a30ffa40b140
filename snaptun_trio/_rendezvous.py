# Rendezvous hashing: which of several targets is a client's.
#
# Each client ranks the targets by a hash of its own, and takes the first. So the same client gets
# the same target in every process and after every restart, and where a target is taken away only
# its own clients move (Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996).
# Pure; this file must not know sockets.

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._train import Address

_MAPPED = "::ffff:"  # how a socket that speaks both spells an IPv4 peer (RFC 4291, 2.5.5.2)


def choose(client: Address, targets: Sequence[Address]) -> Address:
    """The target of a client, by the client's host: its port may be another one each time.

    Args:
      client: the client's address.
      targets: at least one; their order does not matter.
    """
    if len(targets) == 1:
        return targets[0]
    host = client[0].removeprefix(_MAPPED)
    return max(targets, key=lambda target: (_score(host, target), target))


def _score(host: str, target: Address) -> bytes:
    return blake2b(f"{host} {target[0]} {target[1]}".encode(), digest_size=8).digest()
