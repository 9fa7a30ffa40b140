# One turn of sending, and what follows from a refusal of the kernel.
#
# What a refusal means is the table in `_refusals`; here it is carried out, and every datagram is
# accounted for. This file never waits, and must not know how it is called.

from __future__ import annotations

import enum
import errno
import logging
from collections import Counter
from typing import TYPE_CHECKING

import trio

from ._batch import KEEP
from ._coalesce import datagram_count
from ._errors import SendFailure
from ._kernel import _errnos, _options
from ._kernel._interface import START, Position
from ._refusals import KnownRefusals, Verdict, judge
from ._train import make_train

if TYPE_CHECKING:
    from ._gate import Gate
    from ._kernel._interface import Backend, Sent, Socket, Transmission
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
        budget = _WORK_A_TURN
        while budget > 0:
            pending = self._queue.first()
            if pending is None:
                return Turn.DONE
            weight = 1 + (pending.columns.nbytes // pending.columns.count >> _LONG_MESSAGE)
            transmission = self._prepare(pending)
            try:
                while budget > 0 and transmission.more:
                    outcome = transmission.send(max(1, budget // weight))
                    if outcome.error is None:
                        budget -= outcome.messages * weight
                        self._advance(pending, outcome)
                        if pending.unsegmented_until != START:
                            break  # what comes next is laid out anew
                    elif isinstance(outcome.error, BlockingIOError):
                        return Turn.BLOCKED
                    else:
                        budget -= _REFUSAL
                        if not self._refused(pending, outcome, outcome.error, transmission):
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
        columns, target, position = pending.columns, pending.target, pending.position
        if pending.unsegmented_until > position:
            return self._backend.prepare_single(self._sock, columns, target, position)
        pending.unsegmented_until = START
        return self._backend.prepare(self._sock, columns, target, position, self.gso)

    def _advance(self, pending: PendingSend, outcome: Sent) -> None:
        """Account for what the kernel took."""
        if pending.errors:
            # It went through in the end, so the errors were about earlier datagrams.
            self._gate.asynchronous_errors.update(pending.errors)
            self._known.doubt(pending.errors)
            pending.errors.clear()
        pending.last_failure = None
        if pending.suspicion is not None:
            if pending.suspicion.errno == errno.EINVAL:
                self._switch_gso_off(pending.suspicion)
                pending.unsegmented_until = START
            pending.suspicion = None
        self._gate.progress()
        # All that needs memory comes before anything is entered, so that the account holds.
        calls, trains = self.calls + 1, self.trains + outcome.messages
        datagrams, nbytes = self.datagrams + outcome.datagrams, self.nbytes + outcome.nbytes
        sent = pending.submission.sent + outcome.datagrams
        self._queue.move_on(outcome.position, outcome.datagrams)
        pending.submission.sent = sent
        self.calls, self.trains, self.datagrams, self.nbytes = calls, trains, datagrams, nbytes

    def _refused(
        self, pending: PendingSend, outcome: Sent, error: OSError, transmission: Transmission
    ) -> bool:
        """Carry out what a refusal means. Returns whether the transmission is still good."""
        number = error.errno or 0
        self._refusals += 1
        pending.errors.append(number)
        storm = self._may_be_a_storm(number)
        if storm:
            address, size = _first_datagram(pending)
            storm = not self._known.own(address, number, size)
        verdict = judge(pending.errors, segmented=outcome.segmented, storm=storm)
        if verdict is Verdict.RETRY:
            return True
        if verdict is Verdict.CLOSED:
            raise trio.ClosedResourceError("the socket was closed") from None
        address, size = _first_datagram(pending)
        self._gate.asynchronous_errors.update(n for n in pending.errors if n != number)
        self._known.learn(address, number, size, tries=len(pending.errors))
        pending.errors.clear()
        if verdict is Verdict.SWITCH_GSO_OFF:
            self._switch_gso_off(error)
            return False
        if verdict is Verdict.FIRST_ALONE:
            pending.unsegmented_until = outcome.refused
            pending.suspicion = error
            return False
        if pending.suspicion is None:
            self._fail(pending, outcome.refused, error)
            transmission.skip()
            return True
        pending.suspicion = None
        until = pending.unsegmented_until
        self._fail(pending, _end_of(pending, size) if number == errno.EMSGSIZE else until, error)
        return False

    def _may_be_a_storm(self, number: int) -> bool:
        """Whether an error can come from ICMP messages, one after the other."""
        return number == errno.ECONNREFUSED or (
            number in _errnos.FROM_ICMP and _options.hears_errors(self._sock)
        )

    def _switch_gso_off(self, error: OSError) -> None:
        self.gso = False
        self.gso_fallbacks += 1
        logger.warning(
            "the kernel does not segment trains here (%s): from now on each datagram goes alone",
            error.strerror,
        )

    def _fail(self, pending: PendingSend, end: Position, error: OSError) -> None:
        """Take a message out of the queue that can never be sent."""
        index, offset = pending.position
        begin = offset
        last = pending.last_failure
        if (
            offset
            and last is not None
            and last.error.errno == error.errno
            and self.failures
            and self.failures[-1] is last
        ):
            # One more datagram of a train that goes one by one: one failure for them together.
            self.failures.pop()
            begin -= last.train.nbytes
        datagrams = 0
        while (index, offset) < end:
            whole = pending.columns.train(index)
            stop = end.offset if index == end.train else whole.nbytes
            address = whole.address if pending.target is KEEP else pending.target
            size = whole.segment_size
            train = make_train(whole.data[begin:stop], size, address, whole.ecn)
            pending.last_failure = SendFailure(train, error)
            self.failures.append(pending.last_failure)
            datagrams += datagram_count(stop - offset, size)
            index, offset, begin = index + 1, 0, 0
        number = error.errno or 0
        self.failed[number] += datagrams
        pending.submission.fail(number, datagrams)
        self._queue.move_on(end, datagrams)


def _first_datagram(pending: PendingSend) -> tuple[Address | None, int]:
    """The peer and the size in bytes of the datagram that is to be sent next."""
    train = pending.columns.train(pending.position.train)
    address = train.address if pending.target is KEEP else pending.target
    return address, min(train.segment_size, train.nbytes - pending.position.offset)


def _end_of(pending: PendingSend, size: int) -> Position:
    """How far datagrams of at least ``size`` bytes reach, of those that go one by one.

    A train was refused for being too long, and its first datagram alone was as well. The ones like
    it share its fate, without a call for each; a shorter one at the end may still go.
    """
    index, offset = pending.position
    until = pending.unsegmented_until
    while (index, offset) < until:
        train = pending.columns.train(index)
        stop = until.offset if index == until.train else train.nbytes
        if train.segment_size < size:
            break
        tail = (stop - offset) % train.segment_size
        if 0 < tail < size:
            return Position(index, stop - tail)
        if stop < train.nbytes:
            return Position(index, stop)
        index, offset = index + 1, 0
    return Position(index, offset)
