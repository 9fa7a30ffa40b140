# What comes from outside in the middle of everything: F31, F32 and F35 of the fault matrix.

from __future__ import annotations

import errno
import random

import pytest
import trio

from snaptun_trio import UdpBatchReceiver, UdpBatchSender

from . import harness, laws, ledger, limits, netns, sandbox, sockets

ROUNDS = 300


async def exchange(gso: bool = True, rounds: int = ROUNDS) -> tuple[UdpBatchSender, ledger.Account]:
    """Send and receive on loopback; the law of the clean path holds."""
    book = ledger.Ledger()
    rng = random.Random(1)
    with sockets.udp() as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out, gso=gso), UdpBatchReceiver(into)
        for _ in range(rounds):
            sizes = harness.random_sizes(rng, 50)
            datagrams = [book.write(size=size) for size in sizes]
            await sender.send(harness.batch_of(datagrams, into.getsockname()))
            await harness.collect(receiver, book)
        account = book.account()
        laws.l2_clean(account)
        laws.sender_adds_up(sender.statistics(), account)
        laws.receiver_adds_up(receiver.statistics(), account.written)
    return sender, account


@pytest.mark.own_process
@pytest.mark.usefixtures("backend")
async def test_f31_signals_at_a_high_rate_are_invisible() -> None:
    """Two thousand signals a second, none of which restarts a system call."""
    with limits.signals(2000) as handled:
        with trio.fail_after(100):
            while len(handled) < 500:
                await exchange(rounds=20)


@pytest.mark.own_network
@pytest.mark.usefixtures("backend")
async def test_f31_signals_while_waiting_for_a_slow_link_are_invisible() -> None:
    """Interrupted in the wait as well: everything is sent, once."""
    netns.slow_link("20mbit")
    book = ledger.Ledger()
    with sockets.udp(send_buffer=2304) as out, sockets.udp() as into:
        sender, receiver = UdpBatchSender(out, gso=False), UdpBatchReceiver(into)
        with limits.signals(2000) as handled:
            with trio.fail_after(100):
                while len(handled) < 300:
                    await sender.send(
                        harness.batch_of(book.write_many(100, size=300), into.getsockname())
                    )
                await harness.collect(receiver, book)
        laws.l2_clean(book.account())
        laws.sender_adds_up(sender.statistics(), book.account())


@pytest.mark.own_process
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EACCES])
async def test_f32_a_sandbox_that_forbids_the_batch_calls_costs_speed_only(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """seccomp answers recvmmsg and sendmmsg with an errno: the same ledger, by the other calls."""
    from snaptun_trio import _kernel

    _kernel._linux_backend.cache_clear()  # As in a process that starts in its sandbox.
    sandbox.forbid(code, "recvmmsg", "sendmmsg")
    sender, _ = await exchange()
    assert sender.gso


@pytest.mark.own_process
@pytest.mark.parametrize("call", ["recvmmsg", "sendmmsg"])
async def test_f32_a_sandbox_that_forbids_one_of_the_two(call: str) -> None:
    from snaptun_trio import _kernel

    _kernel._linux_backend.cache_clear()
    sandbox.forbid(errno.ENOSYS, call)
    await exchange()


@pytest.mark.own_process
async def test_f32_a_sandbox_that_forbids_every_send_reports_every_datagram() -> None:
    """Not even sendmsg: each datagram is refused with that errno, and none is lost from sight."""
    from snaptun_trio import _kernel

    _kernel._linux_backend.cache_clear()
    sandbox.forbid(errno.EPERM, "recvmmsg", "sendmmsg", "sendmsg")
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender = UdpBatchSender(out)
        with harness.refusals_entered(book):
            await sender.send(harness.batch_of(book.write_many(100), into.getsockname()))
        laws.sender_adds_up(sender.statistics(), book.account())
        assert book.account().refused == {errno.EPERM: 100}


@pytest.mark.own_network
@pytest.mark.usefixtures("backend")
async def test_f35_a_link_that_flaps_and_changes_its_mtu_under_traffic_hangs_nothing() -> None:
    """Down, up, smaller, larger, while both ends work: each datagram is delivered, refused with an
    errno, or lost on the wire; nothing waits past its deadline, and afterwards all is well."""
    netns.veth(far := netns.Namespace())
    with far:
        into = sockets.udp("10.0.0.2")
    book = ledger.Ledger()
    changes = [
        "ip link set va down",
        "ip link set va up",
        "ip link set va mtu 600",
        "ip link set va mtu 1500",
        "ip address del 10.0.0.1/24 dev va",
        "ip address add 10.0.0.1/24 dev va",
    ]
    with into, sockets.udp("0.0.0.0") as out:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        with trio.fail_after(60):
            for change in changes * 3:
                for _ in range(10):
                    batch = harness.batch_of(
                        book.write_many(20, size=1200), into.getsockname(), segments=7
                    )
                    with harness.refusals_entered(book):
                        await sender.send(batch)
                netns.run(change)
                harness.collect_nowait(receiver, book)
                laws.sender_adds_up(sender.statistics(), book.account())
            netns.run("ip neighbour replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev va")
            netns.wait_for_carrier("va")
            live = ledger.Ledger()
            await sender.send(harness.batch_of(live.write_many(200), into.getsockname()))
            while live.account().missing:
                for packet, _ in await receiver.receive():
                    if len(packet) == ledger.SMALLEST:
                        live.deliver(packet)
                    else:
                        book.deliver(packet)
        laws.l2_clean(live.account())
        account = book.account()
        assert account.duplicates == account.damaged == 0
        assert account.delivered > 0
        assert account.refused


@pytest.mark.own_network
@pytest.mark.usefixtures("backend")
async def test_f35_the_device_is_deleted_under_traffic() -> None:
    """The cable is gone for good: errors for each datagram or silence, and no hang."""
    netns.veth(far := netns.Namespace())
    with far:
        into = sockets.udp("10.0.0.2")
    book = ledger.Ledger()
    with into, sockets.udp("0.0.0.0") as out:
        sender, receiver = UdpBatchSender(out), UdpBatchReceiver(into)
        with trio.fail_after(30):
            await sender.send(harness.batch_of(book.write_many(100), into.getsockname()))
            await harness.collect(receiver, book)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receiver.receive)
                with far:
                    netns.run("ip link delete vb")
                with harness.refusals_entered(book):
                    await sender.send(harness.batch_of(book.write_many(100), into.getsockname()))
                nursery.cancel_scope.cancel()
        account = book.account()
        assert account.refused == {errno.ENETUNREACH: 100}
        laws.l2_clean(account)
        laws.sender_adds_up(sender.statistics(), account)
