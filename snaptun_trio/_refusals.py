# What a refusal of the kernel means: a table, and what was learned from earlier refusals.
#
# A message that the kernel refused is not sent, not even in part. What follows from the error:
#
#   errno of a message   segmented                      one datagram
#   EBADF, ENOTSOCK      closed                         closed
#   EIO                  GSO is switched off            fail
#   EINVAL, EMSGSIZE     its first datagram goes alone  fail
#   anything else        fail                           fail
#
# and before any of it but "closed": try again. An error that is about an earlier datagram (an ICMP
# message came back) or a passing fault is reported once, and the same message goes through.
#
# - EIO for a train is the kernel's one word for "I cannot segment here".
# - EINVAL for a train is GSO's fault if the first datagram then goes alone, and the address's if it
#   does not (port 0, a blackhole route).
# - EMSGSIZE for a train is about its segment size; the shorter datagram at its end may still fit.
# - ENOBUFS fails like the rest: the socket is writable all the while, so to wait would be to spin.
#
# This file decides. It must not know sockets, queues or how anything is sent.

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING

from ._kernel import _errnos

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._train import Address

# How often a message is tried before an error counts as its own. One error can be pending at a
# socket; where strangers' ICMP messages can put the next one there at once, many more. A storm that
# leaves an error at two of three tries then refuses one datagram in 10^11.
TRIES = 2
TRIES_IN_A_STORM = 64

# How many refusals of one kind are believed before that many tries are spent on one again. It keeps
# the price of a refusal near that of two tries, and what was once true from being believed for
# ever.
_BELIEVED = 256
# Peers and errors that are remembered. Addresses can be a stranger's choice; then all is forgotten.
_MOST_REMEMBERED = 256


class Verdict(enum.Enum):
    """What becomes of a message that was refused."""

    RETRY = enum.auto()
    FAIL = enum.auto()
    SWITCH_GSO_OFF = enum.auto()
    FIRST_ALONE = enum.auto()
    CLOSED = enum.auto()


_OF_A_TRAIN = {
    errno.EIO: Verdict.SWITCH_GSO_OFF,
    errno.EINVAL: Verdict.FIRST_ALONE,
    errno.EMSGSIZE: Verdict.FIRST_ALONE,
}


def judge(errors: Sequence[int], *, segmented: bool, storm: bool) -> Verdict:
    """What becomes of a message.

    Args:
      errors: what it was refused with so far, by errno, in order.
      segmented: whether it asks the kernel to segment.
      storm: whether ICMP messages of strangers may have caused the last error.
    """
    last = errors[-1]
    if last in _errnos.CLOSED_ERRNOS:
        return Verdict.CLOSED
    if len(errors) < (TRIES_IN_A_STORM if storm else TRIES):
        return Verdict.RETRY
    return _OF_A_TRAIN.get(last, Verdict.FAIL) if segmented else Verdict.FAIL


class KnownRefusals:
    """Which errors were seen to be a peer's own, and no stranger's doing.

    A datagram that is over the interface's MTU gets EMSGSIZE at each try, and so may one for which
    an ICMP message came in just then. Only many tries can tell the two apart, and a flood of
    oversize datagrams would be a flood of tries. So what many tries have shown is believed of the
    next ones to the same peer, as long as none goes through after such an error.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Address | None, int], list[int]] = {}

    def own(self, address: Address | None, number: int, size: int) -> bool:
        """Whether this error is known to be the datagram's own. ``size`` is in bytes."""
        known = self._known.get((address, number))
        return known is not None and size >= known[0]

    def learn(self, address: Address | None, number: int, size: int, tries: int) -> None:
        """A datagram of ``size`` bytes was refused for good, at the last of so many tries."""
        known = self._known.get((address, number))
        if known is not None and size >= known[0]:
            known[1] -= 1
            if not known[1]:
                del self._known[address, number]
        elif tries >= TRIES_IN_A_STORM:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            # Any other error than "too long" has nothing to do with the size.
            self._known[address, number] = [size if number == errno.EMSGSIZE else 0, _BELIEVED]

    def doubt(self, errors: Sequence[int]) -> None:
        """A message went through after these errors: they were about something else."""
        for key in [key for key in self._known if key[1] in errors]:
            del self._known[key]
