# What belongs to two peers stays apart, however alike it looks: equal trains that came in one after
# the other, and equal single datagrams that came in between each other.

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from snaptun_trio import PacketBatch, PacketTrain, UdpBatchReceiver, UdpBatchSender

from . import ends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from snaptun_trio import Address

PEERS = 3


class Crowd:
    """Peers that send to one socket, and a receiver and a sender on that socket."""

    def __init__(self, udp: ends.MakeSocket, host: str, gso: bool) -> None:
        self.hub = udp(host)
        self.receiver = UdpBatchReceiver(self.hub)
        self.sender = UdpBatchSender(self.hub, gso=gso)
        self.peers = [udp(host) for _ in range(PEERS)]
        self.addresses = [ends.address_of(peer) for peer in self.peers]

    def send_trains(self, segments: int) -> dict[Address, list[bytes]]:
        """Each peer sends a train of the same shape. Returns what each of them sent."""
        sent: dict[Address, list[bytes]] = {}
        for number, (sock, address) in enumerate(zip(self.peers, self.addresses)):
            sent[address] = ends.numbered(segments, 100, start=1000 * number)
            with UdpBatchSender(sock) as sender:
                sender.send_nowait(ends.batch_of(sent[address], ends.address_of(self.hub)))
        return sent

    def send_singles(self, each: int, first: int) -> dict[Address, list[bytes]]:
        """The peers send equal datagrams in turn. Returns what each of them sent."""
        sent: dict[Address, list[bytes]] = {address: [] for address in self.addresses}
        for number in range(each):
            for index, (sock, address) in enumerate(zip(self.peers, self.addresses)):
                (packet,) = ends.numbered(1, 100, start=first + 1000 * index + number)
                sock.sendto(packet, ends.address_of(self.hub))
                sent[address].append(packet)
        return sent

    def check_answers(self, sent: dict[Address, list[bytes]]) -> None:
        """Each peer got back what it had sent, and nothing of another's."""
        for sock, address in zip(self.peers, self.addresses):
            assert ends.read_plainly(sock, len(sent[address])) == sent[address]


@pytest.fixture(params=["127.0.0.1", "::1"])
def host(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=[True, False], ids=["gso", "no gso"])
def crowd(
    request: pytest.FixtureRequest, backend: str, udp: ends.MakeSocket, host: str
) -> Iterator[Crowd]:
    with contextlib.ExitStack() as stack:
        made = Crowd(udp, host, request.param)
        stack.enter_context(made.receiver)
        stack.enter_context(made.sender)
        yield made


def by_address(batches: list[PacketBatch]) -> dict[Address | None, list[bytes]]:
    """What came from each peer, as the trains tell it."""
    found: dict[Address | None, list[bytes]] = {}
    for batch in batches:
        for train in batch.trains:
            found.setdefault(train.address, []).extend(train)
    return found


@pytest.mark.parametrize("segments", [1, 2, 10])
def test_equal_trains_of_several_peers_go_back_to_who_sent_them(
    crowd: Crowd, segments: int
) -> None:
    sent = crowd.send_trains(segments)
    for batch in ends.collect_batches(crowd.receiver, PEERS * segments):
        crowd.sender.send_nowait(batch)
    crowd.check_answers(sent)


@pytest.mark.parametrize("segments", [1, 2, 10])
def test_the_same_holds_for_trains_that_were_looked_at(crowd: Crowd, segments: int) -> None:
    sent = crowd.send_trains(segments)
    trains: list[PacketTrain] = ends.collect_trains(crowd.receiver, PEERS * segments)
    crowd.sender.send_nowait(PacketBatch(trains))
    crowd.check_answers(sent)


def test_equal_datagrams_of_several_peers_go_back_to_who_sent_them(crowd: Crowd) -> None:
    """Round after round, because a receiver learns from one call how it makes the next."""
    for round_ in range(4):
        sent = crowd.send_singles(each=16, first=100_000 * round_)
        for batch in ends.collect_batches(crowd.receiver, PEERS * 16):
            crowd.sender.send_nowait(batch)
        crowd.check_answers(sent)


def test_equal_datagrams_of_several_peers_are_told_with_who_sent_them(crowd: Crowd) -> None:
    for round_ in range(4):
        sent = crowd.send_singles(each=16, first=100_000 * round_)
        batches = ends.collect_batches(crowd.receiver, PEERS * 16)
        assert by_address(batches) == sent
        pairs = [pair for batch in batches for pair in batch]
        assert {a: [p for p, source in pairs if source == a] for a in sent} == sent


@pytest.mark.needs_gso
@pytest.mark.parametrize(
    ("trains", "segments", "messages"), [(8, 10, 2), (30, 1, 1), (3, 20, 1), (2, 2, 1)]
)
def test_what_one_peer_sent_goes_back_to_it_in_few_messages(
    linux_backend: None,
    udp: ends.MakeSocket,
    host: str,
    trains: int,
    segments: int,
    messages: int,
) -> None:
    """That they are kept apart must not mean that nothing goes together."""
    hub, peer = udp(host), udp(host)
    with UdpBatchReceiver(hub) as receiver, UdpBatchSender(peer, gso=segments > 1) as source:
        sent = ends.numbered(trains * segments, 100)
        for at in range(0, len(sent), segments):
            source.send_nowait(ends.batch_of(sent[at : at + segments], ends.address_of(hub)))
        batches = ends.collect_batches(receiver, len(sent))
        with UdpBatchSender(hub) as sender:
            for batch in batches:
                sender.send_nowait(batch)
            assert sender.statistics().trains_sent <= messages + len(batches) - 1
        assert ends.read_plainly(peer, len(sent)) == sent
