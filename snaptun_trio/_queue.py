# What a sender still has to send: packets and trains by target, and what is half sent.
#
# The queue gathers packets for one target into trains, whatever stood between them, and keeps each
# target's order. It counts; it never sends, and knows nothing of errors beyond holding one.

from __future__ import annotations

from collections import deque
from itertools import groupby, repeat
from typing import TYPE_CHECKING, cast

import attrs
import trio

from ._batch import KEEP, TrainColumns, over
from ._coalesce import MAX_SEGMENTS, coalesce
from ._kernel import _sockaddr
from ._kernel._interface import START
from ._train import PacketTrain, make_train, max_train_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ._batch import Columns, Target
    from ._errors import SendFailure
    from ._kernel._interface import Position
    from ._train import Address

    _Payload = bytes | memoryview


# Below this average size, in bytes, single datagrams of a batch are joined into trains. A kernel
# message of their own costs each 3 us; joining costs 35 ns, and a copy.
_JOIN_BELOW = 8192


@attrs.define(eq=False)
class Submission:
    """What became of the datagrams that were submitted together, for whoever wants to know."""

    submitted: int = 0
    sent: int = 0
    failed: dict[int, int] = attrs.Factory(dict)
    """By errno."""
    discarded: int = 0

    @property
    def waiting(self) -> int:
        """Datagrams that are neither sent nor given up."""
        return self.submitted - self.sent - sum(self.failed.values()) - self.discarded

    def fail(self, number: int, datagrams: int) -> None:
        """Enter datagrams that the kernel refused for good."""
        self.failed[number] = self.failed.get(number, 0) + datagrams


@attrs.define(eq=False)
class PendingSend:
    """Something that is being sent, and how far it got."""

    columns: Columns
    target: Target
    submission: Submission
    position: Position = START
    errors: list[int] = attrs.Factory(list)
    """What the message at ``position`` was refused with so far, by errno."""
    unsegmented_until: Position = START
    """Up to there datagrams go one by one, because a train of them was refused."""
    suspicion: OSError | None = None
    """What that train was refused with, until its first datagram has been tried alone."""
    last_failure: SendFailure | None = None
    """The refused part of a train, while the datagrams after it are tried."""


