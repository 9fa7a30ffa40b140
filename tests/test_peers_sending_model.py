# Several tasks on the channels of one server, each sending in every way: whatever the socket says
# and whoever is cancelled or closed, nothing goes twice, each channel counts what it sent, each
# task keeps its order and learns of its own refusals and of no other's, and none waits for ever.
#
# Nothing waits for time: the socket is full until it is woken, every few turns of the scheduler,
# and a task that nobody wakes any more is seen by the number of turns.

from __future__ import annotations

import contextlib
import errno
import itertools
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, TypeAlias

import trio
from hypothesis import example, given, strategies as st

from snaptun_trio import PacketBatch, SendBatchError, UdpChannel
from snaptun_trio.testing import ScriptedSocket

from . import serving
from .test_sender import check_law

if TYPE_CHECKING:
    from snaptun_trio import Address, UdpServer

PEERS = 4
BAD = PEERS - 1  # whatever is for this one is refused
MOST_BYTES = 2500  # what is longer is refused
MOST_TURNS = 5000
CALLS = ["send_packet", "send_packets", "of a generator", "send", "nowait"]

Step: TypeAlias = tuple[str, int, list[int]]  # the call, the peer, and the sizes of the packets

steps = st.tuples(
    st.sampled_from(CALLS),
    st.integers(0, PEERS - 1),
    st.lists(st.sampled_from([4, 4, 40, 1200, 3000]), min_size=1, max_size=22),
)
turns = st.integers(0, 40)


def refused(packet: bytes, number: int) -> bool:
    return number == BAD or len(packet) > MOST_BYTES


class Model:
    """The tasks, and what each was told."""

    def __init__(self, server: UdpServer, sock: ScriptedSocket) -> None:
        self.sender = server._sender
        self.sock = sock
        self.channels = [self.channel_of(server, serving.peer(n)) for n in range(PEERS)]
        self.names = itertools.count()
        self.order: defaultdict[tuple[int, int], list[bytes]] = defaultdict(list)
        self.sent: Counter[int] = Counter()
        self.untold: Counter[int] = Counter()  # refused, of what nobody waited for
        self.turned_away: set[bytes] = set()  # there was no room, and nobody waited for it
        self.cut_short: set[int] = set()  # peers to whom some of a send may have gone uncounted
        self.running = 0

    @staticmethod
    def channel_of(server: UdpServer, address: Address) -> UdpChannel:
        (channel,) = (channel for channel in server.peers if channel.address == address)
        return channel

    async def task(self, number: int, steps: list[Step], scope: trio.CancelScope) -> None:
        try:
            with scope:
                for call, peer, sizes in steps:
                    few = sizes[:1] if call == "send_packet" else sizes
                    packets = [next(self.names).to_bytes(4, "big").ljust(n, b".") for n in few]
                    self.order[number, peer] += packets
                    await self.step(call, peer, packets)
        finally:
            self.running -= 1

    async def step(self, call: str, peer: int, packets: list[bytes]) -> None:
        expected = [packet for packet in packets if refused(packet, peer)]
        told: list[bytes] = []
        if call == "nowait":
            self.step_nowait(peer, packets, len(expected))
            return
        try:
            await self.call(call, self.channels[peer], packets)
        except SendBatchError as error:
            told = [packet for failure in error.failures for packet in failure.train]
        except trio.ClosedResourceError:
            self.cut_short.add(peer)
            return
        except OSError as error:
            if error.errno == (errno.EPERM if peer == BAD else errno.EMSGSIZE):
                told = packets
        except trio.Cancelled:
            self.cut_short.add(peer)
            raise
        assert told == expected, "not told, or of another's refusal"
        self.sent[peer] += len(packets) - len(told)

    def step_nowait(self, peer: int, packets: list[bytes], refused: int) -> None:
        try:
            self.channels[peer].send_packets_nowait(packets)
        except (trio.WouldBlock, trio.ClosedResourceError):
            self.turned_away.update(packets)
        else:
            self.sent[peer] += len(packets)
            self.untold[peer] += refused

    async def call(self, call: str, channel: UdpChannel, packets: list[bytes]) -> None:
        match call:
            case "send_packet":
                await channel.send_packet(packets[0])
            case "send_packets":
                await channel.send_packets(packets)
            case "of a generator":
                await channel.send_packets(bytearray(packet) for packet in packets)
            case "send":
                await channel.send(PacketBatch.pack((packet, None) for packet in packets))

    def check(self) -> None:
        check_law(self.sender)
        assert self.sender.statistics().datagrams_sent == len(self.sock.sent)

    def check_end(self) -> None:
        self.check()
        assert self.sender.is_empty
        for peer, channel in enumerate(self.channels):
            arrived = [packet for packet, to in self.sock.sent if to == serving.peer(peer)]
            assert len(set(arrived)) == len(arrived), "sent twice"
            counted = channel.statistics().datagrams_sent
            if peer in self.cut_short:
                assert self.sent[peer] <= counted <= len(arrived) + self.untold[peer]
            else:
                assert self.sent[peer] == counted == len(arrived) + self.untold[peer]
            for number in {number for number, to in self.order if to == peer}:
                mine = [packet for packet in self.order[number, peer] if not refused(packet, peer)]
                assert self.turned_away.isdisjoint(arrived), "sent, and said that it was not"
                mine = [packet for packet in mine if packet not in self.turned_away]
                found = [packet for packet in arrived if packet in mine]
                wanted = [packet for packet in mine if packet in found]
                assert found == (wanted if peer in self.cut_short else mine)


