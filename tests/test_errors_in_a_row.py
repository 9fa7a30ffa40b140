# Errors that are about something else than the datagram they meet: however many there are, no
# datagram waits or is refused for them, and each of them is counted.

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import PacketBatch, PacketTrain, SendBatchError, UdpBatchReceiver, UdpBatchSender

from . import ends, scripted
from .faults import interposer, sockets

if TYPE_CHECKING:
    from snaptun_trio import Address

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")

MANY = 40
"""More than a waiting task takes for a sign of a socket that is ready for ever."""


# -- receiving


@linux_only
def test_a_pending_error_does_not_hide_what_is_queued(backend: str, udp: ends.MakeSocket) -> None:
    """An ICMP answer and a datagram wait together; one call is enough for both."""
    sock, peer = udp(), udp()
    receiver = UdpBatchReceiver(sock)
    address = ends.address_of(peer)
    sock.connect(address)
    peer.sendto(b"the last words", ends.address_of(sock))
    peer.close()
    ends.wait_until_readable(sock)
    sock.send(b"nobody hears it")
    assert [packet for packet, _ in receiver.receive_nowait()] == [b"the last words"]
    assert receiver.statistics().asynchronous_errors == {errno.ECONNREFUSED: 1}


@linux_only
async def test_an_error_queue_is_emptied_in_one_go(
    backend: str, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """An entry left in it wakes the next wait at once, and the one after that."""
    waits = 0
    real = trio.lowlevel.wait_readable

    async def counted(sock: trio.socket.SocketType) -> None:
        nonlocal waits
        waits += 1
        await real(sock)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", counted)
    sock, peer = sockets.with_error_queue(udp()), udp()
    nobody: list[Address] = []
    for _ in range(MANY):
        with ends.bound_socket() as dead:
            nobody.append(ends.address_of(dead))
    for address in nobody:
        while True:
            try:
                sock.sendto(b"x", address)
            except ConnectionRefusedError:
                continue  # about the one before
            break
    receiver = UdpBatchReceiver(sock)
    received: list[PacketBatch] = []

    async def receive() -> None:
        received.append(await receiver.receive())

    nursery.start_soon(receive)
    with trio.fail_after(ends.PATIENCE):
        await trio.testing.wait_all_tasks_blocked()
        assert waits <= 3
        counted_errors = receiver.statistics().asynchronous_errors
        assert counted_errors[errno.ECONNREFUSED] >= MANY
        peer.sendto(b"hello", ends.address_of(sock))
        while not received:
            await trio.testing.wait_all_tasks_blocked()
    assert list(received[0]) == [(b"hello", ends.address_of(peer))]


# -- sending


def singles(target: Address, *packets: bytes) -> PacketBatch:
    """A batch of datagrams that make no train: each is longer than the one before."""
    return PacketBatch([PacketTrain(packet, len(packet), target) for packet in packets])


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOBUFS, errno.ENETUNREACH])
def test_an_error_that_passes_refuses_nothing_and_is_counted(
    backend: str, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    interposer.Interposer(monkeypatch, interposer.from_script(iter([number])))
    with ends.make_pair(udp(), udp()) as pair:
        pair.sender.send_nowait(singles(pair.target, b"a", b"bb"))
        ends.expect_only(pair, [b"a", b"bb"])
        assert pair.sender.statistics().asynchronous_errors == {number: 1}
        assert pair.sender.statistics().failures == {}


def test_errors_about_earlier_datagrams_are_counted_beside_a_refusal(
    backend: str, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ICMP answers come first, then the kernel says what it has against this one."""
    pending = [errno.ECONNREFUSED] * 2

    def verdict(message: interposer.Message) -> int:
        return (pending.pop() if pending else errno.EACCES) if message.payload == b"a" else 0

    interposer.Interposer(monkeypatch, verdict)
    with ends.make_pair(udp(), udp()) as pair:
        with pytest.raises(SendBatchError) as caught:
            pair.sender.send_nowait(singles(pair.target, b"a", b"bb", b"ccc"))
        assert [failure.error.errno for failure in caught.value.failures] == [errno.EACCES]
        ends.expect_only(pair, [b"bb", b"ccc"])
        statistics = pair.sender.statistics()
        assert statistics.failures == {errno.EACCES: 1}
        assert statistics.asynchronous_errors == {errno.ECONNREFUSED: 2}


@pytest.mark.parametrize("count", [1, 2, 10, 40])
def test_a_storm_of_icmp_answers_refuses_nothing_and_is_counted(
    backend: str, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    interposer.Interposer(monkeypatch, interposer.from_script(iter([errno.ECONNREFUSED] * count)))
    with ends.make_pair(udp(), udp()) as pair:
        pair.sender.send_nowait(singles(pair.target, b"a", b"bb", b"ccc"))
        ends.expect_only(pair, [b"a", b"bb", b"ccc"])
        assert pair.sender.statistics().asynchronous_errors == {errno.ECONNREFUSED: count}


def test_after_a_refusal_the_calls_become_long_again(
    linux_backend: None, udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One refused datagram of 500 must not make a system call of each that comes behind it."""
    packets = [b"%04d" % number + bytes(number) for number in range(500)]
    refused = packets[100]
    shim = interposer.Interposer(
        monkeypatch, lambda message: errno.EACCES if message.payload == refused else 0
    )
    with ends.make_pair(udp(), udp()) as pair:
        with pytest.raises(SendBatchError) as caught:
            pair.sender.send_nowait(singles(pair.target, *packets))
        assert [list(failure.train) for failure in caught.value.failures] == [[refused]]
        ends.expect_only(pair, [packet for packet in packets if packet != refused])
    assert shim.calls <= 16, "the calls double from one message on: 9 for 400, and what led there"


@pytest.mark.parametrize("errors", [1, 3])
def test_errors_that_a_batch_meets_before_it_is_turned_away_are_counted(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket, errors: int
) -> None:
    """The kernel tells of each once, and the batch that it was told at is gone."""
    sender = UdpBatchSender(udp())
    kernel.sends += [*[-errno.ECONNREFUSED] * errors, -errno.EAGAIN]
    with pytest.raises(trio.WouldBlock):
        sender.send_nowait(singles(("127.0.0.1", 9), b"packet"))
    assert sender.statistics().asynchronous_errors == {errno.ECONNREFUSED: errors}
    assert sender.is_empty
    sender.send_nowait(singles(("127.0.0.1", 9), b"packet"))
    assert sender.statistics().asynchronous_errors == {errno.ECONNREFUSED: errors}
    assert kernel.payloads == [b"packet"]
