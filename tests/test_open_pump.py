# open_batch_pump: what it owns, and how it is left.

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import (
    Address,
    BatchPump,
    PacketBatch,
    PacketBufPool,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
    open_batch_pump,
)

from . import ends, scripted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE: Address = ("127.0.0.1", 0)
PACKETS = [*ends.numbered(30, 800), b"tail"]


@contextlib.asynccontextmanager
async def peer_of(pump: BatchPump) -> AsyncIterator[ends.Pair]:
    """A sender and a receiver that talk with a pump."""
    with ends.bound_socket() as sock, ends.make_pair(sock, sock) as pair:
        yield ends.Pair(pair.sender, pair.receiver, address_of(pump))


def address_of(pump: BatchPump) -> Address:
    assert isinstance(pump.receiver, UdpBatchReceiver)
    return ends.address_of(pump.receiver.socket)


def descriptor_of(pump: BatchPump) -> int:
    assert isinstance(pump.receiver, UdpBatchReceiver)
    return pump.receiver.socket.fileno()


async def receive(receiver: UdpBatchReceiver, count: int) -> list[bytes]:
    """The next datagrams, while other tasks run."""
    found: list[bytes] = []
    with trio.fail_after(ends.PATIENCE):
        while len(found) < count:
            found += [packet for packet, _ in await receiver.receive()]
    return found


@pytest.mark.core
async def test_an_echo_with_the_application_in_the_middle(backend: str) -> None:
    async def echo(pump: BatchPump) -> None:
        async for batch in pump.incoming:
            await pump.outgoing.send(batch)

    async with open_batch_pump(HERE) as pump, peer_of(pump) as peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, pump)
            await peer.sender.send(ends.batch_of(PACKETS, peer.target))
            assert await receive(peer.receiver, 31) == PACKETS
            nursery.cancel_scope.cancel()


@pytest.mark.core
async def test_a_forwarder_with_a_handler(backend: str, udp: ends.MakeSocket) -> None:
    sink = udp()
    target = ends.address_of(sink)
    async with open_batch_pump(HERE, handler=lambda batch: batch.to(target)) as pump:
        assert isinstance(pump.receiver, UdpBatchReceiver)
        assert isinstance(pump.sender, UdpBatchSender)
        async with peer_of(pump) as peer:
            await peer.sender.send(ends.batch_of(PACKETS, peer.target))
            found = await receive(UdpBatchReceiver(sink), 31)
    assert found == PACKETS
    statistics = pump.statistics()
    assert statistics.datagrams_received == statistics.datagrams_sent == 31
    assert statistics.sender is not None
    assert statistics.sender.datagrams_sent == 31
    assert statistics.receiver is not None
    assert statistics.receiver.datagrams_delivered == 31


async def test_its_options_reach_the_ends(backend: str) -> None:
    pool = PacketBufPool()
    async with open_batch_pump(
        ("::1", 0), pool=pool, batch_size=7, gro=False, gso=False, max_segments=9, capacity=5
    ) as pump:
        assert isinstance(pump.receiver, UdpBatchReceiver)
        assert isinstance(pump.sender, UdpBatchSender)
        assert pump.receiver.batch_size == 7
        assert not pump.receiver.statistics().gro
        assert not pump.sender.gso
        assert pump.sender.max_segments == 9
        async with peer_of_family(pump, "::1") as peer:
            await peer.sender.send(ends.batch_of([bytes(5000)], peer.target))
            with trio.fail_after(ends.PATIENCE):
                received = await pump.incoming.receive()
        # The portable backend copies what came in, and lends nothing.
        assert pool.statistics().slabs_in_use == (1 if backend == "linux" else 0)
        assert len(received) == 1


@contextlib.asynccontextmanager
async def peer_of_family(pump: BatchPump, host: str) -> AsyncIterator[ends.Pair]:
    with ends.bound_socket(host) as sock, ends.make_pair(sock, sock) as pair:
        yield ends.Pair(pair.sender, pair.receiver, address_of(pump))


async def test_a_socket_of_its_own_for_both_families(backend: str) -> None:
    async with open_batch_pump(("::", 0)) as pump:
        port = address_of(pump)[1]
        with ends.bound_socket() as ipv4:
            ipv4.sendto(b"hello", ("127.0.0.1", port))
            with trio.fail_after(ends.PATIENCE):
                batch = await pump.incoming.receive()
            assert list(batch) == [(b"hello", ("::ffff:127.0.0.1", ipv4.getsockname()[1], 0, 0))]


# -- leaving


@pytest.mark.core
async def test_leaving_normally_sends_everything_in_outgoing_and_closes(
    backend: str, udp: ends.MakeSocket
) -> None:
    sink = udp()
    async with open_batch_pump(HERE, capacity=4) as pump:
        for packet in PACKETS[:4]:
            pump.outgoing.send_nowait(ends.batch_of([packet], ends.address_of(sink)))
        descriptor = descriptor_of(pump)
        assert descriptor >= 0
    assert ends.read_plainly(sink, 4) == PACKETS[:4]
    assert descriptor_of(pump) == -1
    assert pump.statistics().batches_sent == 4


