# ScriptedSocket, of snaptun_trio.testing: receivers, senders and pumps meet what a script says.

from __future__ import annotations

import errno
import socket
import sys
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import (
    PacketBatch,
    PacketTrain,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
    open_batch_pump,
)
from snaptun_trio.testing import ScriptedSocket

from . import ends

if TYPE_CHECKING:
    from snaptun_trio import Address

PEER: Address = ("192.0.2.9", 9)


def payloads(batch: PacketBatch) -> list[bytes]:
    return [packet for packet, _ in batch]


async def test_a_refusal_is_met_as_the_script_has_it() -> None:
    sock = ScriptedSocket()
    sender = UdpBatchSender(sock)
    sock.answer = lambda packets, address: errno.EPERM if packets == [b"\2"] else 0
    batch = PacketBatch([PacketTrain(bytes([n]), 1, ("192.0.2.2", n)) for n in (1, 2, 3)])
    with pytest.raises(SendBatchError) as info:
        await sender.send(batch)
    assert [failure.error.errno for failure in info.value.failures] == [errno.EPERM]
    assert sock.sent == [(b"\1", ("192.0.2.2", 1)), (b"\3", ("192.0.2.2", 3))]


@pytest.mark.skipif(sys.platform != "linux", reason="segmentation is Linux's")
async def test_a_function_sees_what_is_segmented() -> None:
    sock = ScriptedSocket()
    seen: list[list[bytes]] = []

    def no_gso(packets: list[bytes], address: Address | None) -> int:
        seen.append(packets)
        assert address == PEER
        return errno.EIO if len(packets) > 1 else 0

    sock.answer = no_gso
    sender = UdpBatchSender(sock)
    await sender.send(ends.batch_of([b"aa", b"bb", b"c"], PEER))
    assert seen[0] == [b"aa", b"bb", b"c"]
    assert seen[-3:] == [[b"aa"], [b"bb"], [b"c"]]
    assert not sender.gso


async def test_a_full_socket_blocks_until_it_is_woken(nursery: trio.Nursery) -> None:
    sock = ScriptedSocket()
    sender = UdpBatchSender(sock)
    sock.sends.append(errno.EAGAIN)
    nursery.start_soon(sender.send, ends.batch_of([b"x"], PEER))
    await trio.testing.wait_all_tasks_blocked()
    assert (sock.waiting, sock.sent) == (1, [])
    sock.wake()
    await trio.testing.wait_all_tasks_blocked()
    assert (sock.waiting, sock.sent) == (0, [(b"x", PEER)])


async def test_what_arrives_and_what_fails_in_a_receive() -> None:
    sock = ScriptedSocket(("2001:db8::1", 9), remote_address=("2001:db8::2", 9))
    receiver = UdpBatchReceiver(sock)
    sock.receives += [ends.batch_of([b"one"], PEER), errno.ECONNREFUSED]
    sock.receives += [ends.batch_of([b"two"], PEER), errno.EIO]
    assert payloads(await receiver.receive()) == [b"one"]
    assert payloads(await receiver.receive()) == [b"two"]
    assert receiver.statistics().asynchronous_errors == {errno.ECONNREFUSED: 1}
    with pytest.raises(OSError, match="Input/output"):
        await receiver.receive()
    with pytest.raises(trio.WouldBlock):
        receiver.receive_nowait()


async def test_waking_for_nothing_is_no_harm(nursery: trio.Nursery) -> None:
    sock = ScriptedSocket()
    receiver = UdpBatchReceiver(sock)
    nursery.start_soon(receiver.receive)
    for _ in range(50):
        await trio.testing.wait_all_tasks_blocked()
        assert sock.waiting == 1
        sock.wake()
    sock.receives.append(ends.batch_of([b"x"], PEER))
    sock.wake()
    await trio.testing.wait_all_tasks_blocked()
    assert receiver.statistics().datagrams_delivered == 1


def test_it_looks_like_a_socket() -> None:
    for host, family in (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6)):
        sock = ScriptedSocket((host, 9))
        assert (sock.family, sock.type, sock.proto) == (family, socket.SOCK_DGRAM, 17)
        sock.setsockopt(1, 2, 3)
        assert (sock.getsockopt(1, 2), sock.getsockopt(1, 3)) == (3, 0)
        with pytest.raises(OSError, match="not connected"):
            sock.getpeername()
    with pytest.raises(TypeError):
        ScriptedSocket("192.0.2.1")  # type: ignore[arg-type]


async def test_closing_it_wakes_who_waits(nursery: trio.Nursery) -> None:
    sock = ScriptedSocket()
    receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await receiver.receive()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    sock.close()
    with pytest.raises(trio.ClosedResourceError):
        await sender.send(ends.batch_of([b"x"], PEER))
    assert receiver.statistics().receive_buffer_size == 0


async def test_a_whole_pump_on_a_script() -> None:
    sock = ScriptedSocket()
    sock.receives.append(ends.batch_of([b"hello"], PEER))
    sock.answer = lambda packets, address: errno.ENETUNREACH
    async with open_batch_pump(sock, handler=lambda batch: batch) as pump:
        await trio.testing.wait_all_tasks_blocked()
        assert pump.statistics().failures == {errno.ENETUNREACH: 1}
        sock.answer = lambda packets, address: 0
        sock.receives.append(ends.batch_of([b"again"], PEER))
        sock.wake()
        await trio.testing.wait_all_tasks_blocked()
    assert sock.sent == [(b"again", PEER)]
    assert sock.fileno() == -1


async def test_what_several_tasks_send_goes_through_the_script_as_well() -> None:
    sock = ScriptedSocket()
    sock.answer = lambda packets, address: errno.EPERM if address == PEER else 0
    sender = UdpBatchSender(sock)
    refused: list[int | None] = []

    async def send(packet: bytes, address: Address) -> None:
        try:
            await sender.send_packet(packet, address)
        except OSError as error:
            refused.append(error.errno)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(send, b"%d" % number, PEER if number == 2 else ("192.0.2.2", 9))
    assert sorted(packet for packet, _ in sock.sent) == [b"0", b"1", b"3", b"4"]
    assert refused == [errno.EPERM]
