# A fan: one socket on one side, and on the other many that are connected, each for one peer of it.
#
# What comes in by the many is for their peers, and leaves by the one together; what the peers send
# leaves by the many, each by its own. To have a call of Python for each socket costs more than the
# system calls, so a backend may do all of them in one go. What an errno means is not decided here.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .._messages import TrainMessages
from .._train import make_train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._messages import Messages
    from .._train import Address, PacketTrain, Way
    from ._interface import SocketIO
    from ._outgoing import Memory, Outgoing

# What each of the many is offered, in messages, where they are read one by one.
_OFFERED = 16


class Link:
    """One of the many sockets, and its peer.

    Attributes:
      io: the socket.
      address: the peer, on the side of the one socket.
      handle, name, control: the same as the backend wants to be told of them.
    """

    __slots__ = ("address", "control", "handle", "io", "name")

    handle: Any
    name: Any
    control: Any

    def __init__(self, io: SocketIO, address: Address) -> None:
        self.io = io
        self.address = address


class Received(NamedTuple):
    """What came in by some of the many."""

    messages: Messages
    """Each for the peer of the link that it came by."""
    served: int
    """How many of the links that were given were read: the others have not had their turn."""
    error: int
    """What the last of these met, behind what it gave or instead; 0 for nothing."""


class Sent(NamedTuple):
    """What left by the many."""

    calls: int
    messages: int
    datagrams: int
    nbytes: int
    rest: list[tuple[int, int, Outgoing]]
    """What was not taken whole: its place, the errno of what was refused or 0, and the rest."""


class Fan:
    """Moves datagrams between one socket and many, one call of Python for each.

    Args:
      front: the one.
      memory: what is received into.
      gro: whether the many are to receive trains.
      gso: whether the kernel is to segment trains that leave by the many, if it can.

    Attributes:
      gso: whether it does. Where it shows that it cannot, whoever sees that says so here.
    """

    def __init__(self, front: SocketIO, memory: Memory, *, gro: bool, gso: bool) -> None:
        self._front = front
        self._memory = memory
        self._gro = gro
        self.gso = gso

    def prepare(self, link: Link, way: Way | None) -> None:
        """Make a link ready, and say how what comes by it leaves by the one socket.

        Raises:
          OSError, ValueError: the socket is not fit.
        """
        if self._gro:
            link.io.enable_gro()
        link.io.prepare_for_sending(gso=self.gso)
        self.gso = link.io.gso  # one speaks for all: they are made alike
        self._tell(link, way)

    def _tell(self, link: Link, way: Way | None) -> None:
        link.handle, link.name, link.control = link.io, link.address, way

    def receive(self, links: Sequence[Link]) -> Received:
        """Receive what is queued for some of the many, about as much for each."""
        trains: list[PacketTrain] = []
        served = error = 0
        for link in links:
            served += 1
            try:
                messages = link.io.receive(self._memory, _OFFERED, _OFFERED)
            except OSError as failure:
                error = failure.errno or 0
                break
            if messages is None:
                continue
            _, host, interface = link.control or (None, None, None)
            for train in messages.trains():
                size = train.segment_size
                trains.append(make_train(train.data, size, link.name, None, host, interface))
            if messages.losses is not None and messages.losses.error is not None:
                error = messages.losses.error.errno or 0  # it came behind them
                break
        return Received(TrainMessages.of_trains(tuple(trains)), served, error)

    def send(self, links: Sequence[Link], batches: list[Messages], budget: int) -> Sent:
        """Send each batch by its link, with a ``budget`` of work each as for `SocketIO.send`.

        Where memory lacks in the middle it may end there: calls and rest are fewer than links then.
        """
        calls = sent = datagrams = nbytes = 0
        rest = []
        for place, (link, messages) in enumerate(zip(links, batches)):
            link.io.gso = self.gso
            outgoing = link.io.outgoing(messages, None)
            error = link.io.send(outgoing, budget) if outgoing.more else 0
            if error or outgoing.more:
                rest.append((place, error, outgoing))
                continue
            calls += 1
            sent += outgoing.messages
            datagrams += outgoing.datagrams
            nbytes += outgoing.nbytes
        return Sent(calls, sent, datagrams, nbytes, rest)
