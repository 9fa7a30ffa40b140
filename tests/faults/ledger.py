# The ledger: what became of every single datagram.
#
# A datagram of the suite carries its flow, its number in the flow and a CRC of all it is, so that
# what arrives proves by itself which datagram it was and that it is whole. The ledger knows what
# was written, and is told what was delivered, what a sender refused (with the errno) and what is
# still queued. From that it draws an `Account`: how many were lost, came twice, came late, came
# damaged; and it names the first datagram of which nothing is known.
#
# A zero-length datagram can carry no number: those are counted.
#
# The laws that an account has to obey stand in `laws`. This file knows no socket and nothing of
# the package.

from __future__ import annotations

import errno
import random
import struct
import zlib
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TAG = struct.Struct("!IQ")
_CRC = struct.Struct("!I")
SMALLEST = _TAG.size + _CRC.size
"""The bytes that a numbered datagram has at least."""

_FILLER = random.Random(0).randbytes(2 * 65_536)


class Name(NamedTuple):
    """Which datagram."""

    flow: int
    number: int

    def __str__(self) -> str:
        return f"flow {self.flow} number {self.number}"


class NotOursError(ValueError):
    """The bytes are no whole datagram of a ledger: damaged, cut, or two run into one."""


def write(name: Name, size: int = SMALLEST) -> bytes:
    """The datagram of that name, ``size`` bytes long."""
    if size < SMALLEST:
        raise ValueError(f"a numbered datagram has at least {SMALLEST} bytes")
    tag = _TAG.pack(*name)
    start = (name.flow * 257 + name.number) & 0xFFFF
    body = _FILLER[start : start + size - SMALLEST]
    return tag + _CRC.pack(zlib.crc32(body, zlib.crc32(tag))) + body


def read(datagram: bytes) -> Name:
    """Which datagram this is; raises `NotOursError` unless it is whole."""
    if len(datagram) < SMALLEST:
        raise NotOursError(f"{len(datagram)} bytes are too few")
    crc = zlib.crc32(datagram[SMALLEST:], zlib.crc32(datagram[: _TAG.size]))
    if _CRC.unpack_from(datagram, _TAG.size)[0] != crc:
        raise NotOursError("the CRC does not match")
    return Name(*_TAG.unpack_from(datagram))


@attrs.frozen
class Account:
    """What is known of all the datagrams of a ledger. Each count is of datagrams."""

    written: int
    """Given to the sender."""
    refused: Mapping[int, int]
    """Of those, reported by it as refused, by errno."""
    queued: int
    """Of those, still waiting in it."""
    delivered: int
    """Arrived whole, each as often as it came."""
    unique: int
    """Arrived whole at least once."""
    late: int
    """Deliveries of a datagram after one of the same flow with a higher number."""
    damaged: int
    """Arrived, but not whole; nobody can know which ones those were."""
    first_missing: Name | None
    """The first datagram that was neither delivered nor refused, and is not queued."""
    first_twice: Name | None
    """The first datagram that was delivered more than once."""

    @property
    def sent(self) -> int:
        """What the kernel took, if the sender says the truth."""
        return self.written - sum(self.refused.values()) - self.queued

    @property
    def missing(self) -> int:
        """Sent and not delivered, not even once."""
        return self.sent - self.unique

    @property
    def duplicates(self) -> int:
        """Deliveries beyond the first."""
        return self.delivered - self.unique

    def __str__(self) -> str:
        refused = ", ".join(
            f"{errno.errorcode.get(code, code)}: {count}" for code, count in self.refused.items()
        )
        lines = [
            f"{self.written} written, {self.queued} queued, refused {{{refused}}}",
            f"{self.delivered} delivered: {self.unique} different ones, {self.duplicates} "
            f"duplicates, {self.late} late; {self.damaged} damaged",
            f"{self.missing} missing",
        ]
        if self.first_missing:
            lines.append(f"first without an account: {self.first_missing}")
        if self.first_twice:
            lines.append(f"first that came twice: {self.first_twice}")
        return "\n".join(lines)


@attrs.define
class _Flow:
    written: int = 0
    times: bytearray = attrs.field(factory=bytearray)  # by number: how often it was delivered
    refused: dict[int, int] = attrs.field(factory=dict)  # by number: the errno
    highest: int = -1


