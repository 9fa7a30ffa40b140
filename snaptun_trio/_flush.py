# One turn of sending, and what a refusal of the kernel means.
#
# The rules, for a message that the kernel refused. Nothing of it was sent then.
#   - It is tried again. An error that is about an earlier datagram (ICMP came back), or a passing
#     fault, is reported once, and the same message goes through on the next try.
#   - EIO for a train: the kernel's one word for "I cannot segment here". GSO is switched off.
#   - EINVAL for a train: its first datagram goes alone. If that goes through, GSO was at fault, and
#     is switched off. If not, it is the target's fault (port 0, a blackhole route), or the train's.
#   - EMSGSIZE for a train: its datagrams go one by one, since a tail may fit where the rest is too
#     long.
#   - Everything else is this message's own: it is taken out of the queue, and reported. ENOBUFS is
#     among it: the socket is writable all the while, so to wait for it would be to spin.
# This file never waits, and must not know how it is called.

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
from ._kernel._abi import MAX_BATCH_SIZE
from ._kernel._interface import START
from ._train import make_train

if TYPE_CHECKING:
    from ._gate import Gate
    from ._kernel._interface import Backend, Position, Sent, Socket
    from ._queue import SendQueue, Unsent

logger = logging.getLogger("snaptun_trio")

# A flush lets other tasks run after so many messages. The kernel takes 1 to 5 us for each.
_MESSAGES_A_TURN = 1024
_REFUSAL = 32  # what a refused try counts for: a whole call's work for no datagram

# How often a message is tried before an error counts as its own. One error can be pending at a
# socket; where strangers' ICMP messages can put the next one there at once, many more. A storm that
# leaves an error at two of three tries then refuses one datagram in 10^11.
_TRIES = 2
_TRIES_IN_A_STORM = 64


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
        messages = 0
        while messages < _MESSAGES_A_TURN:
            unsent = self._queue.first()
            if unsent is None:
                return Turn.DONE
            if unsent.one_by_one > unsent.position:
                outcome = self._backend.send_single(
                    self._sock, unsent.columns, unsent.target, unsent.position
                )
            else:
                outcome = self._backend.send(
                    self._sock,
                    unsent.columns,
                    unsent.target,
                    unsent.position,
                    self.gso,
                    unsent.most,
                )
            if outcome.error is None:
                self._advance(unsent, outcome)
                messages += outcome.messages
            elif isinstance(outcome.error, BlockingIOError):
                return Turn.BLOCKED
            else:
                self._refused(unsent, outcome, outcome.error)
                messages += _REFUSAL
        return Turn.MORE

    def all_now(self) -> Turn:
        """Send until nothing is left or the socket is full."""
        while (turn := self.turn()) is Turn.MORE:
            pass
        return turn

    def _advance(self, unsent: Unsent, outcome: Sent) -> None:
        """Account for what the kernel took."""
        if unsent.tries:
            # It went through in the end, so the errors were about earlier datagrams.
            self._gate.asynchronous_errors.update(unsent.tries)
            unsent.tries.clear()
        unsent.last_failure = None
        if unsent.most < MAX_BATCH_SIZE:
            unsent.most *= 2
        if unsent.doubt is not None:
            self._switch_gso_off(unsent.doubt)
            unsent.doubt, unsent.one_by_one = None, START
        self._gate.progress()
        self.calls += 1
        self.trains += outcome.messages
        self.datagrams += outcome.datagrams
        self.nbytes += outcome.nbytes
        self._queue.move_on(outcome.position, outcome.datagrams)

    def _refused(self, unsent: Unsent, outcome: Sent, error: OSError) -> None:
        """Decide what a refusal is about."""
        number = error.errno or 0
        if number in _errnos.GONE:
            raise trio.ClosedResourceError("the socket was closed") from None
        unsent.tries.append(number)
        unsent.most = 1
        storm = number == errno.ECONNREFUSED or (
            number in _errnos.FROM_ICMP and _options.hears_errors(self._sock)
        )
        if len(unsent.tries) < (_TRIES_IN_A_STORM if storm else _TRIES):
            return
        self._gate.asynchronous_errors.update(n for n in unsent.tries if n != number)
        unsent.tries.clear()
        if outcome.segmented and number == errno.EIO:
            self._switch_gso_off(error)
        elif outcome.segmented and number in (errno.EINVAL, errno.EMSGSIZE):
            unsent.one_by_one = outcome.refused
            unsent.doubt = error if number == errno.EINVAL else None
        elif unsent.doubt is not None:
            unsent.doubt = None
            self._fail(unsent, unsent.one_by_one, error)
        else:
            self._fail(unsent, outcome.refused, error)

    def _switch_gso_off(self, error: OSError) -> None:
        self.gso = False
        self.gso_fallbacks += 1
        logger.warning(
            "the kernel does not segment trains here (%s): from now on each datagram goes alone",
            error.strerror,
        )

    def _fail(self, unsent: Unsent, end: Position, error: OSError) -> None:
        """Take a message out of the queue that can never be sent."""
        index, offset = unsent.position
        begin = offset
        last = unsent.last_failure
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
            whole = unsent.columns.trains()[index]
            stop = end.offset if index == end.train else whole.nbytes
            address = whole.address if unsent.target is KEEP else unsent.target
            size = whole.segment_size
            train = make_train(whole.data[begin:stop], size, address, whole.ecn)
            unsent.last_failure = SendFailure(train, error)
            self.failures.append(unsent.last_failure)
            datagrams += datagram_count(stop - offset, size)
            index, offset, begin = index + 1, 0, 0
        self.failed[error.errno or 0] += datagrams
        self._queue.move_on(end, datagrams)