@given(
    tasks=st.lists(st.lists(steps, min_size=1, max_size=5), min_size=1, max_size=5),
    full=st.lists(st.booleans(), max_size=60),
    cancelled=st.dictionaries(st.integers(0, 4), turns, max_size=3),
    closed_at=st.none() | turns,
    queue=st.sampled_from([1, 5, 30, 1024]),
)
@example(  # the server's own task still waits for the socket when the others are gone
    tasks=[[("nowait", 0, [4]), ("send_packet", 0, [4])]],
    full=[True] * 9,
    cancelled={0: 3},
    closed_at=None,
    queue=1024,
)
def test_whatever_is_sent_is_sent_once_counted_and_in_order(
    tasks: list[list[Step]],
    full: list[bool],
    cancelled: dict[int, int],
    closed_at: int | None,
    queue: int,
) -> None:
    answers = iter(full)

    def answer(packets: list[bytes], address: Address | None) -> int:
        if next(answers, False):
            return errno.EAGAIN
        if address == serving.peer(BAD):
            return errno.EPERM
        return errno.EMSGSIZE if max(map(len, packets)) > MOST_BYTES else 0

    async def main() -> None:
        sock = ScriptedSocket()
        async with serving.server(port=sock) as served:
            await served.feed(*((b"hello", serving.peer(n)) for n in range(PEERS)))
            sock.answer = answer
            model = Model(served.server, sock)
            model.sender._shared._most = queue
            scopes = [trio.CancelScope() for _ in tasks]
            model.running = len(tasks)
            for number, (steps, scope) in enumerate(zip(tasks, scopes)):
                served.nursery.start_soon(model.task, number, steps, scope)
            for turn in range(MOST_TURNS):
                if not model.running:
                    break
                for number, scope in enumerate(scopes):
                    if cancelled.get(number) == turn:
                        scope.cancel()
                if turn == closed_at:
                    model.channels[0].close()
                if turn % 5 == 0:
                    sock.wake()
                await trio.lowlevel.checkpoint()
                model.check()
                served.statistics()
            assert not model.running, "a task waits for ever"
            for _ in answers:
                pass  # it is not full any more
            sock.wake()  # so that the server's own task sees it, which may wait for the socket
            with contextlib.suppress(SendBatchError):  # of those that were cancelled
                await model.sender.flush()
            model.check_end()

    trio.run(main)
