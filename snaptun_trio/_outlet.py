# Where a pump's batches leave, and what became of every datagram of them.
#
# A sending channel of any kind is asked to send, and tells by an exception what it refused. A
# sender of ours can do more: send at once where nothing is in the way, and tell of each batch
# apart from whatever else goes through it. The law, at any time:
#
#     given == sent + failed + discarded + waiting
#
# This file must not know tasks, channels between them, or where batches come from.

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import trio

from ._batch import PacketBatch, merged
from ._errors import SendBatchError, SendFailure
from ._rare_log import RareLog
from ._send_queue import Submission
from ._sender import UdpBatchSender
from ._shared_flush import MANY

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._send_queue import PendingSend
    from ._train import PacketTrain


class UnderWay(NamedTuple):
    """Something that is being sent."""

    batch: PacketBatch
    submission: Submission
    """What became of it so far."""
    batches: int = 1
    """The batches that were given, of which it was put together."""

    @property
    def waiting(self) -> int:
        """Datagrams of it that are neither sent nor given up, accepted already or not."""
        return len(self.batch) - self.submission.submitted + self.submission.waiting


class Outlet(ABC):
    """Sends batches, and keeps the account of them.

    Attributes:
      batches_sent, batches_discarded: batches of which everything was sent or refused, and others.
      under_way: what is being sent.
    """

    def __init__(self) -> None:
        self.batches_sent = self.batches_discarded = 0
        self._sent = self._discarded = 0
        self._failed: Counter[int] = Counter()
        self.under_way: list[UnderWay] = []
        self._rare_log = RareLog()

    @property
    def sent(self) -> int:
        """Datagrams that the channel took."""
        return self._sent + sum(one.submission.sent for one in self.under_way)

    @property
    def discarded(self) -> int:
        """Datagrams that were given up, because the pump or its sender ended."""
        return self._discarded + sum(one.submission.discarded for one in self.under_way)

    @property
    def failed(self) -> Counter[int]:
        """Datagrams that the channel refused for good, by errno."""
        failed = self._failed.copy()
        for one in self.under_way:
            failed.update(one.submission.failed)
        return failed

    @property
    def waiting(self) -> int:
        """Datagrams that are being sent."""
        return sum(one.waiting for one in self.under_way)

    async def send(self, batches: Sequence[PacketBatch]) -> None:  # noqa: ASYNC910
        """Send batches, and all that is still under way, waiting as often as need be.

        Raises:
          Exception: the channel's, but for datagrams that it refused. They are given up then.
        """
        given = self._given(batches)
        self.under_way += given
        try:
            for one in given:
                await self._send(one)
        except BaseException:
            self.give_up()
            raise
        self._settle()

    def _given(self, batches: Sequence[PacketBatch]) -> list[UnderWay]:
        """What is to be sent for these batches."""
        return [UnderWay(batch, Submission()) for batch in batches]

    @abstractmethod
    async def _send(self, one: UnderWay) -> None:
        """Send something, and enter into its submission what becomes of it."""

    def send_at_once(self, batch: PacketBatch) -> bool:
        """Send a batch without waiting, if that can be done. Returns whether it was taken.

        What the socket does not take is still under way then; `send` sends it, also with a batch
        of nothing.
        """
        return False

    def give_up(self) -> None:
        """Discard what is under way."""
        self._settle()

    def _settle(self) -> None:
        """Close the account of what was under way. What was neither sent nor refused is lost."""
        under_way, self.under_way = self.under_way, []
        for one in under_way:
            submission = one.submission
            lost = one.waiting + submission.discarded
            self._sent += submission.sent
            if submission.failed:
                self._failed.update(submission.failed)
            self._discarded += lost
            if lost:
                self.batches_discarded += one.batches
            elif one.batch:
                self.batches_sent += one.batches

    def _log(self, failures: Iterable[SendFailure]) -> None:
        for failure in failures:
            address = failure.train.address
            peer = "the connected peer" if address is None else address
            message = "datagrams could not be sent: %s; one to %s"
            self._rare_log.warn(failure.error.errno or 0, message, failure.error, peer)


class ChannelOutlet(Outlet):
    """Any channel that takes batches."""

    def __init__(self, channel: trio.abc.SendChannel[PacketBatch]) -> None:
        super().__init__()
        self._channel = channel

    async def _send(self, one: UnderWay) -> None:  # noqa: ASYNC910
        # What refuses some datagrams has been a checkpoint, as every `SendChannel.send` is.
        try:
            await self._channel.send(one.batch)
        except SendBatchError as error:
            for failure in error.failures:
                most = one.waiting  # it may also name what others gave it
                number, failed = failure.error.errno or 0, one.submission.failed
                failed[number] = failed.get(number, 0) + min(failure.datagrams, most)
            self._log(error.failures)
        one.submission.sent = one.waiting


class SenderOutlet(Outlet):
    """A sender of ours, which others may use as well."""

    def __init__(self, sender: UdpBatchSender) -> None:
        super().__init__()
        self._sender = sender

    def _given(self, batches: Sequence[PacketBatch]) -> list[UnderWay]:
        if len(batches) == 1:
            return super()._given(batches)
        given: list[UnderWay] = []
        for small, some in groupby(batches, lambda batch: len(batch) < MANY):
            run = list(some)
            given += (
                [UnderWay(merged(run), Submission(), len(run))] if small else super()._given(run)
            )
        return given

    async def _send(self, one: UnderWay) -> None:
        await self._sender._shared.send_batch(self._accept(*one[:2]), one.submission)

    def send_at_once(self, batch: PacketBatch) -> bool:
        submission = Submission()
        try:
            self._sender._shared.send_batch_now(self._accept(batch, submission), submission)
        except trio.WouldBlock:
            return False
        except BaseException:
            self.under_way.append(UnderWay(batch, submission))
            self.give_up()
            raise
        if submission.submitted == submission.sent and not self.under_way:
            self._sent += submission.sent
            self.batches_sent += 1
            # Of what the handler queued in the sender, maybe: nobody else may ever ask for them.
            failures = self._sender._take_unclaimed()
            if failures:
                self._log(failures)
            return True
        self.under_way.append(UnderWay(batch, submission))
        if self._sender.is_empty:
            self._settle()
        return True

    def _accept(self, batch: PacketBatch, submission: Submission) -> PendingSend:
        try:
            return self._sender._accept(batch)
        except (TypeError, ValueError):
            # One bad address fails what is for it, and neither the pump nor the rest.
            good: list[PacketTrain] = []
            for train in batch.trains:
                try:
                    self._sender._accept(PacketBatch((train,)))
                    good.append(train)
                except (TypeError, ValueError) as error:
                    failure = SendFailure(train, OSError(errno.EINVAL, str(error)))
                    submission.failures.append(failure)
                    submission.submitted += len(train)
            if submission.failures:
                submission.failed[errno.EINVAL] = submission.submitted
            return self._sender._accept(PacketBatch(good))

    def give_up(self) -> None:
        for one in self.under_way:
            self._sender._withdraw(one.submission)
        super().give_up()

    def _settle(self) -> None:
        # Each is in the account already; those of packets that the program queued in the sender
        # itself are in the sender's.
        for one in self.under_way:
            self._log(one.submission.failures)
        super()._settle()
        self._log(self._sender._take_unclaimed())


def outlet_of(channel: trio.abc.SendChannel[PacketBatch]) -> Outlet:
    """The outlet for a channel."""
    return SenderOutlet(channel) if isinstance(channel, UdpBatchSender) else ChannelOutlet(channel)
