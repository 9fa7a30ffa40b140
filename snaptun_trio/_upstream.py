# Upstream: a relay's way to one target, with a socket of its own.
#
# What the socket does not take at once is dropped, since whoever waited here would hold up others:
# the socket's buffer is the queue. This file must not know clients, nor who has which target.

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ._errors import SendBatchError
from ._kernel._sockets import close_socket, open_socket
from ._receiver import UdpBatchReceiver
from ._sender import UdpBatchSender

if TYPE_CHECKING:
    from ._batch import PacketBatch
    from ._kernel._sockets import SocketOptions
    from ._pool import PacketBufPool
    from ._relay_account import FlowAccount
    from ._train import Address

SOCKET_FULL = "socket full"


def send_or_drop(sender: UdpBatchSender, batch: PacketBatch, account: FlowAccount) -> None:
    """Send a batch as far as the socket takes it now, and drop the rest."""
    try:
        sender.send_nowait(batch)
    except trio.WouldBlock:
        account.drop(SOCKET_FULL, len(batch))
        return
    except SendBatchError:
        pass  # the sender has counted it
    if sender._queue.datagrams:
        sender._discard_queue()  # and so has it that


class Upstream:
    """A connected socket, its receiver and its sender.

    Raises:
      OSError: the system has no socket for it, or there is no way to the target.
    """

    __slots__ = ("receiver", "sender", "target")

    def __init__(self, target: Address, options: SocketOptions, pool: PacketBufPool) -> None:
        self.target = target
        sock = open_socket(("::" if ":" in target[0] else "0.0.0.0", 0), target, options)
        try:
            self.receiver = UdpBatchReceiver(sock, pool)
            self.sender = UdpBatchSender(sock)
        except BaseException:
            close_socket(sock)
            raise

    def close(self) -> None:
        """Close the socket. What it has received and nobody has read is lost."""
        self.receiver.close()
        self.sender.close()
        close_socket(self.sender.socket)
