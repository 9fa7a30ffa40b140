# The portable backend where a platform has no recvmsg and sendmsg, as Windows has none.

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import (
    PacketBufPool,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
)
from snaptun_trio._kernel import _interface, _portable

from . import ends

if TYPE_CHECKING:
    from snaptun_trio._kernel._pieces import OutgoingMessage


@pytest.fixture(autouse=True)
def plain_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but sendto and recvfrom_into, and no offloads."""
    monkeypatch.setenv("SNAPTUN_TRIO_BACKEND", "portable")
    monkeypatch.setattr(_portable, "_HAS_MSG", False)
    monkeypatch.setattr(_interface, "_LINUX", False)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_datagrams_come_and_go(udp: ends.MakeSocket, host: str) -> None:
    with ends.make_pair(udp(host), udp(host)) as pair:
        packets = [*ends.numbered(100, 50), b"", b"tail"]
        pair.sender.send_nowait(ends.batch_of(packets, pair.target))
        assert ends.collect(pair.receiver, 102) == [(packet, pair.source) for packet in packets]


def test_the_connected_peer(udp: ends.MakeSocket) -> None:
    outgoing, incoming = udp(), udp()
    outgoing.connect(incoming.getsockname())
    UdpBatchSender(outgoing).send_nowait(ends.batch_of([b"a", b"b"], None))
    assert ends.read_plainly(incoming, 2) == [b"a", b"b"]


def test_a_refused_datagram_does_not_hold_up_the_others(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ends.make_pair(udp(), udp()) as pair:
        monkeypatch.setattr(_portable, "_send_message", _refusing(_portable._send_message))
        with pytest.raises(SendBatchError) as report:
            pair.sender.send_nowait(ends.batch_of([b"a", b"bad!", b"c"], pair.target))
        assert [list(failure.train) for failure in report.value.failures] == [[b"bad!"]]
        ends.expect_only(pair, [b"a", b"c"])


def _refusing(real: object) -> object:
    def send(plain: socket.socket, message: OutgoingMessage) -> None:
        if message.payload.startswith(b"bad"):
            raise OSError(errno.EMSGSIZE, "too long")
        real(plain, message)  # type: ignore[operator]

    return send


def test_a_datagram_that_windows_cuts_is_delivered_cut(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WindowsSocket(socket.socket):
        def recvfrom_into(self, *arguments: object) -> object:  # type: ignore[override]
            got = super().recvfrom_into(*arguments)  # type: ignore[arg-type]
            if got[0] == 10:
                error = OSError("a message was larger than the buffer")
                error.winerror = 10040  # type: ignore[attr-defined]
                raise error
            return got

    sock = WindowsSocket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        receiver = UdpBatchReceiver(sock, PacketBufPool(10), gro=False)
        with ends.bound_socket() as outgoing:
            outgoing.sendto(b"0123456789abc", sock.getsockname())
            outgoing.sendto(b"short", sock.getsockname())
        batches = ends.collect_batches(receiver, 2)
        assert [packet for batch in batches for packet, _ in batch] == [b"0123456789", b"short"]
        assert sum(batch.truncated for batch in batches) == 1
        sock.close()
        with pytest.raises(trio.ClosedResourceError):
            receiver.receive_nowait()


def test_errors_of_receiving_are_told(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock = udp()
    receiver = UdpBatchReceiver(sock)
    with pytest.raises(trio.WouldBlock):
        receiver.receive_nowait()


async def test_a_trio_socket_is_used_without_its_async_methods() -> None:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        await sock.bind(("127.0.0.1", 0))
        sender, receiver = UdpBatchSender(sock), UdpBatchReceiver(sock)
        await sender.send(ends.batch_of([b"x"], sock.getsockname()))
        with trio.fail_after(ends.PATIENCE):
            assert [packet for packet, _ in await receiver.receive()] == [b"x"]
        assert sock.fileno() >= 0


async def test_a_number_that_is_somebody_elses_by_now_is_left_alone(udp: ends.MakeSocket) -> None:
    """The owner closed the trio socket, and the next socket of the program got its descriptor."""
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await sock.bind(("127.0.0.1", 0))
    number = sock.fileno()
    sender, receiver = UdpBatchSender(sock), UdpBatchReceiver(sock)
    sender.try_queue_packet(b"never sent", ("127.0.0.1", 9))
    sock.close()
    stranger = udp()
    assert stranger.fileno() == number
    stranger.sendto(b"for a stranger", ends.address_of(stranger))
    ends.wait_until_readable(stranger)
    with pytest.raises(trio.ClosedResourceError):
        receiver.receive_nowait()
    with pytest.raises(trio.ClosedResourceError):
        sender.try_flush_best_effort()
    del sender, receiver
    assert ends.read_plainly(stranger, 1) == [b"for a stranger"]
