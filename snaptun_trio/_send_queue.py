# What a sender still has to send: packets and trains by peer, and what is half sent.
#
# The queue gathers packets for one peer into trains, whatever stood between them, and keeps each
# peer's order. It counts; it never sends, and knows nothing of errors beyond holding one.

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING

import attrs
import trio

from ._batch import PER_TRAIN_ADDRESS, TrainMessages, over, own_view
from ._kernel import _cmsg, _sockaddr
from ._train import PacketTrain, make_train

if TYPE_CHECKING:
    from ._batch import Messages, Recipient
    from ._errors import SendFailure
    from ._kernel._interface import Outgoing, SocketIO
    from ._train import Address

    _Payload = bytes | memoryview

# What has at most so many trains is joined with what stands beside it; and so many at most.
_SMALL = 16
_MOST_JOINED = 64


class Submission:
    """What became of the datagrams that were submitted together, for whoever submitted them.

    Of a packet that was gathered with others' only its refusals are known: it was sent if, in the
    end, it has none.

    Attributes:
      submitted, sent, discarded: datagrams.
      failed: datagrams that were refused for good, by errno.
      failures: the refusals themselves, for whoever reports them.
      owned: whether anybody will.
    """

    __slots__ = ("discarded", "failed", "failures", "owned", "sent", "submitted")

    def __init__(self) -> None:
        self.submitted = self.sent = self.discarded = 0
        self.owned = True
        self.failed: dict[int, int] = {}
        self.failures: list[SendFailure] = []

    @property
    def waiting(self) -> int:
        """Datagrams that are neither sent nor given up."""
        return self.submitted - self.sent - sum(self.failed.values()) - self.discarded


@attrs.define(eq=False)
class PendingSend:
    """Something that is being sent, and what it met so far."""

    outgoing: Outgoing
    """The batch itself, and how far it got."""
    recipient: Recipient
    submission: Submission
    """The account of all of it; for packets that were gathered, see `submission_of`."""
    gathered: tuple[_Waiting, ...] = ()
    """Where its trains come from, if they were queued one by one."""
    number: int = 0
    """Its place in the order of everything that was submitted."""
    parts: tuple[PendingSend, ...] = ()
    """What it was joined from, see `SendQueue.first`."""
    alone: bool = False
    """Whether it is not to be joined with others, because it was and a message was refused."""
    sent_before: int = 0
    """Datagrams of it that were sent while it was joined with others."""
    errors: tuple[int, ...] = ()
    """What the next message was refused with so far, by errno."""
    unsegmented_until: tuple[int, int] | None = None
    """The train and the offset up to which datagrams go one by one, because a train was refused."""
    gso_suspect: int = 0
    """What that train was refused with, until its first datagram has been tried alone."""
    last_failure: SendFailure | None = None
    """The refused part of a train, while the datagrams after it are tried."""
    entered: tuple[int, int, int] = (0, 0, 0)
    """Messages, datagrams and bytes that are in the sender's account already."""

    @property
    def place(self) -> tuple[int, int]:
        """The train that the next message begins in, and the bytes before it there."""
        return self.outgoing.train, self.outgoing.offset

    def train(self, index: int) -> PacketTrain:
        """One of its trains, for the peer it is sent to."""
        train = self.outgoing.content.train(index)
        return train if self.recipient is PER_TRAIN_ADDRESS else train.to(self.recipient)

    def submission_of(self, index: int) -> Submission | None:
        """Whose a train is, `None` where it was queued and nobody waits for it."""
        if not self.gathered:
            return self.submission
        for waiting in self.gathered:
            if index < len(waiting.items):
                return waiting.owners.get(index)
            index -= len(waiting.items)
        raise IndexError(index)


