# ScriptedSocket: a socket whose kernel does as a test tells it.
#
# A receiver or a sender that is given one uses a `SocketIO` that reads the script. Messages are
# made of batches as the portable backend makes them. No system call is made.

from __future__ import annotations

import errno
import os
import socket
import sys
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, final

import trio

from .._coalesce import split
from .._kernel import _abi
from .._kernel._interface import SocketIO
from .._kernel._pieces import prepare
from .._kernel._portable import PortableOutgoing, Scratch
from .._messages import TrainMessages
from .._train import Address, check_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._batch import PacketBatch
    from .._kernel._pieces import OutgoingMessage
    from .._messages import Messages, Recipient


@final
class ScriptedSocket(trio.socket.SocketType):
    """A UDP socket whose kernel does as a test says.

    For a `~snaptun_trio.UdpBatchReceiver`, a `~snaptun_trio.UdpBatchSender` or
    `~snaptun_trio.open_batch_pump`: it has what those ask of a socket, and no descriptor. Options
    are kept and given back.

    Args:
      local_address: where it is bound.
      remote_address: whom it is connected to; `None` for nobody.

    Attributes:
      sends: what the kernel answers to the next messages that are sent, one each: 0 takes it, an
        errno refuses it, ``errno.EAGAIN`` says that the socket is full, until `wake`.
      answer: used up, this is asked each time: a function of the list of the message's datagrams,
        more than one where the kernel is to segment, and of its address. By default all is taken.
        A sender tries some refusals again, as reliability demands: what is to be refused for good
        is refused here.
      receives: what each receive call gives: a batch, or an errno. Used up, nothing is there;
        `wake` lets those who wait look again.
      sent: every datagram that was taken, with its address, in order.
      waiting: how many tasks wait for the socket now.
    """

    def __init__(
        self,
        local_address: Address = ("192.0.2.1", 9000),
        remote_address: Address | None = None,
    ) -> None:
        super().__init__()
        for address in (local_address, remote_address):
            check_address(address)
        self.sends: deque[int] = deque()
        self.answer: Callable[[list[bytes], Address | None], int] = lambda packets, address: 0
        self.receives: deque[PacketBatch | int] = deque()
        self.sent: list[tuple[bytes, Address | None]] = []
        self.waiting = 0
        self._local, self._remote = local_address, remote_address
        self._options: dict[tuple[int, int], int] = {}
        self._closed = False
        self._woken = trio.Event()

    def wake(self) -> None:
        """Let every task that waits for the socket try again."""
        self._woken.set()
        self._woken = trio.Event()

    def close(self) -> None:
        """Close it. A task that waits for it gets `trio.ClosedResourceError`."""
        self._closed = True
        self.wake()

    # -- what receivers and senders ask of a socket

    @property
    def family(self) -> socket.AddressFamily:
        """That of its address."""
        return socket.AF_INET6 if ":" in self._local[0] else socket.AF_INET

    @property
    def type(self) -> socket.SocketKind:
        """``SOCK_DGRAM``."""
        return socket.SOCK_DGRAM

    @property
    def proto(self) -> int:
        """That of UDP."""
        return socket.IPPROTO_UDP

    def fileno(self) -> int:
        """A number that is nobody's descriptor, or -1 once it is closed."""
        return -1 if self._closed else 2**31 - 1

    def getsockname(self) -> Address:
        """Where it is bound."""
        return self._local

    def getpeername(self) -> Address:
        """Whom it is connected to.

        Raises:
          OSError: nobody.
        """
        if self._remote is None:
            raise _error(errno.ENOTCONN)
        return self._remote

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> Any:  # noqa: ANN401
        """What was set, or 0. What is no number, such as SO_MEMINFO, is not known."""
        if self._closed or buflen is not None:
            raise _error(errno.EBADF if self._closed else errno.ENOPROTOOPT)
        return self._options.get((level, optname), 0)

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:  # noqa: ANN401
        """Keep an option that is a number."""
        self._options[level, optname] = int(value)

    def _open_io(self) -> SocketIO:
        return _ScriptedIO(self)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class _ScriptedIO(SocketIO):
    backend = "scripted"
    sock: ScriptedSocket

    @staticmethod
    def memory(buffer_size: int, capacity: int) -> Scratch:
        return Scratch(buffer_size)

    def receive(self, memory: object, offered: int, slots: int) -> TrainMessages | None:
        if self.closed:
            raise _error(errno.EBADF)
        step = self.sock.receives.popleft() if self.sock.receives else errno.EAGAIN
        if not isinstance(step, int):
            return TrainMessages.of_trains(step.trains)
        if step == errno.EAGAIN:
            return None
        raise _error(step)

    def outgoing(self, messages: Messages, address: Recipient) -> PortableOutgoing:
        return PortableOutgoing(prepare(messages, address, self.family), self._transmit)

    def _transmit(self, message: OutgoingMessage) -> None:
        size = message.nbytes
        for level, kind, data in message.controls:
            if (level, kind) == (_abi.SOL_UDP, _abi.UDP_SEGMENT):
                size = int.from_bytes(data, sys.byteorder)
        packets = list(split(message.payload, size))
        sends, address = self.sock.sends, message.address
        answer = sends.popleft() if sends else self.sock.answer(packets, address)
        if answer or self.closed:
            raise _error(errno.EBADF if self.closed else answer)
        self.sock.sent += [(packet, address) for packet in packets]

    async def wait_readable(self) -> None:
        self.sock.waiting += 1
        try:
            await self.sock._woken.wait()
        finally:
            self.sock.waiting -= 1

    wait_writable = wait_readable

    def is_ready(self, *, reading: bool) -> bool:
        return False

    def drain_errors(self) -> Counter[int]:
        return Counter()
