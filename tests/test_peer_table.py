# PeerTable: beside a list that is searched from its beginning, which can hardly be wrong.

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from snaptun_trio._peer_table import EVICTIONS, PeerTable

if TYPE_CHECKING:
    from snaptun_trio import Address

MOST = 4
numbers = st.integers(0, 7)


@attrs.define(eq=False)
class Somebody:
    address: Address
    last_heard: float
    established: bool


class Comparison(RuleBasedStateMachine):
    """A table, and a plain list of the peers that should be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = [PeerTable[Somebody](MOST, eviction) for eviction in EVICTIONS]
        self.present: list[Somebody] = []  # whoever was silent for longest first
        self.gone: list[Somebody] = []
        self.now = 0.0

    def find(self, number: int) -> Somebody | None:
        return next((one for one in self.present if one.address[1] == number), None)

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.25, 7.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: len(self.present) < MOST)
    @rule(number=numbers, established=st.booleans())
    def comes(self, number: int, established: bool) -> None:
        if self.find(number) is None:
            peer = Somebody(("192.0.2.1", number), self.now, established)
            self.present.append(peer)
            for table in self.tables:
                table.add(peer)

    @rule(number=numbers, more=st.booleans())
    def is_heard(self, number: int, more: bool) -> None:
        peer = self.find(number)
        if peer is None:
            return
        was = peer.established
        for table in self.tables:
            peer.established = was
            table.heard(peer, self.now, more=more)
            assert peer.last_heard == self.now
            assert peer.established == (was or more)
        self.present.remove(peer)
        self.present.append(peer)

    @rule(number=numbers)
    def is_heard_from(self, number: int) -> None:
        peer = self.find(number)
        address = ("192.0.2.1", number)
        if peer is None:
            assert [table.heard_from(address, self.now) for table in self.tables] == [None] * 3
            return
        was = peer.established
        for table in self.tables:
            peer.established = was
            assert table.heard_from(address, self.now) is peer
            assert peer.last_heard == self.now
            assert peer.established
        self.present.remove(peer)
        self.present.append(peer)

    @rule(number=numbers)
    def goes(self, number: int) -> None:
        peer = self.find(number)
        if peer is not None:
            self.present.remove(peer)
            self.gone.append(peer)
            for table in self.tables:
                table.remove(peer)

    @precondition(lambda self: self.gone)
    @rule(index=st.integers(0, 100))
    def who_is_gone_goes_again(self, index: int) -> None:
        """Nothing happens to whoever has the address by now."""
        for table in self.tables:
            table.remove(self.gone[index % len(self.gone)])

    @invariant()
    def they_agree(self) -> None:
        strangers = [one for one in self.present if not one.established]
        established = [one for one in self.present if one.established]
        victims = {
            "strangers": strangers[:1],
            "oldest": (strangers + established)[:1],
            "nobody": [],
        }
        for table, eviction in zip(self.tables, EVICTIONS, strict=True):
            assert len(table) == len(self.present)
            assert set(table) == set(self.present)
            assert table.is_full == (len(self.present) == MOST)
            for number in range(8):
                assert table.get(("192.0.2.1", number)) is self.find(number)
            assert table.next_to_go() is next(iter(victims[eviction]), None)
            times = [one.last_heard for one in self.present]
            assert table.longest_silent() == min(times, default=math.inf)
            for moment in (*times, self.now, -1.0):
                silent = table.silent_since(moment)
                assert silent == [
                    one for one in strangers + established if one.last_heard <= moment
                ]


TestComparison = Comparison.TestCase
