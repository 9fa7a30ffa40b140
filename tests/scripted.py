# A kernel that does as it is told: a backend whose every answer is written down beforehand.
#
# It stands where `pick_backend` is asked for one. Columns are cut into messages by the package's
# own `pieces`, as the portable backend does it; everything else here is a list. Waiting for the
# socket is scripted as well, because the real one below is always ready.

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

import trio

from snaptun_trio import _receiver, _sender
from snaptun_trio._batch import TrainColumns
from snaptun_trio._kernel._interface import Sent
from snaptun_trio._kernel._pieces import pieces

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from snaptun_trio import Address, PacketTrain
    from snaptun_trio._batch import Columns, Losses, Target
    from snaptun_trio._kernel._interface import Position, Socket
    from snaptun_trio._kernel._pieces import Piece
    from snaptun_trio._kernel._slab import Slab


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
      losses: what the receive calls say did not come in.
      waits: who waits for the socket.
    """

    name = "scripted"

    def __init__(self) -> None:
        self.sends: deque[int | Callable[[Piece], int]] = deque()
        self.receives: deque[list[PacketTrain] | int] = deque()
        self.losses: Losses | None = None
        self.sent: list[tuple[bytes, Address | None]] = []
        self.calls: list[tuple[bool, int]] = []
        self.singles = 0
        self.waits = ScriptedWaits()

    def receive(self, sock: Socket, slab: Slab, slots: int) -> Columns:
        step = self.receives.popleft() if self.receives else None
        if step is None:
            raise BlockingIOError
        if isinstance(step, int):
            raise error_of(-step)
        return TrainColumns.of(tuple(step), self.losses)

    def send(
        self,
        sock: Socket,
        columns: Columns,
        target: Target,
        position: Position,
        gso: bool,
        most: int,
    ) -> Sent:
        messages = list(pieces(columns, target, position, int(sock.family), gso))
        return self._take(messages, position, gso)

    def send_single(
        self, sock: Socket, columns: Columns, target: Target, position: Position
    ) -> Sent:
        self.singles += 1
        messages = list(pieces(columns, target, position, int(sock.family), gso=False))
        return self._take(messages[:1], position, gso=False)

    def _take(self, messages: list[Piece], position: Position, gso: bool) -> Sent:
        first = messages[0]
        self.calls.append((gso, first.nbytes))
        step = self.sends.popleft() if self.sends else len(messages)
        if callable(step):
            step = step(first)
        if step < 0:
            error = error_of(-step)
            return Sent(position, 0, 0, 0, error, first.end, first.datagrams > 1)
        taken = messages[:step]
        for piece in taken:
            data = bytes(piece.train.data)[piece.start : piece.start + piece.nbytes]
            size = piece.train.segment_size or 1
            cuts = range(0, len(data) or 1, size)
            self.sent += [(data[at : at + size], piece.address) for at in cuts]
        return Sent(
            taken[-1].end,
            len(taken),
            sum(piece.datagrams for piece in taken),
            sum(piece.nbytes for piece in taken),
        )

    @property
    def payloads(self) -> list[bytes]:
        """The payloads of all datagrams that were taken."""
        return [payload for payload, _ in self.sent]


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
