# What a relay counts: of one direction, and of one target in it.
#
# What goes through senders of its own they count; all that was received, and what many sockets sent
# at once, is entered here when it is handed out, and so is what was never given to a socket, by
# reason. A receiver counts earlier, and other tasks have a turn before it hands over what it has.

from __future__ import annotations

from collections import Counter
from errno import errorcode
from types import MappingProxyType
from typing import TYPE_CHECKING

from ._relay_statistics import RelayFlow, RelayStatistics, RelayTarget

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ._messages import Messages
    from ._sender import UdpBatchSender
    from ._train import Address


class SessionCounts:
    """What became of sessions, see `RelayStatistics`."""

    def __init__(self) -> None:
        self.created = self.expired = self.evicted = self.moved = self.failed = self.closed = 0
        self.shed = 0


class FlowAccount:
    """The counts of one direction.

    Attributes:
      added, datagrams_in: see `RelayFlow.datagrams_added` and `RelayFlow.datagrams_in`.
      handing_out: datagrams that were received, and are neither sent nor dropped yet.
    """

    def __init__(self) -> None:
        self.added = 0
        self.handing_out = 0
        self._dropped: Counter[str] = Counter()
        self._errors: Counter[int] = Counter()
        self._receive_calls = self._trains_in = self.datagrams_in = self._bytes_in = 0
        self._send_calls = self._trains_out = self._datagrams_out = self._bytes_out = 0

    def received(self, calls: int, messages: Messages) -> None:
        """Something came in, and is handed out now."""
        self._receive_calls += calls
        self._trains_in += messages.count
        self.datagrams_in += messages.datagrams
        self._bytes_in += messages.nbytes

    def sent(self, calls: int, trains: int, datagrams: int, nbytes: int) -> None:
        """Something was sent."""
        self._send_calls += calls
        self._trains_out += trains
        self._datagrams_out += datagrams
        self._bytes_out += nbytes

    def drop(self, reason: str, datagrams: int) -> None:
        """Something was received, and will not be sent."""
        self._dropped[reason] += datagrams

    def handled(self, came: int, went: int, drops: FlowAccount | TargetAccount) -> None:
        """A function made so many datagrams of what came; fewer count as dropped in ``drops``."""
        self.handing_out += went - came
        if went > came:
            self.added += went - came
        elif went < came:
            drops.drop("handler", came - went)

    def note_error(self, number: int) -> None:
        """A socket told of an error about an earlier datagram."""
        self._errors[number] += 1

    def forget(self, sender: UdpBatchSender) -> None:
        """A socket is closed that had this sender."""
        flush = sender._flush
        self.sent(flush.calls, flush.trains, flush.datagrams, flush.nbytes)
        self._dropped.update(_not_sent(sender))
        self._errors.update(sender._waiter.asynchronous_errors)

    def finish(self) -> None:
        """The relay has ended: nothing that is still being handed out will be sent."""
        self._dropped["closed"] += self.handing_out
        self.handing_out = 0

    def snapshot(
        self, senders: Iterable[UdpBatchSender] = (), buffers_dropped: int = 0
    ) -> RelayFlow:
        """All counts, with those of senders and sockets that are still there."""
        send_calls, trains_out = self._send_calls, self._trains_out
        datagrams_out, bytes_out = self._datagrams_out, self._bytes_out
        dropped, errors = self._dropped.copy(), self._errors.copy()
        # Not by their `statistics`, which ask the kernel for more than is wanted here.
        for sender in senders:
            flush = sender._flush
            send_calls += flush.calls
            trains_out += flush.trains
            datagrams_out += flush.datagrams
            bytes_out += flush.nbytes
            dropped.update(_not_sent(sender))
            errors.update(sender._waiter.asynchronous_errors)
        return RelayFlow(
            datagrams_in=self.datagrams_in,
            bytes_in=self._bytes_in,
            datagrams_added=self.added,
            datagrams_out=datagrams_out,
            bytes_out=bytes_out,
            datagrams_waiting=self.handing_out,
            dropped=_shown(dropped),
            asynchronous_errors=_by_name(errors),
            buffers_dropped_by_kernel=buffers_dropped,
            receive_calls=self._receive_calls,
            trains_in=self._trains_in,
            send_calls=send_calls,
            trains_out=trains_out,
        )


