# One turn of sending, and what follows from a refusal of the kernel.
#
# What a refusal means is the table in `_refusals`; here it is carried out, and every datagram is
# accounted for. This file never waits, and must not know how it is called.

from __future__ import annotations

import enum
import errno
import logging
import os
from collections import Counter
from typing import TYPE_CHECKING

import trio

from ._batch import KEEP
from ._coalesce import datagram_count
from ._errors import SendFailure
from ._kernel import _errnos, _options
from ._refusals import KnownRefusals, Verdict, judge
from ._train import make_train

if TYPE_CHECKING:
    from ._gate import Gate
    from ._kernel._interface import Backend, Socket, Transmission
    from ._queue import PendingSend, SendQueue
    from ._train import Address

logger = logging.getLogger("snaptun_trio")

# A turn is over after so much work. The kernel takes 1 to 4 us for a message and the same again for
# every 16 KiB of it, so other tasks wait for a few milliseconds at most.
_WORK_A_TURN = 1024  # in messages of less than 16 KiB
_LONG_MESSAGE = 14  # 2**14 bytes are 16 KiB
_REFUSAL = 8  # what a refused try counts for: a call of its own, and the report

# What may be refused, in tries, where a caller does not let others run. The rest stays queued.
_TRIES_AT_ONCE = 256

_BLOCKED = (errno.EAGAIN, errno.EWOULDBLOCK)
_NOWHERE = (0, 0)


class Turn(enum.Enum):
    """How one turn of sending ended."""

    DONE = enum.auto()
    MORE = enum.auto()
    BLOCKED = enum.auto()