class Ledger:
    """Writes numbered datagrams, and keeps the account of what became of them."""

    def __init__(self) -> None:
        self._flows: dict[int, _Flow] = {}
        self._delivered = 0
        self._late = 0
        self._damaged = 0
        self._empty_written = 0
        self._empty_refused: Counter[int] = Counter()
        self._empty_delivered = 0
        self.order = 0
        """A running CRC over the names in the order of delivery."""

    def write(self, flow: int = 0, size: int = SMALLEST) -> bytes:
        """The next datagram of a flow. With size 0 it is an empty one, that is only counted."""
        if size == 0:
            self._empty_written += 1
            return b""
        book = self._flows.get(flow)
        if book is None:
            book = self._flows[flow] = _Flow()
        name = Name(flow, book.written)
        book.written += 1
        book.times.append(0)
        return write(name, size)

    def write_many(self, count: int, flow: int = 0, size: int = SMALLEST) -> list[bytes]:
        """The next ``count`` datagrams of a flow."""
        return [self.write(flow, size) for _ in range(count)]

    def deliver(self, datagram: bytes) -> None:
        """Enter a datagram that arrived."""
        if not datagram:
            self._empty_delivered += 1
            return
        try:
            name = read(datagram)
        except NotOursError:
            self._damaged += 1
            return
        book = self._book(name)
        self.order = zlib.crc32(datagram[: _TAG.size], self.order)
        self._delivered += 1
        if book.times[name.number] == 255:
            raise AssertionError(f"{name} was delivered more than 255 times")
        book.times[name.number] += 1
        if name.number < book.highest:
            self._late += 1
        else:
            book.highest = name.number
        if name.number in book.refused:
            raise AssertionError(f"{name} was reported as refused, and was delivered")

    def deliver_all(self, datagrams: Iterable[bytes]) -> None:
        """Enter datagrams that arrived, in the order in which they came."""
        for datagram in datagrams:
            self.deliver(datagram)

    def refuse(self, datagram: bytes, code: int | None) -> None:
        """Enter a datagram that the sender reported as refused with that errno."""
        assert code is not None, "a refusal without an errno explains nothing"
        if not datagram:
            self._empty_refused[code] += 1
            return
        name = read(datagram)
        book = self._book(name)
        if name.number in book.refused:
            raise AssertionError(f"{name} was reported as refused twice")
        if book.times[name.number]:
            raise AssertionError(f"{name} was delivered, and was reported as refused")
        book.refused[name.number] = code

    def _book(self, name: Name) -> _Flow:
        book = self._flows.get(name.flow)
        if book is None or name.number >= book.written:
            raise AssertionError(f"{name} was never written by this ledger")
        return book

    def times(self, name: Name) -> int:
        """How often a datagram was delivered."""
        return self._book(name).times[name.number]

    def account(self, queued: Iterable[bytes] = ()) -> Account:
        """Draw the account; ``queued`` are the datagrams that still wait in a sender."""
        waiting: dict[int, set[int]] = {}
        empty_queued = 0
        for datagram in queued:
            if datagram:
                name = read(datagram)
                book = self._book(name)
                numbers = waiting.setdefault(name.flow, set())
                if name.number in numbers or name.number in book.refused:
                    raise AssertionError(f"{name} is queued twice, or was refused")
                if book.times[name.number]:
                    raise AssertionError(f"{name} is queued, and was delivered")
                numbers.add(name.number)
            else:
                empty_queued += 1
        refused = self._empty_refused.copy()
        for book in self._flows.values():
            refused.update(book.refused.values())
        never = sum(book.times.count(0) for book in self._flows.values())
        written = sum(book.written for book in self._flows.values())
        return Account(
            written=written + self._empty_written,
            refused=dict(refused),
            queued=sum(map(len, waiting.values())) + empty_queued,
            delivered=self._delivered + self._empty_delivered,
            unique=written - never + min(self._empty_delivered, self._empty_written),
            late=self._late,
            damaged=self._damaged,
            first_missing=self._first_missing(waiting),
            first_twice=self._first_twice(),
        )

    def _first_missing(self, waiting: Mapping[int, set[int]]) -> Name | None:
        for flow, book in self._flows.items():
            known = waiting.get(flow, set()) | book.refused.keys()
            number = book.times.find(0)
            while number >= 0 and number in known:
                number = book.times.find(0, number + 1)
            if number >= 0:
                return Name(flow, number)
        return None

    def _first_twice(self) -> Name | None:
        for flow, book in self._flows.items():
            for number, times in enumerate(book.times):
                if times > 1:
                    return Name(flow, number)
        return None
