# One turn of sending, and what follows from a refusal of the kernel.
#
# What a refusal means is the table in `_refusals`; here it is carried out, and every datagram is
# accounted for. This file never waits, and must not know how it is called.

from __future__ import annotations

import enum
import errno
import logging
import os
from typing import TYPE_CHECKING

import trio

from ._coalesce import datagram_count
from ._errors import SendFailure
from ._kernel import _errnos
from ._refusals import KnownRefusals, Verdict, judge
from ._train import make_train

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._gathering import Gathering
    from ._kernel._interface import SocketIO
    from ._send_queue import PendingSend, SendQueue, Submission
    from ._train import Address
    from ._waiter import ReadinessWaiter

logger = logging.getLogger("snaptun_trio")

# A turn is over after so much work. The kernel takes 1 to 4 us for a message and the same again for
# every 16 KiB of it, so other tasks wait for a few milliseconds at most.
_WORK_A_TURN = 1024  # in messages of less than 16 KiB
_REFUSAL = 8  # what a refused try counts for: a call of its own, and the report

# What may be refused, in tries, where a caller does not let others run. The rest stays queued.
_TRIES_AT_ONCE = 256

# How many refusals are kept for whoever flushes next. A program that never does must not grow.
_MOST_UNCLAIMED = 1024

_BLOCKED = (errno.EAGAIN, errno.EWOULDBLOCK)


class FlushStatus(enum.Enum):
    """How one turn of sending ended."""

    DONE = enum.auto()
    MORE = enum.auto()
    BLOCKED = enum.auto()


