# What a sender still has to send: packets and trains by peer, and what is half sent.
#
# The queue gathers packets for one peer into trains, whatever stood between them, and keeps each
# peer's order. It counts; it never sends, and knows nothing of errors beyond holding one.

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs
import trio

from ._gathering import Gathering
from ._kernel import _cmsg, _sockaddr
from ._messages import PER_TRAIN_ADDRESS
from ._train import check_way

if TYPE_CHECKING:
    from ._errors import SendFailure
    from ._gathering import Item
    from ._kernel._interface import SocketIO
    from ._kernel._outgoing import Outgoing
    from ._messages import Messages, Recipient
    from ._train import Address, PacketTrain, Way


class Submission:
    """What became of the datagrams of a batch, for whoever submitted it.

    Attributes:
      submitted, sent, discarded: datagrams.
      failed: datagrams that were refused for good, by errno.
      failures: the refusals themselves, for whoever reports them.
      owned: whether anybody will.
    """

    __slots__ = ("discarded", "failed", "failures", "owned", "sent", "submitted")

    def __init__(self, *, owned: bool = True) -> None:
        self.submitted = self.sent = self.discarded = 0
        self.owned = owned
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
    gathering: Gathering | None = None
    """Where its trains come from, if they were queued one by one."""
    number: int = 0
    """Its place in the order of everything that was submitted."""
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


