# What a server answers at once: datagrams that a plain function settles, without a peer's task.
#
# The function is the program's own, and is asked about one datagram after the other. What it
# returns is kept for the sender's queue, and what it leaves goes on as if there were no function.
# This file must not know peers, nor when something is sent.

from __future__ import annotations

from itertools import starmap
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import trio

from ._batch import PacketBatch, chosen, messages_of
from ._submitted import payload_of, payloads_returned
from ._way_back import way_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ._gathering import Item
    from ._sender import UdpBatchSender
    from ._train import Address, Packet, Way

    Returned: TypeAlias = Packet | Iterable[Packet] | None
    Answer: TypeAlias = Callable[[bytes, Address], Returned]
    # One packet, several, or nothing at all, which leaves the datagram to a handler.
    _Answered: TypeAlias = bytes | Sequence[bytes] | None
    AskAbout: TypeAlias = Callable[[Exception, Address, Way | None], object]

_NOTHING: Final = PacketBatch[Any](())


class Settled(NamedTuple):
    """What became of a batch."""

    answers: list[Item]
    """As the sender's queue has them."""
    failed: int
    """The datagrams at which the function raised."""
    left: PacketBatch[Address]
    """What is left for handlers."""


class Answers:
    """The function of one server.

    Args:
      answer: see `serve_udp`.
      sender: what the answers are to leave by.
      ask_about: is told what the function raises, of whose datagram, and how an answer to it would
        leave. It raises that where the server is to end.
    """

    def __init__(self, answer: Answer, sender: UdpBatchSender, ask_about: AskAbout) -> None:
        self._answer = answer
        self._sender = sender
        self._ask_about = ask_about

    def settle(self, came: PacketBatch[Address]) -> Settled:
        """Ask about all that came. It counts nothing, and what raises has changed nothing."""
        datagrams, ways = came.packets(), _ways_back(came)
        returned, failed = self._ask_all(datagrams, ways)
        left = [place for place, one in enumerate(returned) if one is None]
        if len(left) == len(returned):
            return Settled([], failed, came)
        items: list[Item] = []
        name_of = self._sender._queue.name
        for one, (_, address), way in zip(returned, datagrams, ways):
            if isinstance(one, bytes):
                items.append((one, len(one), address, name_of(address), way))
            elif one:
                name = name_of(address)
                items += [(packet, len(packet), address, name, way) for packet in one]
        return Settled(items, failed, chosen(came, left) if left else _NOTHING)

    def _ask_all(
        self, datagrams: list[tuple[bytes, Address]], ways: list[Way | None]
    ) -> tuple[list[_Answered], int]:
        """What is answered to each datagram, and how often the function raised instead."""
        asked_about = iter(datagrams)
        calls = starmap(self._answer, asked_about)
        answered: list[_Answered] = []
        failed = 0
        while True:
            try:
                _take(calls, self._sender.max_packet_size, answered)
                if len(answered) == len(datagrams):
                    return answered, failed
                raise RuntimeError("answer raised StopIteration")  # see PEP 479
            except Exception as error:
                place = len(answered)
                if place == len(datagrams) - length_hint(asked_about):
                    raise  # it was asked nothing: there is no memory to ask with
                answered.append(())
                failed += 1
                self._ask_about(error, datagrams[place][1], ways[place])


def _ways_back(came: PacketBatch[Address]) -> list[Way | None]:
    """How an answer to each datagram leaves."""
    messages = messages_of(came)[0]
    if messages.one_way:
        return [messages.way_back()] * messages.datagrams
    return [
        way_back(train.local_address, train.interface_index)
        for train in came.trains
        for _ in range(len(train))
    ]


@trio.lowlevel.disable_ki_protection
def _take(calls: Iterator[Returned], most: int, answered: list[_Answered]) -> None:
    """Call the function again and again. It is the program's, and so is an iterable of packets:
    Control-C interrupts them."""
    for returned in calls:
        if returned is None or (type(returned) is bytes and len(returned) <= most):
            answered.append(returned)
        else:
            answered.append(_packets(returned, most))


def _packets(returned: Packet | Iterable[Packet], most: int) -> list[bytes]:
    """The packets of an answer, copied: the program may change what it returned."""
    if isinstance(returned, bytes | bytearray | memoryview):
        packets = [bytes(returned)]
    elif isinstance(returned, PacketBatch):  # whose items are packets with addresses
        raise TypeError("answer returns a packet, several packets or None, not a PacketBatch")
    else:
        packets = payloads_returned("answer", returned, "a packet, several packets or None")
    for packet in packets:
        payload_of(packet, None, most)
    return packets