class SendQueue:
    """Everything that was submitted and is neither sent nor refused.

    What is being sent stands before what waits by peer; a packet is kept as it is until then. A
    peer is one peer however its address is spelled, or else two spellings would overtake each
    other: it is known here by its raw name.

    Args:
      family: the address family of the socket, which decides what an address is.
      peer: tells whom the socket is connected to now, `None` where it is not.

    Attributes:
      datagrams: how many there are.
      submitted: how many were ever put in.
    """

    def __init__(self, family: int, peer: Callable[[], Address | None]) -> None:
        self._family = family
        self._peer = peer
        self._peer_name: bytes | None = None  # until the queue is gathered; see `_name`
        self._pending: deque[PendingSend] = deque()
        self._waiting: dict[bytes, _Waiting] = {}
        self._trains_wait = False
        # Programs send to one peer many times in a row. By identity: 80.0 equals 80.
        self._last_target: Target = KEEP  # nobody
        self._last_name = b""
        self.datagrams = 0
        self.submitted = 0

    @trio.lowlevel.enable_ki_protection
    def put(self, item: _Payload | PacketTrain, target: Address | None, datagrams: int) -> None:
        """Add a packet or a train.

        Raises:
          TypeError, ValueError: the target is no address for this family. Nothing was added.
        """
        if target is not self._last_target:
            name = self._name(target)
            self._last_target, self._last_name = target, name
        if isinstance(item, PacketTrain):
            self._trains_wait = True
            if not isinstance(item.data, bytes):
                # The program may release the view that it sees; this one it does not.
                item = over(item, memoryview(item.data))
        # All that needs memory comes before anything is counted.
        queued, submitted = self.datagrams + datagrams, self.submitted + datagrams
        waiting = self._waiting.get(self._last_name)
        if waiting is None:
            self._waiting[self._last_name] = _Waiting(target, [item])
        else:
            waiting.items.append(item)
        self.datagrams, self.submitted = queued, submitted

    def put_columns(self, columns: Columns, target: Target, submission: Submission) -> PendingSend:
        """Add a whole batch, behind everything else that is being sent."""
        if (
            isinstance(columns, TrainColumns)
            and columns.most_segments == 1
            and columns.plain
            and columns.count > 1
            and columns.nbytes < columns.count * _JOIN_BELOW
            and columns.lengths.count(columns.lengths[0]) == columns.count
        ):
            pending = PendingSend(self._regrouped(columns, target), KEEP, submission)
        else:
            pending = PendingSend(columns, target, submission)
        if columns.count:
            datagrams = columns.datagrams
            queued, submitted = self.datagrams + datagrams, self.submitted + datagrams
            self._pending.append(pending)
            self.datagrams, self.submitted = queued, submitted
            submission.submitted = datagrams
        return pending

    def take_back(self, pending: PendingSend) -> None:
        """Undo `put_columns`."""
        self._pending.remove(pending)
        self.datagrams -= pending.columns.datagrams
        self.submitted -= pending.columns.datagrams
        pending.submission.submitted = 0

    def withdraw(self, submission: Submission) -> int:
        """Drop what is left of a batch. Returns how many datagrams that were."""
        dropped = submission.waiting
        if dropped:
            (pending,) = [one for one in self._pending if one.submission is submission]
            self._pending.remove(pending)
            self.datagrams -= dropped
            submission.discarded += dropped
        return dropped

    def first(self) -> PendingSend | None:
        """What is to be sent next; `None` where nothing is left."""
        if not self._pending:
            if not self._waiting:
                return None
            # Made whole before anything is let go: what fails on the way has changed nothing.
            gathered = self._gather()
            self._pending.append(gathered)
            self._waiting = {}
            self._trains_wait = False
            self._forget_peer()
        return self._pending[0]

    def move_on(self, position: Position, datagrams: int) -> None:
        """The first one is done with up to ``position``: so many datagrams were sent or refused."""
        pending, left = self._pending[0], self.datagrams - datagrams
        self.datagrams = left
        pending.position = position
        if position.train >= pending.columns.count:
            self._pending.popleft()

    def clear(self) -> int:
        """Drop everything. Returns how many datagrams that were."""
        dropped, self.datagrams = self.datagrams, 0
        for pending in self._pending:
            pending.submission.discarded = pending.submission.waiting
        self._pending.clear()
        self._waiting.clear()
        self._trains_wait = False
        return dropped

    def _name(self, target: Address | None) -> bytes:
        if target is None:
            if self._peer_name is None:
                # Asked again for each gathering: the socket is borrowed, and its owner may connect
                # it to somebody else. What is for one of them must not go with what is for the
                # other.
                peer = self._peer()
                self._peer_name = b"" if peer is None else _sockaddr.encode(peer, self._family)
            return self._peer_name
        _sockaddr.check(target, self._family)
        return _sockaddr.encode(target, self._family)

    def _forget_peer(self) -> None:
        self._peer_name, self._last_target = None, KEEP

    def _gather(self) -> PendingSend:
        """Make trains of what waits, peer by peer."""
        submission = Submission(self.datagrams)
        waiting = self._waiting.values()
        if self._trains_wait:
            trains = [t for one in waiting for t in _trains_of(one.items, one.target)]
            return PendingSend(TrainColumns.of(tuple(trains)), KEEP, submission)
        packets = [(one.target, cast("list[_Payload]", one.items)) for one in waiting]
        return PendingSend(_coalesced(packets), KEEP, submission)

    def _regrouped(self, columns: TrainColumns, target: Target) -> TrainColumns:
        """Single datagrams, gathered into trains peer by peer."""
        if target is not KEEP:
            return _coalesced([(target, columns.payloads)])
        if not self._waiting:
            self._forget_peer()
        by_name: dict[bytes, tuple[Address | None, list[_Payload]]] = {}
        for payload, address in zip(columns.payloads, columns.addresses):
            name = self._name(address)
            if name not in by_name:
                by_name[name] = (address, [])
            by_name[name][1].append(payload)
        return _coalesced(by_name.values())


class _Waiting:
    """What waits for one peer."""

    __slots__ = ("items", "target")

    def __init__(self, target: Address | None, items: list[_Payload | PacketTrain]) -> None:
        self.target = target
        self.items = items


def _coalesced(by_peer: Iterable[tuple[Address | None, list[_Payload]]]) -> TrainColumns:
    payloads: list[_Payload] = []
    sizes: list[int] = []
    addresses: list[Address | None] = []
    for target, packets in by_peer:
        _coalesce_into(payloads, sizes, packets, target)
        addresses += [target] * (len(payloads) - len(addresses))
    return TrainColumns(payloads, sizes, addresses)


def _coalesce_into(
    payloads: list[_Payload], sizes: list[int], packets: list[_Payload], target: Address | None
) -> None:
    """Append the trains that the packets for one target make."""
    if len(packets) == 1:
        payloads += packets
        sizes.append(len(packets[0]))
        return
    lengths = list(map(len, packets))
    size, count = lengths[0], len(packets)
    most = max_train_bytes(target)
    if 0 < size * count <= most and count <= MAX_SEGMENTS and lengths.count(size) == count:
        # The usual case, one train of equal packets, without going through the general rules.
        payloads.append(b"".join(packets))
        sizes.append(size)
        return
    for start, stop in coalesce(lengths, most):
        payloads.append(packets[start] if stop - start == 1 else b"".join(packets[start:stop]))
        sizes.append(lengths[start])


def _trains_of(
    items: list[_Payload | PacketTrain], target: Address | None
) -> Iterator[PacketTrain]:
    """The trains for one target, where trains and single packets stand in the queue together."""
    for is_train, group in groupby(items, lambda item: isinstance(item, PacketTrain)):
        if is_train:
            yield from cast("Iterator[PacketTrain]", group)
        else:
            payloads: list[_Payload] = []
            sizes: list[int] = []
            _coalesce_into(payloads, sizes, list(cast("Iterator[_Payload]", group)), target)
            yield from map(make_train, payloads, sizes, repeat(target))