async def test_leaving_normally_waits_for_a_socket_that_is_full(
    kernel: scripted.ScriptedKernel,
) -> None:
    kernel.sends += [-errno.EAGAIN, -errno.EAGAIN]

    async def wake_now_and_then() -> None:
        while len(kernel.sent) < 1:
            await trio.testing.wait_all_tasks_blocked()
            kernel.waits.wake()

    async with trio.open_nursery() as nursery:
        async with open_batch_pump(HERE) as pump:
            pump.outgoing.send_nowait(PacketBatch([PacketTrain(b"x", 1, ("127.0.0.1", 9))]))
            nursery.start_soon(wake_now_and_then)
        assert kernel.payloads == [b"x"]


class OurError(Exception):
    pass


@pytest.mark.core
async def test_leaving_by_an_exception_is_prompt_and_not_wrapped(
    kernel: scripted.ScriptedKernel,
) -> None:
    """The socket takes nothing, ever; the block is left all the same."""
    kernel.sends += [-errno.EAGAIN] * 1000
    with trio.move_on_after(ends.PATIENCE) as patience, pytest.raises(OurError) as info:
        async with open_batch_pump(HERE) as pump:
            pump.outgoing.send_nowait(PacketBatch([PacketTrain(b"x", 1, ("127.0.0.1", 9))]))
            await trio.testing.wait_all_tasks_blocked()
            raise OurError
    assert not patience.cancel_called
    assert info.value.__context__ is None
    assert descriptor_of(pump) == -1
    assert pump.statistics().batches_discarded == 1
    assert kernel.sent == []


async def test_an_exception_out_of_a_nursery_of_the_block_is_not_wrapped_twice() -> None:
    async def fail() -> None:
        raise OurError

    with pytest.raises(OurError):
        async with open_batch_pump(HERE), trio.open_nursery() as nursery:
            nursery.start_soon(fail)


async def test_leaving_by_cancellation_is_prompt(kernel: scripted.ScriptedKernel) -> None:
    kernel.sends += [-errno.EAGAIN] * 1000
    with trio.CancelScope() as scope:
        async with open_batch_pump(HERE) as pump:
            pump.outgoing.send_nowait(PacketBatch([PacketTrain(b"x", 1, ("127.0.0.1", 9))]))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert descriptor_of(pump) == -1


async def test_a_block_that_is_cancelled_while_it_drains_still_closes(
    kernel: scripted.ScriptedKernel,
) -> None:
    kernel.sends += [-errno.EAGAIN] * 1000
    with trio.CancelScope() as scope:
        async with open_batch_pump(HERE) as pump:
            pump.outgoing.send_nowait(PacketBatch([PacketTrain(b"x", 1, ("127.0.0.1", 9))]))
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.spawn_system_task(cancel_when_blocked, scope)
    assert scope.cancelled_caught
    assert descriptor_of(pump) == -1


async def cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


async def test_an_error_of_the_pump_ends_the_block_and_is_not_wrapped(backend: str) -> None:
    def handler(batch: PacketBatch) -> PacketBatch:
        raise OurError

    with trio.fail_after(ends.PATIENCE), pytest.raises(OurError):
        async with open_batch_pump(HERE, handler=handler) as pump, peer_of(pump) as peer:
            await peer.sender.send(ends.batch_of([b"x"], peer.target))
            await trio.sleep_forever()
    assert descriptor_of(pump) == -1


async def test_entering_and_leaving_are_checkpoints(backend: str) -> None:
    with trio.testing.assert_checkpoints():
        manager = open_batch_pump(HERE)
        await manager.__aenter__()
    with trio.testing.assert_checkpoints():
        await manager.__aexit__(None, None, None)


# -- sockets


@pytest.mark.parametrize("kind", ["trio", "standard library"])
async def test_a_socket_that_was_given_is_closed_at_the_end(backend: str, kind: str) -> None:
    plain = ends.bound_socket()
    sock = trio.socket.from_stdlib_socket(plain) if kind == "trio" else plain
    async with open_batch_pump(sock) as pump:
        assert descriptor_of(pump) == sock.fileno()
    assert sock.fileno() == -1


async def test_a_socket_that_is_not_fit_is_closed_as_well() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        with pytest.raises(ValueError, match="bound"):
            async with open_batch_pump(sock):
                raise AssertionError
        assert sock.fileno() == -1


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (("localhost", 0), ValueError),
        (("127.0.0.1", -1), ValueError),
        (("127.0.0.1", "http"), TypeError),
        ((127, 0), TypeError),
        (("192.0.2.1", 0), OSError),  # an address of nobody's (RFC 5737)
    ],
)
async def test_an_address_that_cannot_be_bound_is_an_error(
    address: Address, error: type[Exception]
) -> None:
    with pytest.raises(error):
        async with open_batch_pump(address):
            raise AssertionError


async def test_something_else_than_a_socket_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="socket"):
        async with open_batch_pump("127.0.0.1"):  # type: ignore[arg-type]
            raise AssertionError


async def test_a_wrong_option_is_refused_and_the_socket_closed() -> None:
    sock = ends.bound_socket()
    with pytest.raises(ValueError, match="capacity"):
        async with open_batch_pump(sock, capacity=0):
            raise AssertionError
    assert sock.fileno() == -1


@pytest.mark.needs_gso
@pytest.mark.needs_gro
async def test_offloads_are_on_unless_they_are_switched_off(backend: str) -> None:
    async with open_batch_pump(HERE) as pump:
        assert (pump.receiver.statistics().gro, pump.sender.gso) == (True, True)
    async with open_batch_pump(HERE, gro=False, gso=False) as pump:
        assert (pump.receiver.statistics().gro, pump.sender.gso) == (False, False)