class TargetAccount:
    """The counts of one target. What is dropped, and each error, is the flow's as well.

    Attributes:
      sessions: how many it has.
      datagrams_out: what was sent past the senders, which count the rest.
    """

    def __init__(self, flow: FlowAccount) -> None:
        self._flow = flow
        self.sessions = self.datagrams_out = 0
        self._dropped: Counter[str] = Counter()
        self._errors: Counter[int] = Counter()

    def drop(self, reason: str, datagrams: int) -> None:
        """Something that was for it will not be sent."""
        self._dropped[reason] += datagrams
        self._flow.drop(reason, datagrams)

    def note_error(self, number: int) -> None:
        """A socket to it told of an error about an earlier datagram."""
        self._errors[number] += 1
        self._flow.note_error(number)

    def forget(self, sender: UdpBatchSender) -> None:
        """A socket to it is closed that had this sender."""
        self._flow.forget(sender)
        self.datagrams_out += sender._flush.datagrams
        self._dropped.update(_not_sent(sender))
        self._errors.update(sender._waiter.asynchronous_errors)

    def snapshot(self, address: Address, senders: Iterable[UdpBatchSender]) -> RelayTarget:
        """All of them, with those of senders that are still there."""
        datagrams_out = self.datagrams_out
        dropped, errors = self._dropped.copy(), self._errors.copy()
        for sender in senders:
            datagrams_out += sender._flush.datagrams
            dropped.update(_not_sent(sender))
            errors.update(sender._waiter.asynchronous_errors)
        return RelayTarget(
            address=address,
            sessions=self.sessions,
            datagrams_out=datagrams_out,
            dropped=_shown(dropped),
            asynchronous_errors=_by_name(errors),
        )


def accounts_of(
    targets: Iterable[Address], flow: FlowAccount, known: Mapping[Address, TargetAccount]
) -> dict[Address, TargetAccount]:
    """An account for each target: its own where it has one, or a new one."""
    return {target: known.get(target) or TargetAccount(flow) for target in targets}


def told(
    counts: SessionCounts,
    sessions: int,
    to_targets: RelayFlow,
    to_clients: RelayFlow,
    targets: Iterable[RelayTarget] = (),
) -> RelayStatistics:
    """All of it, as a program sees it."""
    return RelayStatistics(
        sessions=sessions,
        sessions_created=counts.created,
        sessions_expired=counts.expired,
        sessions_evicted=counts.evicted,
        sessions_moved=counts.moved,
        sessions_failed=counts.failed,
        sessions_closed=counts.closed,
        sessions_shed=counts.shed,
        to_targets=to_targets,
        to_clients=to_clients,
        targets=tuple(targets),
    )


def _not_sent(sender: UdpBatchSender) -> Counter[str]:
    """What a sender was given and did not send, by reason."""
    reasons: Counter[str] = Counter()
    for number, datagrams in sender._flush.failed.items():
        reasons[_errno_name(number)] += datagrams
    # Nothing waits in a sender's queue here, so what was discarded is what its socket did not take.
    reasons["socket full"] += sender._discarded
    return reasons


def _shown(dropped: Counter[str]) -> Mapping[str, int]:
    return MappingProxyType({reason: count for reason, count in dropped.items() if count})


def _by_name(errors: Counter[int]) -> Mapping[str, int]:
    return MappingProxyType({_errno_name(number): count for number, count in errors.items()})


def _errno_name(number: int) -> str:
    return errorcode.get(number, str(number))