class Flush:
    """Sends what is queued, and keeps count.

    Attributes:
      unclaimed: what was refused for good, and nobody waits for: the next who flushes reports it.
      failed: how many datagrams were refused for good, by errno.
    """

    def __init__(self, io: SocketIO, queue: SendQueue, waiter: ReadinessWaiter) -> None:
        self._io = io
        self._queue = queue
        self._waiter = waiter
        self._known = KnownRefusals()
        self._refusals = 0  # tries that were refused, ever
        self.unclaimed: list[SendFailure] = []
        self.failed: dict[int, int] = {}  # not a Counter, which needs memory to be assigned to
        self.calls = self.trains = self.datagrams = self.nbytes = self.gso_fallbacks = 0

    def turn(self) -> FlushStatus:
        """Send until nothing is left, the socket is full, or it is the others' turn.

        Raises:
          trio.ClosedResourceError: the socket is closed.
        """
        budget = _WORK_A_TURN
        while budget > 0:
            if not self._queue.datagrams:
                return FlushStatus.DONE
            pending = self._queue.first()
            if pending.outgoing.datagrams != pending.entered[1]:
                self._enter(pending)  # there was no memory to count with
                continue
            if not pending.outgoing.more:
                self._queue.drop_first()  # nor to let go of it
                continue
            until = pending.unsegmented_until
            if until is not None and until <= pending.place:
                until = pending.unsegmented_until = None
            number = self._io.send(pending.outgoing, budget, single=until is not None)
            if not number:
                budget -= pending.outgoing.work
                self._enter(pending)
            elif number in _BLOCKED:
                return FlushStatus.BLOCKED
            else:
                budget -= _REFUSAL
                self._refused(pending, number)
        return FlushStatus.MORE

    def all_now(self) -> FlushStatus:
        """Send until nothing is left, the socket is full, or too much was refused.

        What is sent at once is what the caller chose to send at once. What is refused can be a
        stranger's choice, and must not keep other tasks waiting.
        """
        start = self._refusals
        while (status := self.turn()) is FlushStatus.MORE:
            if self._refusals - start >= _TRIES_AT_ONCE:
                break
        return status

    def _enter(self, pending: PendingSend) -> None:
        """Account for what the kernel took."""
        if pending.errors:
            # It went through in the end, so the errors were about earlier datagrams.
            self._waiter.note(pending.errors)
            self._known.doubt(pending.errors)
            pending.errors = ()
        pending.last_failure = None
        self._waiter.fruitless = 0
        # All that needs memory comes before anything is entered, so that the account holds.
        outgoing = pending.outgoing
        entered = outgoing.messages, outgoing.datagrams, outgoing.nbytes
        messages, datagrams, nbytes = pending.entered
        calls, trains = self.calls + 1, self.trains + entered[0] - messages
        sent, nbytes = self.datagrams + entered[1] - datagrams, self.nbytes + entered[2] - nbytes
        left = self._queue.datagrams - entered[1] + datagrams
        pending.entered, pending.submission.sent = entered, entered[1]
        # Two by two: four at once would be a tuple, for which there may be no memory.
        self.calls, self.trains = calls, trains
        self.datagrams, self.nbytes = sent, nbytes
        self._queue.datagrams = left
        if not outgoing.more:
            self._queue.drop_first()
        # Last, since it is logged: a log handler is the program's, and may call the sender.
        suspect = pending.gso_suspect
        pending.gso_suspect = 0
        if suspect == errno.EINVAL:
            pending.unsegmented_until = None
            self._switch_gso_off(suspect)

    def note_refusal(self, pending: PendingSend, number: int) -> None:
        """Carry out what a refusal means that somebody else met with it."""
        if number not in _BLOCKED:
            self._refused(pending, number)

    def _refused(self, pending: PendingSend, number: int) -> None:
        """Carry out what a refusal means."""
        self._refusals += 1
        pending.errors += (number,)
        storm = self._may_be_a_storm(number)
        if storm:
            address, size = _first_datagram(pending)
            storm = not self._known.own(address, number, size)
        verdict = judge(pending.errors, segmented=pending.outgoing.segmented, storm=storm)
        if verdict is Verdict.RETRY:
            return
        if verdict is Verdict.CLOSED:
            raise trio.ClosedResourceError("the socket was closed") from None
        address, size = _first_datagram(pending)
        for other in pending.errors:
            if other != number:
                self._waiter.note((other,))
        self._known.learn(address, number, size, tries=len(pending.errors))
        pending.errors = ()
        end = pending.outgoing.end_train, pending.outgoing.end_offset
        if verdict is Verdict.SWITCH_GSO_OFF:
            self._switch_gso_off(number)
        elif verdict is Verdict.FIRST_ALONE:
            pending.unsegmented_until, pending.gso_suspect = end, number
        else:
            if pending.gso_suspect and pending.unsegmented_until is not None:
                pending.gso_suspect = 0
                end = pending.unsegmented_until
                if number == errno.EMSGSIZE:
                    end = _like_the_first(pending, size)
            self._fail(pending, end, number)

    def _may_be_a_storm(self, number: int) -> bool:
        """Whether an error can come from ICMP messages, one after the other."""
        return number == errno.ECONNREFUSED or (
            number in _errnos.FROM_ICMP and self._io.hears_errors()
        )

    def _switch_gso_off(self, number: int) -> None:
        self._io.gso = False
        self.gso_fallbacks += 1
        logger.warning(
            "the kernel does not segment trains here (%s): from now on each datagram goes alone",
            os.strerror(number),
        )

    def _fail(self, pending: PendingSend, end: tuple[int, int], number: int) -> None:
        """Take what can never be sent out of the queue, up to a train and an offset."""
        index, offset = pending.place
        begin = offset
        error = OSError(number, os.strerror(number))
        last = pending.last_failure
        told = first_told = self._told_to(pending, index)
        kept = len(told)
        if offset and last and last.error.errno == number and told and told[-1] is last:
            # One more datagram of a train that goes one by one: one failure for them together.
            kept -= 1
            begin -= last.train.nbytes
        replaced = told[kept:]
        failures: list[tuple[list[SendFailure], SendFailure]] = []
        datagrams = 0
        while (index, offset) < end:
            whole = pending.train(index)
            stop = end[1] if index == end[0] else whole.nbytes
            train = make_train(whole.data[begin:stop], whole.segment_size, whole.address, whole.ecn)
            failures.append((self._told_to(pending, index), SendFailure(train, error)))
            datagrams += datagram_count(stop - offset, whole.segment_size)
            index, offset, begin = index + 1, 0, 0
        # All that needs memory comes before anything is entered, so that the account holds: room
        # for the errno, the sums, and then what can be undone.
        of_batch = pending.submission.failed
        failed = self.failed.setdefault(number, 0) + datagrams
        failed_of_batch = of_batch.setdefault(number, 0) + datagrams
        left = self._queue.datagrams - datagrams
        entered = 0
        try:
            del told[kept:]
            for told, failure in failures:
                told.append(failure)
                entered += 1
            pending.outgoing.skip(*end)
        except BaseException:
            while entered:
                entered -= 1
                failures[entered][0].pop()
            first_told += replaced
            raise
        pending.last_failure = failures[-1][1]
        self.failed[number], of_batch[number] = failed, failed_of_batch
        self._queue.datagrams = left  # not by a call, for which there may be no memory either
        while len(self.unclaimed) > _MOST_UNCLAIMED:
            self.unclaimed.pop(0)
        if not pending.outgoing.more:
            self._queue.drop_first()

    def _told_to(self, pending: PendingSend, index: int) -> list[SendFailure]:
        """Where the refusal of a train is entered, for whoever reports it."""
        gathering = pending.gathering
        if gathering is None:
            return pending.submission.failures if pending.submission.owned else self.unclaimed
        told = gathering.told_to(pending.outgoing.place_of(index))
        return self.unclaimed if told is None else told

    def disown(self, submission: Submission) -> None:
        """Nobody waits for a batch any more: what is refused of it is told with the unclaimed."""
        submission.owned = False
        self.unclaimed += submission.failures

    def disown_packets(self, gathering: Gathering, places: Iterable[int]) -> None:
        """The same of some that were queued one by one."""
        self.unclaimed += gathering.disown(places)


def _first_datagram(pending: PendingSend) -> tuple[Address | None, int]:
    """The peer and the size in bytes of the datagram that is to be sent next."""
    index, offset = pending.place
    train = pending.train(index)
    return train.address, min(train.segment_size, train.nbytes - offset)


def _like_the_first(pending: PendingSend, size: int) -> tuple[int, int]:
    """How far datagrams of at least ``size`` bytes reach, of those that go one by one.

    A train was refused for being too long, and its first datagram alone was as well. The ones like
    it share its fate, without a call for each; a shorter one at the end may still go.
    """
    index, offset = pending.place
    until = pending.unsegmented_until or (index, offset)
    while (index, offset) < until:
        train = pending.train(index)
        stop = until[1] if index == until[0] else train.nbytes
        if min(train.segment_size, stop - offset) < size:
            break
        tail = (stop - offset) % train.segment_size
        if 0 < tail < size:
            return index, stop - tail
        if stop < train.nbytes:
            return index, stop
        index, offset = index + 1, 0
    return index, offset
