# A kernel that does as it is told: a backend whose every answer is written down beforehand.
#
# It stands where `pick_backend` is asked for one. Columns are cut into messages by the package's
# own `pieces`, as the portable backend does it; everything else here is a list. Waiting for the
# socket is scripted as well, because the real one below is always ready.

from __future__ import annotations

import errno
import os
import sys
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

import trio

from snaptun_trio import _receiver, _sender
from snaptun_trio._batch import TrainColumns
from snaptun_trio._kernel import _portable
from snaptun_trio._kernel._pieces import OutgoingMessage, outgoing_messages

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from snaptun_trio import Address, PacketTrain
    from snaptun_trio._batch import Columns, Losses, Target
    from snaptun_trio._kernel._interface import Laid, Socket


def error_of(number: int) -> OSError:
    """The exception for an errno; EAGAIN is a `BlockingIOError`."""
    return OSError(number, os.strerror(number))


class ScriptedWaits:
    """Stands for `trio.lowlevel.wait_readable` and `wait_writable`.

    A wait lasts until `wake`. No wait may begin with a closed socket.

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

    async def wait(self, sock: Socket) -> None:
        assert sock.fileno() >= 0, "a wait for a closed socket"
        self.begun += 1
        self.waiting += 1
        try:
            if self.always_ready:
                await trio.lowlevel.checkpoint()
            else:
                await self._woken.wait()
        finally:
            self.waiting -= 1

    async def wait_writable(self, sock: Socket) -> None:
        if self.always_writable:
            await trio.lowlevel.checkpoint()
        else:
            await self.wait(sock)

    def wake(self) -> None:
        """End the waits of all tasks that wait now."""
        self._woken.set()
        self._woken = trio.Event()


class ScriptedBackend:
    """Answers each send call with the next step of ``sends``, each receive call with ``receives``.

    A step of ``sends`` is a number, the messages that the call takes at most, or an errno as a
    negative number, or a function from the call's first message to one of the two. When the steps
    are used up, everything is taken.

    A step of ``receives`` is a list of trains or a negative errno; used up, nothing is there.

    Attributes:
      sent: every datagram that was taken, with its address.
      calls: for each send call, whether it was to segment, and the bytes of its first message.
      singles: how many times a single datagram was tried to see whether GSO is at fault.
      prepared: how many times messages were laid out.
      losses: what the receive calls say did not come in.
      waits: who waits for the socket.
    """

    name = "scripted"

    def __init__(self) -> None:
        self.sends: deque[int | Callable[[OutgoingMessage], int]] = deque()
        self.receives: deque[list[PacketTrain] | int] = deque()
        self.losses: Losses | None = None
        self.sent: list[tuple[bytes, Address | None]] = []
        self.calls: list[tuple[bool, int]] = []
        self.singles = self.prepared = 0
        self.waits = ScriptedWaits()

    def memory(self, buffer_size: int, capacity: int) -> _portable.Scratch:
        return _portable.Scratch(buffer_size)

    def receive(
        self, sock: Socket, memory: object, offered: int, slots: int
    ) -> TrainColumns | None:
        step = self.receives.popleft() if self.receives else None
        if step is None or step == -errno.EAGAIN:
            return None
        if isinstance(step, int):
            raise error_of(-step)
        return TrainColumns.of(tuple(step), self.losses)

    def lay_out(self, columns: Columns, target: Target, family: int) -> Laid:
        return _portable.PortableBackend().lay_out(columns, target, family)

    def prepare(
        self, sock: Socket, laid: Laid, train: int, offset: int, *, gso: bool, single: bool
    ) -> ScriptedTransmission:
        family = int(sock.family)
        found = outgoing_messages(
            laid.columns, laid.name, train, offset, family, gso and not single
        )
        messages = list(islice(found, 1)) if single else list(found)
        self.prepared += not single
        return ScriptedTransmission(self, messages, (train, offset), gso, single=single)

    @property
    def payloads(self) -> list[bytes]:
        """The payloads of all datagrams that were taken."""
        return [payload for payload, _ in self.sent]


class ScriptedTransmission:
    """What one turn of sending hands to a scripted kernel."""

    def __init__(
        self,
        backend: ScriptedBackend,
        messages: list[OutgoingMessage],
        start: tuple[int, int],
        gso: bool,
        *,
        single: bool,
    ) -> None:
        self._backend = backend
        self._left = messages
        self.train, self.offset = start
        self.messages = self.datagrams = self.nbytes = 0
        self._gso = gso
        self._single = single

    @property
    def more(self) -> bool:
        return bool(self._left)

    @property
    def end_train(self) -> int:
        return self._left[0].end[0]

    @property
    def end_offset(self) -> int:
        return self._left[0].end[1]

    @property
    def segmented(self) -> bool:
        return self._left[0].datagrams > 1

    def send(self, fd: int, most: int) -> int:
        self.messages = self.datagrams = self.nbytes = 0
        backend, first = self._backend, self._left[0]
        backend.calls.append((self._gso and not self._single, first.nbytes))
        backend.singles += self._single
        step = backend.sends.popleft() if backend.sends else len(self._left)
        if callable(step):
            step = step(first)
        if step < 0:
            return -step
        for message in self._left[: min(step, most)]:
            data = message.payload
            size = _segment_size(message) or len(data) or 1
            cuts = range(0, len(data) or 1, size)
            backend.sent += [(data[at : at + size], message.address) for at in cuts]
            self.messages += 1
            self.datagrams += message.datagrams
            self.nbytes += message.nbytes
            self.skip()
        return 0

    def skip(self) -> None:
        self.train, self.offset = self._left.pop(0).end

    def close(self) -> None:
        self._left = []


def _segment_size(message: OutgoingMessage) -> int:
    asked = [data for level, kind, data in message.controls if (level, kind) == (17, 103)]
    return int.from_bytes(asked[0], sys.byteorder) if asked else 0


def install_backend(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    """Give every sender and receiver that is made from here on a scripted backend."""
    backend = ScriptedBackend()
    for module in (_sender, _receiver):
        monkeypatch.setattr(module, "pick_backend", lambda: backend)
    return backend


def install(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    """The same, and script the waits for the socket as well."""
    backend = install_backend(monkeypatch)
    monkeypatch.setattr(trio.lowlevel, "wait_readable", backend.waits.wait)
    monkeypatch.setattr(trio.lowlevel, "wait_writable", backend.waits.wait_writable)
    return backend
