# report_errors: what ICMP messages say of earlier datagrams is raised, and nothing is lost by it.

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import PacketTrain, UdpBatchReceiver
from snaptun_trio._losses import ReceiveLosses

from . import ends, scripted

if TYPE_CHECKING:
    import socket

    from snaptun_trio import Address

HERE: Address = ("127.0.0.1", 9)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="how a refusal comes back differs")


@pytest.fixture
def connected(udp: ends.MakeSocket) -> socket.socket:
    """A socket whose peer is not there."""
    sock = udp()
    sock.connect(ends.deafen(udp()))
    return sock


@linux_only
@pytest.mark.core
@pytest.mark.parametrize("call", ["receive", "receive_nowait", "recv_batch"])
async def test_a_refusal_is_raised_and_counted_and_the_receiver_goes_on(
    backend: str, connected: socket.socket, call: str
) -> None:
    receiver = UdpBatchReceiver(connected, report_errors=True)
    assert receiver.report_errors
    for times in range(1, 4):
        connected.send(b"anybody there?")
        ends.wait_until_readable(connected)
        with pytest.raises(ConnectionRefusedError):
            match call:
                case "receive":
                    await receiver.receive()
                case "receive_nowait":
                    receiver.receive_nowait()
                case _:
                    await receiver.recv_batch(lambda packet, address: None)
        assert receiver.statistics().asynchronous_errors == {errno.ECONNREFUSED: times}
    with pytest.raises(trio.WouldBlock):
        receiver.receive_nowait()


@linux_only
async def test_a_refusal_wakes_who_waits(
    backend: str, connected: socket.socket, nursery: trio.Nursery
) -> None:
    receiver = UdpBatchReceiver(connected, report_errors=True)
    told = trio.Event()

    async def read() -> None:
        with pytest.raises(ConnectionRefusedError):
            await receiver.receive()
        told.set()

    nursery.start_soon(read)
    await trio.testing.wait_all_tasks_blocked()
    connected.send(b"anybody there?")
    with trio.fail_after(ends.PATIENCE):
        await told.wait()


@linux_only
async def test_without_it_a_refusal_is_only_counted(backend: str, connected: socket.socket) -> None:
    receiver = UdpBatchReceiver(connected)
    assert not receiver.report_errors
    connected.send(b"anybody there?")
    ends.wait_until_readable(connected)
    with pytest.raises(trio.WouldBlock):
        receiver.receive_nowait()
    assert receiver.statistics().asynchronous_errors == {errno.ECONNREFUSED: 1}


def test_on_a_socket_that_is_not_connected_it_is_only_counted(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    kernel.receives.append(-errno.ECONNREFUSED)
    receiver = UdpBatchReceiver(udp(), report_errors=True)
    with pytest.raises(trio.WouldBlock):
        receiver.receive_nowait()
    assert receiver.statistics().asynchronous_errors == {errno.ECONNREFUSED: 1}


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EMSGSIZE])
async def test_what_came_with_the_error_goes_first(
    kernel: scripted.ScriptedKernel, connected: socket.socket, number: int
) -> None:
    receiver = UdpBatchReceiver(connected, report_errors=True)
    kernel.losses = ReceiveLosses(error=scripted.error_of(number))
    kernel.receives.append([PacketTrain(b"first", 5, HERE)])
    assert list(await receiver.receive()) == [(b"first", HERE)]
    kernel.losses = None
    kernel.receives.append([PacketTrain(b"then", 4, HERE)])
    with pytest.raises(OSError) as caught:  # noqa: PT011
        await receiver.receive()
    assert caught.value.errno == number
    assert list(await receiver.receive()) == [(b"then", HERE)]
    assert receiver.statistics().asynchronous_errors == {number: 1}


async def test_what_a_handler_left_over_goes_before_the_error(
    kernel: scripted.ScriptedKernel, connected: socket.socket
) -> None:
    def fail(packet: bytes, address: Address) -> None:
        raise ArithmeticError

    receiver = UdpBatchReceiver(connected, report_errors=True)
    kernel.losses = ReceiveLosses(error=scripted.error_of(errno.ECONNREFUSED))
    kernel.receives.append([PacketTrain(b"ab", 1, HERE)])
    with pytest.raises(ArithmeticError):
        await receiver.recv_batch(fail)
    kernel.losses = None
    assert list(await receiver.receive()) == [(b"b", HERE)]
    with pytest.raises(ConnectionRefusedError):
        receiver.receive_nowait()
    with pytest.raises(trio.WouldBlock):
        receiver.receive_nowait()


async def test_where_all_that_came_with_it_was_unreadable_it_is_raised_at_once(
    kernel: scripted.ScriptedKernel, connected: socket.socket
) -> None:
    receiver = UdpBatchReceiver(connected, report_errors=True)
    kernel.losses = ReceiveLosses(
        trains_unknown=1, bytes_unknown=5, error=scripted.error_of(errno.ECONNREFUSED)
    )
    kernel.receives.append([])
    with pytest.raises(ConnectionRefusedError):
        receiver.receive_nowait()


def test_more_for_a_pump_is_not_lost_to_an_error(
    kernel: scripted.ScriptedKernel, connected: socket.socket
) -> None:
    """The pump holds a batch already when it asks for more: it is told with the next receive."""
    receiver = UdpBatchReceiver(connected, batch_size=1, report_errors=True)
    kernel.receives += [[PacketTrain(b"x", 1, HERE)], -errno.ECONNREFUSED]
    batches = [receiver.receive_nowait()]
    assert not receiver._receive_more(batches)
    assert len(batches) == 1
    with pytest.raises(ConnectionRefusedError):
        receiver.receive_nowait()
