# A kernel that does as it is told: a `SocketIO` whose every answer is written down beforehand.
#
# Batches are cut into messages by the package's own `_pieces`, as the portable backend does it;
# everything else here is a list. Waiting for the socket is scripted as well, because the real one
# below is always ready.

from __future__ import annotations

import errno
import os
import sys
from collections import deque
from typing import TYPE_CHECKING

import trio

from snaptun_trio import _kernel
from snaptun_trio._kernel import _portable
from snaptun_trio._kernel._interface import SocketIO
from snaptun_trio._kernel._pieces import (
    OutgoingMessage,
    Prepared,
    outgoing_messages,
    prepare,
)
from snaptun_trio._messages import TrainMessages

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from snaptun_trio import Address, PacketTrain
    from snaptun_trio._losses import ReceiveLosses
    from snaptun_trio._messages import Messages, Recipient


def error_of(number: int) -> OSError:
    """The exception for an errno; EAGAIN is a `BlockingIOError`."""
    return OSError(number, os.strerror(number))


class ScriptedWaits:
    """The waits for a scripted socket. One lasts until `wake`; none may begin with a closed one.

    Attributes:
      waiting: how many tasks wait now.
      begun: how many waits were begun.
      always_ready, always_writable: whether all waits, or those for sending, are over at once.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.begun = 0
        self.always_ready = False
        self.always_writable = False
        self._woken = trio.Event()

    async def wait(self, io: SocketIO) -> None:
        assert not io.closed, "a wait for a closed socket"
        self.begun += 1
        self.waiting += 1
        try:
            if self.always_ready:
                await trio.lowlevel.checkpoint()
            else:
                await self._woken.wait()
        finally:
            self.waiting -= 1

    async def wait_writable(self, io: SocketIO) -> None:
        if self.always_writable:
            await trio.lowlevel.checkpoint()
        else:
            await self.wait(io)

    def wake(self) -> None:
        """End the waits of all tasks that wait now."""
        self._woken.set()
        self._woken = trio.Event()


class ScriptedKernel:
    """Answers each send call with the next step of ``sends``, each receive call with ``receives``.

    A step of ``sends`` is a number, the messages that the call takes at most, or an errno as a
    negative number, or a function from the call's first message to one of the two. When the steps
    are used up, everything is taken.

    A step of ``receives`` is a list of trains or a negative errno; used up, nothing is there.

    Attributes:
      sent: every datagram that was taken, with its address.
      calls: for each send call, whether it was to segment, and the bytes of its first message.
      singles: how many times a single datagram was tried to see whether GSO is at fault.
      laid_out: how many times messages were laid out.
      losses: what the receive calls say did not come in.
      waits: who waits for the socket.
      ready: what is said of a socket's readiness; `None` asks the real one.
    """

    def __init__(self) -> None:
        self.sends: deque[int | Callable[[OutgoingMessage], int]] = deque()
        self.receives: deque[list[PacketTrain] | int] = deque()
        self.losses: ReceiveLosses | None = None
        self.sent: list[tuple[bytes, Address | None]] = []
        self.calls: list[tuple[bool, int]] = []
        self.singles = self.laid_out = 0
        self.waits = ScriptedWaits()
        self.ready: bool | None = None

    @property
    def payloads(self) -> list[bytes]:
        """The payloads of all datagrams that were taken."""
        return [payload for payload, _ in self.sent]


class ScriptedIO(SocketIO):
    """A socket of a scripted kernel."""

    backend = "scripted"
    kernel: ScriptedKernel

    @staticmethod
    def memory(buffer_size: int, capacity: int) -> _portable.Scratch:
        return _portable.Scratch(buffer_size)

    def receive(self, memory: object, offered: int, slots: int) -> TrainMessages | None:
        receives = self.kernel.receives
        step = receives.popleft() if receives else None
        if step is None or step == -errno.EAGAIN:
            return None
        if isinstance(step, int):
            raise error_of(-step)
        return TrainMessages.of_trains(tuple(step), self.kernel.losses)

    def outgoing(self, messages: Messages, address: Recipient) -> ScriptedOutgoing:
        return ScriptedOutgoing(self, prepare(messages, address, self.family))

    async def wait_readable(self) -> None:
        await self.kernel.waits.wait(self)

    async def wait_writable(self) -> None:
        await self.kernel.waits.wait_writable(self)

    def is_ready(self, *, reading: bool) -> bool:
        ready = self.kernel.ready
        return super().is_ready(reading=reading) if ready is None else ready


class ScriptedOutgoing:
    """A batch on its way to a scripted kernel. All of it is laid out, and stays so."""

    def __init__(self, io: ScriptedIO, prepared: Prepared) -> None:
        self._io = io
        self.prepared = prepared
        self.content = prepared.content
        self._how = (0, False)
        self._left: list[OutgoingMessage] = []
        self.train = self.offset = 0
        self.messages = self.datagrams = self.nbytes = self.work = 0

    @property
    def more(self) -> bool:
        return self.train < self.content.count

    @property
    def end_train(self) -> int:
        return self._left[0].end[0]

    @property
    def end_offset(self) -> int:
        return self._left[0].end[1]

    @property
    def segmented(self) -> bool:
        return self._left[0].datagrams > 1

    def send(self, fd: int, budget: int, segments: int, single: bool) -> int:
        kernel = self._io.kernel
        self.work = 0
        if not self._left or self._how != (segments, single):
            self._how = segments, single
            place = self.train, self.offset
            found = outgoing_messages(self.prepared, place, 0 if single else segments)
            self._left = [next(found)] if single else list(found)
            kernel.laid_out += not single
        first = self._left[0]
        kernel.calls.append((segments > 0 and not single, first.nbytes))
        kernel.singles += single
        step = kernel.sends.popleft() if kernel.sends else len(self._left)
        if callable(step):
            step = step(first)
        if step < 0:
            return -step
        while step and self._left and self.work < budget:
            step -= 1
            message = self._left[0]
            data = message.payload
            size = _segment_size(message) or len(data) or 1
            cuts = range(0, len(data) or 1, size)
            kernel.sent += [(data[at : at + size], message.address) for at in cuts]
            self.skip(*message.end)
            self.messages += 1
            self.datagrams += message.datagrams
            self.nbytes += message.nbytes
            self.work += 1 + (message.nbytes >> 14)
        return 0

    def place_of(self, train: int) -> int:
        order = self.prepared.order
        return train if order is None else order[train]

    def skip(self, train: int, offset: int) -> None:
        here = bool(self._left) and self._left[0].end == (train, offset)
        self._left = self._left[1:] if here else []
        self.train, self.offset = train, offset


def _segment_size(message: OutgoingMessage) -> int:
    asked = [data for level, kind, data in message.controls if (level, kind) == (17, 103)]
    return int.from_bytes(asked[0], sys.byteorder) if asked else 0


def install(monkeypatch: pytest.MonkeyPatch) -> ScriptedKernel:
    """Every sender and receiver that is made from here on is on a scripted kernel."""
    scripted = ScriptedKernel()

    class OnThisKernel(ScriptedIO):
        kernel = scripted

    monkeypatch.setattr(_kernel, "choose_backend", lambda: (OnThisKernel, "a test says so"))
    return scripted
