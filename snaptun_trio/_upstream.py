# Upstream: a relay's way to one target, with a socket of its own.
#
# What a socket does not take at once is dropped, since whoever waited here would hold up others:
# the socket's buffer is the queue. Most is sent for many upstreams at once, past their senders; a
# sender is made where the kernel refuses something, to find out what that means. This file must not
# know who has which target.

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ._kernel import socket_io
from ._kernel._fan import Link
from ._kernel._sockets import open_connected
from ._messages import PER_TRAIN_ADDRESS
from ._send_queue import PendingSend, Submission
from ._sender import UdpBatchSender

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._kernel._fan import Fan
    from ._kernel._outgoing import Outgoing
    from ._kernel._sockets import SocketOptions
    from ._messages import Messages, Recipient
    from ._relay_account import FlowAccount, TargetAccount
    from ._train import Address, Way

SOCKET_FULL = "socket full"
# As much work as one call to a socket may be, see `SocketIO.send`.
_WORK_A_CALL = 1024


class Upstream(Link):
    """A socket that is connected to a target.

    Args:
      target: the target.
      account: its account.
      client: for whom what the target sends is.
      way: from which address of ours that leaves.

    Raises:
      OSError: the system has no socket for it, or there is no way to the target.
    """

    __slots__ = ("account", "sender", "target")

    def __init__(
        self,
        target: Address,
        account: TargetAccount,
        client: Address,
        way: Way | None,
        options: SocketOptions,
        fan: Fan,
    ) -> None:
        sock = open_connected(target, options)
        try:
            super().__init__(socket_io(sock), client)
            self.target, self.account = target, account
            self.sender: UdpBatchSender | None = None
            fan.prepare(self, way)
        except BaseException:
            sock.close()
            raise

    def send_rest(self, rest: Outgoing, refused: int, fan: Fan) -> None:
        """See `send_rest`.

        The fan is told where that was because the kernel does not segment, so that the others need
        not find out as well.
        """
        if self.sender is None:
            self.sender = UdpBatchSender(self.io.sock, gso=fan.gso)
        self.sender._io.gso = fan.gso
        send_rest(self.sender, rest, None, refused, self.account)
        fan.gso = self.sender._io.gso

    def close(self) -> None:
        """Close the socket. What it has received and nobody has read is lost."""
        if self.sender is not None:
            self.sender.close()
            self.account.forget(self.sender)
        self.io.sock.close()


def send_each(
    upstreams: Sequence[Upstream], batches: list[Messages], fan: Fan, account: FlowAccount
) -> None:
    """Send each batch to the target of its upstream, as far as its socket takes it now.

    In the account they are being handed out until then.
    """
    while batches:
        calls, trains, datagrams, nbytes, rest = fan.send(upstreams, batches, _WORK_A_CALL)
        account.sent(calls, trains, datagrams, nbytes)
        account.handing_out -= datagrams
        served = calls + len(rest)  # fewer than all where memory lacked
        for upstream, batch in zip(upstreams[:served], batches):
            upstream.account.datagrams_out += batch.datagrams
        for place, _, _ in rest:
            upstreams[place].account.datagrams_out -= batches[place].datagrams
        for place, refused, outgoing in rest:
            upstreams[place].send_rest(outgoing, refused, fan)
            account.handing_out -= batches[place].datagrams
        upstreams, batches = upstreams[served:], batches[served:]


def send_or_drop(sender: UdpBatchSender, outgoing: Outgoing, account: FlowAccount) -> None:
    """Send to each message's own address, as far as the socket takes it now."""
    refused = sender._io.send(outgoing, _WORK_A_CALL)
    if refused or outgoing.more:
        send_rest(sender, outgoing, PER_TRAIN_ADDRESS, refused, account)
    else:  # as nearly always: to enter it in the sender's queue would cost as much again
        account.sent(1, outgoing.messages, outgoing.datagrams, outgoing.nbytes)


def send_rest(
    sender: UdpBatchSender,
    rest: Outgoing,
    recipient: Recipient,
    refused: int,
    account: FlowAccount | TargetAccount,
) -> None:
    """Send what was left over of a batch, as far as the socket takes it now, and drop the rest.

    Args:
      sender: what it is sent with, and what counts it.
      rest: what was left over.
      recipient: whom it is for, unless its messages say so.
      refused: the errno with which its beginning was refused, 0 for none.
      account: where it is entered if nothing of it was taken.
    """
    submission = Submission(owned=False)
    pending = PendingSend(rest, recipient, submission)
    try:
        sender._shared.send_batch_now(pending, submission, refused)
    except trio.WouldBlock:
        account.drop(SOCKET_FULL, rest.content.datagrams)
    except trio.ClosedResourceError:  # by its owner, who is told of it elsewhere
        account.drop("closed", sender._queue.clear())
    sender._take_unclaimed()  # it has counted them
    if sender._queue.datagrams:
        sender._discard_queue()