class Flush:
    """Sends what is queued, and keeps count.

    Attributes:
      gso: whether trains are segmented by the kernel.
      failures: what was refused for good and not reported yet.
      failed: how many datagrams were refused for good, by errno.
    """

    def __init__(
        self, sock: Socket, backend: Backend, queue: SendQueue, gate: Gate, gso: bool
    ) -> None:
        self._sock = sock
        self._backend = backend
        self._queue = queue
        self._gate = gate
        self._known = KnownRefusals()
        self._refusals = 0  # tries that were refused, ever
        self.gso = gso
        self.failures: list[SendFailure] = []
        self.failed: Counter[int] = Counter()
        self.calls = self.trains = self.datagrams = self.nbytes = self.gso_fallbacks = 0

    def turn(self) -> Turn:
        """Send until nothing is left, the socket is full, or it is the others' turn.

        Raises:
          trio.ClosedResourceError: the sender or the socket is closed.
        """
        self._gate.check_open()
        budget, fd = _WORK_A_TURN, self._sock.fileno()
        while budget > 0:
            pending = self._queue.first()
            if pending is None:
                return Turn.DONE
            columns = pending.laid.columns
            weight = 1 + (columns.nbytes // columns.count >> _LONG_MESSAGE)
            transmission = self._prepare(pending)
            try:
                while budget > 0 and transmission.more:
                    number = transmission.send(fd, max(1, budget // weight))
                    if not number:
                        budget -= transmission.messages * weight
                        self._advance(pending, transmission)
                        if pending.unsegmented_until != _NOWHERE:
                            break  # what comes next is laid out anew
                    elif number in _BLOCKED:
                        return Turn.BLOCKED
                    else:
                        budget -= _REFUSAL
                        if not self._refused(pending, transmission, number):
                            break
            finally:
                transmission.close()
        return Turn.MORE

    def all_now(self) -> Turn:
        """Send until nothing is left, the socket is full, or too much was refused.

        What is sent at once is what the caller chose to send at once. What is refused can be a
        stranger's choice, and must not keep other tasks waiting.
        """
        start = self._refusals
        while (turn := self.turn()) is Turn.MORE and self._refusals - start < _TRIES_AT_ONCE:
            pass
        return turn

    def _prepare(self, pending: PendingSend) -> Transmission:
        single = pending.unsegmented_until > (pending.train, pending.offset)
        if not single:
            pending.unsegmented_until = _NOWHERE
        return self._backend.prepare(
            self._sock, pending.laid, pending.train, pending.offset, gso=self.gso, single=single
        )

    def _advance(self, pending: PendingSend, took: Transmission) -> None:
        """Account for what the kernel took."""
        if pending.errors:
            # It went through in the end, so the errors were about earlier datagrams.
            self._gate.asynchronous_errors.update(pending.errors)
            self._known.doubt(pending.errors)
            pending.errors.clear()
        pending.last_failure = None
        if pending.suspicion:
            if pending.suspicion == errno.EINVAL:
                self._switch_gso_off(pending.suspicion)
                pending.unsegmented_until = _NOWHERE
            pending.suspicion = 0
        self._gate.progress()
        # All that needs memory comes before anything is entered, so that the account holds.
        took_now = took.datagrams
        calls, trains = self.calls + 1, self.trains + took.messages
        datagrams, nbytes = self.datagrams + took_now, self.nbytes + took.nbytes
        sent = pending.submission.sent + took_now
        self._queue.move_on(took.train, took.offset, took_now)
        pending.submission.sent = sent
        self.calls, self.trains, self.datagrams, self.nbytes = calls, trains, datagrams, nbytes

    def _refused(self, pending: PendingSend, refused: Transmission, number: int) -> bool:
        """Carry out what a refusal means. Returns whether the transmission is still good."""
        self._refusals += 1
        pending.errors.append(number)
        storm = self._may_be_a_storm(number)
        if storm:
            address, size = _first_datagram(pending)
            storm = not self._known.own(address, number, size)
        verdict = judge(pending.errors, segmented=refused.segmented, storm=storm)
        if verdict is Verdict.RETRY:
            return True
        if verdict is Verdict.CLOSED:
            raise trio.ClosedResourceError("the socket was closed") from None
        address, size = _first_datagram(pending)
        self._gate.asynchronous_errors.update(n for n in pending.errors if n != number)
        self._known.learn(address, number, size, tries=len(pending.errors))
        pending.errors.clear()
        if verdict is Verdict.SWITCH_GSO_OFF:
            self._switch_gso_off(number)
            return False
        if verdict is Verdict.FIRST_ALONE:
            pending.unsegmented_until = (refused.end_train, refused.end_offset)
            pending.suspicion = number
            return False
        if not pending.suspicion:
            self._fail(pending, (refused.end_train, refused.end_offset), number)
            refused.skip()
            return True
        pending.suspicion = 0
        until = pending.unsegmented_until
        self._fail(pending, _end_of(pending, size) if number == errno.EMSGSIZE else until, number)
        return False

    def _may_be_a_storm(self, number: int) -> bool:
        """Whether an error can come from ICMP messages, one after the other."""
        return number == errno.ECONNREFUSED or (
            number in _errnos.FROM_ICMP and _options.hears_errors(self._sock)
        )

    def _switch_gso_off(self, number: int) -> None:
        self.gso = False
        self.gso_fallbacks += 1
        logger.warning(
            "the kernel does not segment trains here (%s): from now on each datagram goes alone",
            os.strerror(number),
        )

    def _fail(self, pending: PendingSend, end: tuple[int, int], number: int) -> None:
        """Take a message out of the queue that can never be sent."""
        index, offset = pending.train, pending.offset
        begin = offset
        error = OSError(number, os.strerror(number))
        last = pending.last_failure
        if (
            offset
            and last is not None
            and last.error.errno == number
            and self.failures
            and self.failures[-1] is last
        ):
            # One more datagram of a train that goes one by one: one failure for them together.
            self.failures.pop()
            begin -= last.train.nbytes
        datagrams = 0
        while (index, offset) < end:
            whole = pending.laid.columns.train(index)
            stop = end[1] if index == end[0] else whole.nbytes
            address = whole.address if pending.target is KEEP else pending.target
            size = whole.segment_size
            train = make_train(whole.data[begin:stop], size, address, whole.ecn)
            pending.last_failure = SendFailure(train, error)
            self.failures.append(pending.last_failure)
            datagrams += datagram_count(stop - offset, size)
            index, offset, begin = index + 1, 0, 0
        self.failed[number] += datagrams
        pending.submission.fail(number, datagrams)
        self._queue.move_on(*end, datagrams)


def _first_datagram(pending: PendingSend) -> tuple[Address | None, int]:
    """The peer and the size in bytes of the datagram that is to be sent next."""
    train = pending.laid.columns.train(pending.train)
    address = train.address if pending.target is KEEP else pending.target
    return address, min(train.segment_size, train.nbytes - pending.offset)


def _end_of(pending: PendingSend, size: int) -> tuple[int, int]:
    """How far datagrams of at least ``size`` bytes reach, of those that go one by one.

    A train was refused for being too long, and its first datagram alone was as well. The ones like
    it share its fate, without a call for each; a shorter one at the end may still go.
    """
    index, offset = pending.train, pending.offset
    until = pending.unsegmented_until
    while (index, offset) < until:
        train = pending.laid.columns.train(index)
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
