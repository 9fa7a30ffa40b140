# Who a server's peers are: how many there may be, who makes room, and who has been silent too long.
#
# Peers whom nobody has seen before are strangers, whose addresses may be spoofed, and who can be as
# many as there are addresses. One that has sent a second datagram is established. The two stand in
# lines of their own, in each the one that was silent for longest first. This file must not know
# sockets or tasks, and has no clock: it is told what the time is.

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._train import Address

Eviction: TypeAlias = Literal["strangers", "oldest", "nobody"]
EVICTIONS: tuple[Eviction, ...] = ("strangers", "oldest", "nobody")


class Peer(Protocol):
    """What a table knows of a peer."""

    @property
    def address(self) -> Address:
        """Its address."""

    last_heard: float
    """When it sent something last, by the server's clock."""
    established: bool
    """Whether it has sent more than a single datagram."""


PeerT = TypeVar("PeerT", bound=Peer)


class PeerTable(Generic[PeerT]):
    """The peers of one server, by address.

    Args:
      most: how many there may be.
      eviction: who makes room for a new one: the stranger that was silent for longest, whoever was,
        or nobody.
    """

    def __init__(self, most: int, eviction: Eviction) -> None:
        self._most = most
        self._eviction = eviction
        self._peers: dict[Address, PeerT] = {}
        self._strangers: OrderedDict[Address, None] = OrderedDict()
        self._established: OrderedDict[Address, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[PeerT]:
        return iter(self._peers.values())

    def get(self, address: Address) -> PeerT | None:
        """The peer of this address, if there is one."""
        return self._peers.get(address)

    @property
    def is_full(self) -> bool:
        """Whether one has to go before another one may come."""
        return len(self._peers) >= self._most

    def next_to_go(self) -> PeerT | None:
        """Who is to make room, `None` where nobody does."""
        if self._eviction != "nobody" and self._strangers:
            return self._peers[next(iter(self._strangers))]
        if self._eviction == "oldest" and self._established:
            return self._peers[next(iter(self._established))]
        return None

    def add(self, peer: PeerT) -> None:
        """Enter a new peer, a stranger or not."""
        self._peers[peer.address] = peer
        (self._established if peer.established else self._strangers)[peer.address] = None

    def heard(self, peer: PeerT, now: float, *, more: bool) -> None:
        """A peer sent something; ``more`` than the single datagram of a stranger?"""
        peer.last_heard = now
        if peer.established:
            self._established.move_to_end(peer.address)
        elif more:
            self._established[peer.address] = None  # first: it needs memory
            peer.established = True
            del self._strangers[peer.address]
        else:
            self._strangers.move_to_end(peer.address)

    def heard_from(self, address: Address, now: float) -> PeerT | None:
        """`heard` of more, from whoever has this address: returns that peer, if there is one."""
        peer = self._peers.get(address)
        if peer is not None:
            if peer.established:  # nearly always
                peer.last_heard = now
                self._established.move_to_end(address)
            else:
                self.heard(peer, now, more=True)
        return peer

    def remove(self, peer: PeerT) -> None:
        """A peer is gone. One that is not there, or whose address is another's by now, is not."""
        if self._peers.get(peer.address) is peer:
            del self._peers[peer.address]
            del (self._established if peer.established else self._strangers)[peer.address]

    def longest_silent(self) -> float:
        """When whoever was silent for longest was heard last; infinity where there is nobody."""
        heads = [next(iter(line)) for line in (self._strangers, self._established) if line]
        return min((self._peers[address].last_heard for address in heads), default=math.inf)

    def silent_since(self, moment: float) -> list[PeerT]:
        """Whoever was not heard after a moment."""
        silent = []
        for line in (self._strangers, self._established):
            for address in line:
                peer = self._peers[address]
                if peer.last_heard > moment:
                    break
                silent.append(peer)
        return silent
