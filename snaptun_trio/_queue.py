# What a sender still has to send: packets and trains by target, and what is half sent.
#
# The queue gathers packets for one target into trains, whatever stood between them, and keeps each
# target's order. It counts; it never sends, and knows nothing of errors beyond holding one.

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs
import trio

from ._batch import KEEP, TrainColumns, over
from ._kernel import _sockaddr
from ._train import PacketTrain, make_train

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._batch import Columns, Target
    from ._errors import SendFailure
    from ._kernel._interface import Backend, Laid
    from ._train import Address

    _Payload = bytes | memoryview


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

    laid: Laid
    target: Target
    submission: Submission
    train: int = 0
    """The trains before it are sent or refused, and so are the ``offset`` first bytes of it."""
    offset: int = 0
    errors: list[int] = attrs.Factory(list)
    """What the next message was refused with so far, by errno."""
    unsegmented_until: tuple[int, int] = (0, 0)
    """Up to there datagrams go one by one, because a train of them was refused."""
    suspicion: int = 0
    """What that train was refused with, until its first datagram has been tried alone."""
    last_failure: SendFailure | None = None
    """The refused part of a train, while the datagrams after it are tried."""


class SendQueue:
    """Everything that was submitted and is neither sent nor refused.

    What is being sent stands before what waits by peer; a packet is kept as it is until then. A
    peer is one peer however its address is spelled, or else two spellings would overtake each
    other: it is known here by its raw name.

    Args:
      backend: what brings everything into the form in which it is sent.
      family: the address family of the socket, which decides what an address is.
      peer: tells whom the socket is connected to now, `None` where it is not.

    Attributes:
      datagrams: how many there are.
      submitted: how many were ever put in.
    """

    def __init__(self, backend: Backend, family: int, peer: Callable[[], Address | None]) -> None:
        self._backend = backend
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

    def lay_out(self, columns: Columns, target: Target) -> PendingSend:
        """Make a batch ready to be sent. It is in the queue only after `put_pending`.

        Raises:
          TypeError, ValueError: an address is none for this family.
        """
        laid = self._backend.lay_out(columns, target, self._family)
        return PendingSend(laid, target, Submission())

    def put_pending(self, pending: PendingSend, submission: Submission) -> None:
        """Add a whole batch, behind everything else that is being sent."""
        pending.submission = submission
        columns = pending.laid.columns
        if columns.count:
            datagrams = columns.datagrams
            queued, submitted = self.datagrams + datagrams, self.submitted + datagrams
            self._pending.append(pending)
            self.datagrams, self.submitted = queued, submitted
            submission.submitted = datagrams

    def take_back(self, pending: PendingSend) -> None:
        """Undo `put_pending`."""
        self._pending.remove(pending)
        self.datagrams -= pending.submission.submitted
        self.submitted -= pending.submission.submitted
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
            self._peer_name, self._last_target = None, KEEP
        return self._pending[0]

    def move_on(self, train: int, offset: int, datagrams: int) -> None:
        """The first one is done with up to there: so many datagrams were sent or refused."""
        pending, left = self._pending[0], self.datagrams - datagrams
        self.datagrams = left
        pending.train, pending.offset = train, offset
        if train >= pending.laid.columns.count:
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
        return _sockaddr.name_of(target, self._family)

    def _gather(self) -> PendingSend:
        """Bring together what waits, peer by peer."""
        payloads: list[_Payload] = []
        sizes: list[int] = []
        addresses: list[Address | None] = []
        for waiting in self._waiting.values():
            payloads += waiting.items  # type: ignore[arg-type]  # trains are exchanged below
            addresses += [waiting.target] * len(waiting.items)
        if self._trains_wait:
            trains = [
                item if isinstance(item, PacketTrain) else make_train(item, len(item), address)
                for item, address in zip(payloads, addresses)
            ]
            columns = TrainColumns.of(tuple(trains))
        else:
            sizes = list(map(len, payloads))
            columns = TrainColumns(payloads, sizes, addresses)
        laid = self._backend.lay_out(columns, KEEP, self._family)
        return PendingSend(laid, KEEP, Submission(columns.datagrams))


class _Waiting:
    """What waits for one peer."""

    __slots__ = ("items", "target")

    def __init__(self, target: Address | None, items: list[_Payload | PacketTrain]) -> None:
        self.target = target
        self.items = items