class SendQueue:
    """Everything that was submitted and is neither sent nor refused.

    What is being sent stands before what is gathered; a packet is kept as it is until then.

    All that is put in has a number, and leaves in the order of the numbers; what is gathered
    together has one number together.

    Attributes:
      datagrams: how many there are; whoever sends them counts them down.
      submitted: how many were ever put in.
      cleared_from: the first number of which something was dropped by `clear`.
    """

    def __init__(self, io: SocketIO) -> None:
        self._io = io
        self._pending: deque[PendingSend] = deque()
        self._gathering: Gathering | None = None
        self._number = 1  # of what is put in next
        # Programs send to one peer many times in a row. By identity: 80.0 equals 80.
        self._last_address: Recipient = PER_TRAIN_ADDRESS  # nobody
        self._last_name: bytes | None = None
        self.datagrams = 0
        self.submitted = 0
        self.cleared_from = 0

    @property
    def last_number(self) -> int:
        """The number of what was put in last; all before it are smaller."""
        return self._number if self._gathering else self._number - 1

    def over(self, number: int) -> bool:
        """Whether nothing is left of what has this number, and of all before it."""
        if self._pending:
            return self._pending[0].number > number
        return self._gathering is None or self._number > number

    def name(self, address: Address | None) -> bytes | None:
        """The raw name of a peer, `None` for the connected one.

        Raises:
          TypeError, ValueError: the address is none for this family.
        """
        if address is not self._last_address:
            name = None if address is None else _sockaddr.name_of(address, self._io.family)
            self._last_address, self._last_name = address, name
        return self._last_name

    def way(
        self,
        name: bytes | None,
        ecn: int | None,
        local_address: str | None,
        interface_index: int | None,
    ) -> Way:
        """How something leaves that asks for this. What cannot be said to the kernel must not get
        into the queue: it would stay there.

        Raises:
          TypeError, ValueError: an argument is no such thing, or the local address is none for
            this family.
        """
        way = (check_way(ecn, local_address, interface_index), local_address, interface_index)
        ipv4 = _sockaddr.is_ipv4(name) if name else self._io.family == _sockaddr.AF_INET
        _cmsg.encode(0, *way, ipv4)
        return way

    @trio.lowlevel.enable_ki_protection
    def put(self, item: Item, datagrams: int = 1, *, owned: bool = True) -> Gathering:
        """Add a packet or a train, as the last of the gathering that is returned.

        If somebody waits for it (``owned``), that one asks the gathering for its refusals.
        """
        gathering = self._gathering
        if gathering is None:
            gathering = Gathering(self._number)
        # All that needs memory comes before anything is counted.
        queued, submitted = self.datagrams + datagrams, self.submitted + datagrams
        place = len(gathering.items)
        gathering.items.append(item)
        if not owned:
            try:
                gathering.disown((place,))
            except BaseException:
                gathering.items.pop()  # or the next one here would be nobody's
                raise
        if datagrams > 1:
            gathering.has_trains = True
        self._gathering = gathering
        self.datagrams, self.submitted = queued, submitted
        return gathering

    def put_all(self, items: list[Item], *, owned: bool = True) -> tuple[Gathering, range]:
        """`put` packets, all or none. Returns the gathering, and their places in it."""
        gathering = self._gathering
        if gathering is None:
            gathering = Gathering(self._number)
        datagrams, place = len(items), len(gathering.items)
        queued, submitted = self.datagrams + datagrams, self.submitted + datagrams
        places = range(place, place + datagrams)
        result = gathering, places
        gathering.items += items
        if not owned:
            try:
                gathering.disown(places)
            except BaseException:
                del gathering.items[place:]
                gathering.own(places)  # or the next ones here would be nobody's
                raise
        self._gathering = gathering
        self.datagrams, self.submitted = queued, submitted
        return result

    def prepare(self, messages: Messages, recipient: Recipient) -> PendingSend:
        """Make a batch ready to be sent. It is in the queue only after `add`.

        Raises:
          TypeError, ValueError: an address is none for this family.
        """
        return PendingSend(self._io.outgoing(messages, recipient), recipient, Submission())

    def add(self, pending: PendingSend, submission: Submission) -> None:
        """Add a whole batch, behind everything else."""
        pending.submission = submission
        if self._gathering is not None:
            self._close_gathering()
        if pending.outgoing.more:
            datagrams = pending.outgoing.content.datagrams
            # All that needs memory comes before anything is counted, and has its number.
            queued, submitted = self.datagrams + datagrams, self.submitted + datagrams
            of_submission = submission.submitted + datagrams
            pending.number, following = self._number, self._number + 1
            self._pending.append(pending)
            self.datagrams, self.submitted = queued, submitted
            submission.submitted = of_submission
            self._number = following

    def take_back(self, pending: PendingSend) -> None:
        """Undo `add`."""
        if not pending.number:
            return  # a batch of nothing was not added
        datagrams = pending.outgoing.content.datagrams
        queued, submitted = self.datagrams - datagrams, self.submitted - datagrams
        self._pending.remove(pending)
        self.datagrams, self.submitted = queued, submitted
        pending.submission.submitted -= datagrams

    def withdraw(self, submission: Submission) -> int:
        """Drop what is left of a batch. Returns how many datagrams that were."""
        dropped = submission.waiting
        if dropped:
            (pending,) = [one for one in self._pending if one.submission is submission]
            queued, discarded = self.datagrams - dropped, submission.discarded + dropped
            self._pending.remove(pending)
            self.datagrams, submission.discarded = queued, discarded
        return dropped

    def first(self) -> PendingSend:
        """What is to be sent next, of what is left."""
        if self._pending:
            return self._pending[0]
        if self._gathering is None:
            raise RuntimeError(f"{self.datagrams} datagrams are counted, and none is queued")
        self._close_gathering()
        return self._pending[0]

    def _close_gathering(self) -> None:
        """Bring what was queued one by one behind what is being sent."""
        gathering = self._gathering
        if gathering is None:
            return
        # Made whole before anything is let go: what fails on the way has changed nothing.
        outgoing = gathering.outgoing(self._io)
        submission = Submission()
        submission.submitted = outgoing.content.datagrams
        number, following = self._number, self._number + 1
        pending = PendingSend(
            outgoing, PER_TRAIN_ADDRESS, submission, gathering=gathering, number=number
        )
        self._pending.append(pending)
        self._gathering, self._number = None, following

    def drop_first(self) -> None:
        """Let go of the first one: nothing of it is left, and all of it is in the account."""
        self._pending.popleft()

    def clear(self) -> int:
        """Drop everything. Returns how many datagrams that were."""
        self.cleared_from = self._pending[0].number if self._pending else self._number
        dropped, self.datagrams = self.datagrams, 0
        for pending in self._pending:
            pending.submission.discarded = pending.submission.waiting
        self._pending.clear()
        self._gathering = None
        return dropped
