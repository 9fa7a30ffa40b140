# Upstream: a relay's way to one target, with a socket of its own.
#
# What a socket does not take at once is dropped, since whoever waited here would hold up others:
# the socket's buffer is the queue. Most is sent for many upstreams at once, past their senders; a
# sender is made where the kernel refuses something, to find out what that means. This file must not
# know who has which target.

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ._errors import SendBatchError
from ._kernel import socket_io
from ._kernel._fan import Link
from ._kernel._sockets import close_socket, open_socket
from ._send_queue import PendingSend, Submission
from ._sender import UdpBatchSender

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._batch import PacketBatch
    from ._kernel._fan import Fan
    from ._kernel._outgoing import Outgoing
    from ._kernel._sockets import SocketOptions
    from ._messages import Messages
    from ._relay_account import FlowAccount
    from ._train import Address, Way

SOCKET_FULL = "socket full"
# As much work as one call to a socket may be, see `SocketIO.send`.
_WORK_A_CALL = 1024


class Upstream(Link):
    """A socket that is connected to a target.

    Args:
      target: the target.
      client: for whom what the target sends is.
      way: from which address of ours that leaves.

    Raises:
      OSError: the system has no socket for it, or there is no way to the target.
    """

    __slots__ = ("sender", "target")

    def __init__(
        self, target: Address, client: Address, way: Way | None, options: SocketOptions, fan: Fan
    ) -> None:
        sock = open_socket(("::" if ":" in target[0] else "0.0.0.0", 0), target, options)
        try:
            super().__init__(socket_io(sock), client)
            self.target = target
            self.sender: UdpBatchSender | None = None
            fan.prepare(self, way)
        except BaseException:
            close_socket(sock)
            raise

    def send_rest(self, rest: Outgoing, refused: int, fan: Fan, account: FlowAccount) -> None:
        """Send what was left over of a batch, as far as the socket takes it now, and drop the rest.

        Args:
          rest: what was left over.
          refused: the errno with which its beginning was refused, 0 for none.
          fan: is told where that was because the kernel does not segment, so that the others need
            not find out as well.
          account: of what goes to targets.
        """
        if self.sender is None:
            self.sender = UdpBatchSender(self.io.sock, gso=fan.gso)
        sender = self.sender
        sender._io.gso = fan.gso
        try:
            submission = Submission(owned=False)
            pending = PendingSend(rest, None, submission)
            sender._shared.send_batch_now(pending, submission, refused)
        except trio.WouldBlock:
            account.drop(SOCKET_FULL, rest.content.datagrams)
        fan.gso = sender._io.gso
        sender._take_unclaimed()  # it has counted them
        if sender._queue.datagrams:
            sender._discard_queue()

    def close(self) -> None:
        """Close the socket. What it has received and nobody has read is lost."""
        if self.sender is not None:
            self.sender.close()
        close_socket(self.io.sock)


def send_each(
    upstreams: Sequence[Upstream], batches: list[Messages], fan: Fan, account: FlowAccount
) -> None:
    """Send each batch to the target of its upstream, as far as its socket takes it now."""
    calls, trains, datagrams, nbytes, rest = fan.send(upstreams, batches, _WORK_A_CALL)
    account.sent(calls, trains, datagrams, nbytes)
    for place, refused, outgoing in rest:
        upstreams[place].send_rest(outgoing, refused, fan, account)


def send_or_drop(sender: UdpBatchSender, batch: PacketBatch, account: FlowAccount) -> None:
    """Send a batch as far as the socket takes it now, and drop the rest."""
    try:
        sender.send_nowait(batch)
    except trio.WouldBlock:
        account.drop(SOCKET_FULL, len(batch))
    except SendBatchError:
        pass  # the sender has counted it
    except trio.ClosedResourceError:
        account.drop("closed", len(batch))  # the receiver of the same socket says so
    if sender._queue.datagrams:
        sender._discard_queue()  # and so has it that