class SendQueue:
    """Everything that was submitted and is neither sent nor refused.

    What is being sent stands before what waits by peer; a packet is kept as it is until then. A
    peer is one peer however its address is spelled, or else two spellings would overtake each
    other: it is known here by its raw name.

    All that is put in has a number, and leaves in the order of the numbers; what is gathered
    together has one number together.

    Attributes:
      datagrams: how many there are; whoever sends them counts them down.
      submitted: how many were ever put in.
      cleared_from: the first number of which something was dropped by `clear`.
    """

    def __init__(self, io: SocketIO) -> None:
        self._io = io
        self._connected: bytes | None = None  # the name of the connected peer; see `_name`
        self._pending: deque[PendingSend] = deque()
        self._waiting: dict[bytes, _Waiting] = {}
        self._trains_wait = False
        self._number = 1  # of what is put in next
        # Programs send to one peer many times in a row. By identity: 80.0 equals 80.
        self._last_address: Recipient = PER_TRAIN_ADDRESS  # nobody
        self._last_name = b""
        self.datagrams = 0
        self.submitted = 0
        self.cleared_from = 0

    @property
    def last_number(self) -> int:
        """The number of what was put in last; all before it are smaller."""
        return self._number if self._waiting else self._number - 1

    def over(self, number: int) -> bool:
        """Whether nothing is left of what has this number, and of all before it."""
        if self._pending:
            return self._pending[0].number > number
        return not self._waiting or self._number > number

    def check(self, address: Address | None) -> None:
        """Make sure that a packet can be put in for an address.

        Raises:
          TypeError, ValueError: the address is none for this family.
        """
        if address is not self._last_address:
            name = self._name(address)
            self._last_address, self._last_name = address, name

    def check_source(self, train: PacketTrain) -> None:
        """Make sure that a train can leave as it asks. What cannot be said to the kernel must not
        get into the queue: it would stay there.

        Raises:
          TypeError, ValueError: its address, or its local address, is none for this family.
        """
        self.check(train.address)
        name = self._last_name
        ipv4 = _sockaddr.is_ipv4(name) if name else self._io.family == _sockaddr.AF_INET
        _cmsg.encode(0, train.ecn, train.local_address, train.interface_index, ipv4)

    @trio.lowlevel.enable_ki_protection
    def put(
        self,
        item: _Payload | PacketTrain,
        address: Address | None,
        datagrams: int,
        owner: Submission | None = None,
    ) -> int:
        """Add a packet or a train; its refusal is told to the owner, if any. Returns its number.

        Raises:
          TypeError, ValueError: the address is none for this family. Nothing was added.
        """
        self.check(address)
        if isinstance(item, PacketTrain):
            self._trains_wait = True
            # The program may release the view that it sees; this one it does not.
            item = over(item, own_view(item.data))
        # All that needs memory comes before anything is counted.
        queued, submitted = self.datagrams + datagrams, self.submitted + datagrams
        waiting = self._waiting.get(self._last_name)
        if waiting is None:
            waiting = _Waiting(address)
            if owner is not None:
                waiting.owners[0] = owner
            waiting.items.append(item)
            self._waiting[self._last_name] = waiting
        else:
            if owner is not None:
                waiting.owners[len(waiting.items)] = owner
            waiting.items.append(item)
        self.datagrams, self.submitted = queued, submitted
        return self._number

    def prepare(self, messages: Messages, recipient: Recipient) -> PendingSend:
        """Make a batch ready to be sent. It is in the queue only after `add`.

        Raises:
          TypeError, ValueError: an address is none for this family.
        """
        return PendingSend(self._io.outgoing(messages, recipient), recipient, Submission())

    def add(self, pending: PendingSend, submission: Submission) -> int:
        """Add a whole batch, behind everything else. Returns its number."""
        pending.submission = submission
        if self._waiting:
            self._close_gathering()
        number = self._number - 1
        if pending.outgoing.more:
            datagrams = pending.outgoing.content.datagrams
            queued, submitted = self.datagrams + datagrams, self.submitted + datagrams
            pending.number, number = self._number, self._number + 1
            self._pending.append(pending)
            self.datagrams, self.submitted = queued, submitted
            submission.submitted += datagrams
            self._number = number
            number = pending.number
        return number

    def take_back(self, pending: PendingSend) -> None:
        """Undo `add`."""
        datagrams = pending.outgoing.content.datagrams
        queued, submitted = self.datagrams - datagrams, self.submitted - datagrams
        self._pending.remove(pending)
        self.datagrams, self.submitted = queued, submitted
        pending.submission.submitted -= datagrams

    def withdraw(self, submission: Submission) -> int:
        """Drop what is left of a batch. Returns how many datagrams that were."""
        if self._pending:
            self.split_first(self._pending[0].errors)
        dropped = submission.waiting
        if dropped:
            (pending,) = [one for one in self._pending if one.submission is submission]
            queued, discarded = self.datagrams - dropped, submission.discarded + dropped
            self._pending.remove(pending)
            self.datagrams, submission.discarded = queued, discarded
        return dropped

    def first(self) -> PendingSend:
        """What is to be sent next, of what is left.

        Where several small ones stand there, they are joined, to be sent with one call. A message
        of the joined one that is refused belongs to several at once, maybe: then `split_first`
        takes it apart again, and each is sent by itself.
        """
        if self._pending:
            if len(self._pending) > 1 and _joins(self._pending[0]):
                self._join()
            return self._pending[0]
        if not self._waiting:
            raise RuntimeError(f"{self.datagrams} datagrams are counted, and none is queued")
        self._close_gathering()
        return self._pending[0]

    def _close_gathering(self) -> None:
        """Bring what waits by peer behind what is being sent."""
        # Made whole before anything is let go: what fails on the way has changed nothing.
        nothing: dict[bytes, _Waiting] = {}
        gathered = self._gather()
        gathered.number, following = self._number, self._number + 1
        self._pending.append(gathered)
        self._waiting = nothing
        self._number = following
        self._trains_wait = False
        self._connected, self._last_address = None, PER_TRAIN_ADDRESS

    def drop_first(self) -> None:
        """Let go of the first one: nothing of it is left, and all of it is in the account."""
        for part in self._pending[0].parts:
            part.submission.sent = part.outgoing.content.datagrams
        self._pending.popleft()

    def _join(self) -> None:
        parts = list(itertools.takewhile(_joins, itertools.islice(self._pending, _MOST_JOINED)))
        if len(parts) > 1:
            whole = self._io.joined([part.outgoing for part in parts])
            submission = Submission()
            submission.submitted = sum(part.outgoing.content.datagrams for part in parts)
            number, kept = parts[0].number, tuple(parts)
            joined = PendingSend(whole, PER_TRAIN_ADDRESS, submission, number=number, parts=kept)
            self._pending = deque([joined, *itertools.islice(self._pending, len(parts), None)])

    def split_first(self, errors: tuple[int, ...] = ()) -> None:
        """Take the first one apart, if it was joined, and go on with its parts.

        ``errors`` are what its next message was refused with.
        """
        whole = self._pending[0]
        index, offset = whole.place
        left: list[PendingSend] = []
        for part in whole.parts:
            count = part.outgoing.content.count
            if index >= count:
                part.submission.sent = part.outgoing.content.datagrams
                index -= count
                continue
            if index or offset:
                size = part.train(index).segment_size or 1
                before = sum(len(part.train(n)) for n in range(index)) + offset // size
                part.submission.sent = part.sent_before = before
                part.outgoing.skip(index, offset)
                index = offset = 0
            part.alone = True
            left.append(part)
        if left:
            left[0].errors = errors
            self._pending = deque([*left, *itertools.islice(self._pending, 1, None)])

    def clear(self) -> int:
        """Drop everything. Returns how many datagrams that were."""
        self.cleared_from = self._pending[0].number if self._pending else self._number
        if self._pending:
            self.split_first()
        dropped, self.datagrams = self.datagrams, 0
        for pending in self._pending:
            pending.submission.discarded = pending.submission.waiting
        self._pending.clear()
        self._waiting.clear()
        self._trains_wait = False
        return dropped

    def _name(self, address: Address | None) -> bytes:
        if address is not None:
            return _sockaddr.name_of(address, self._io.family)
        if self._connected is None:
            # Asked again for each gathering: the socket is borrowed, and its owner may connect it
            # to somebody else. What is for one of them must not go with what is for the other.
            peer = self._io.peer()
            self._connected = b"" if peer is None else _sockaddr.encode(peer, self._io.family)
        return self._connected

    def _gather(self) -> PendingSend:
        """Bring together what waits, peer by peer."""
        payloads: list[_Payload] = []
        addresses: list[Address | None] = []
        for waiting in self._waiting.values():
            payloads += waiting.items  # type: ignore[arg-type]  # trains are exchanged below
            addresses += [waiting.address] * len(waiting.items)
        if self._trains_wait:
            trains = [
                item if isinstance(item, PacketTrain) else make_train(item, len(item), address)
                for item, address in zip(payloads, addresses)
            ]
            messages = TrainMessages.of_trains(tuple(trains))
        else:
            messages = TrainMessages(payloads, list(map(len, payloads)), addresses)
        pending = self.prepare(messages, PER_TRAIN_ADDRESS)
        pending.submission.submitted = messages.datagrams
        pending.gathered = tuple(self._waiting.values())
        return pending


def _joins(pending: PendingSend) -> bool:
    """Whether something is so small that it is better sent together with others."""
    untouched = pending.place == (0, 0) and not pending.errors and not pending.parts
    return untouched and not pending.alone and pending.outgoing.content.count <= _SMALL


class _Waiting:
    """What waits for one peer: packets and trains, and by their place whose they are."""

    __slots__ = ("address", "items", "owners")

    def __init__(self, address: Address | None) -> None:
        self.address = address
        self.items: list[_Payload | PacketTrain] = []
        self.owners: dict[int, Submission] = {}
