# Each injector injects, and the kernel does with it what the library counts on.
#
# Plain sockets only. Were one of these to fail, the fault tests that use the same injector would
# show nothing, and the rule in the library that rests on the fact would have to be looked at.

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time

import pytest
import trio

from .. import ends
from . import ledger, limits, netns, packets, sandbox, sockets, tun

GSO_CONTROL = socket.SOL_UDP if hasattr(socket, "SOL_UDP") else socket.IPPROTO_UDP


def gso(sock: socket.socket, payload: bytes, size: int, target: tuple[str, int]) -> int:
    """One send that asks the kernel to segment."""
    control = [(socket.IPPROTO_UDP, sockets.UDP_SEGMENT, struct.pack("=H", size))]
    return sock.sendmsg([payload], control, 0, target)


def errno_of(call: object, *args: object) -> int:
    """The errno with which a call fails; 0 if it does not."""
    try:
        call(*args)  # type: ignore[operator]
    except OSError as error:
        return error.errno or -1
    return 0


def test_udp_lite_gives_eio_for_gso_only() -> None:
    with sockets.udp_lite() as sock, sockets.udp_lite() as receiver:
        target = receiver.getsockname()
        assert errno_of(gso, sock, bytes(300), 100, target) == errno.EIO
        assert errno_of(gso, sock, bytes(50), 100, target) == errno.EIO
        assert sock.sendto(b"plain", target) == 5
        assert list(sockets.drain(receiver)) == [b"plain"]


def test_a_socket_without_checksums_gives_einval_for_gso_only() -> None:
    with sockets.without_checksums(sockets.udp()) as sock, sockets.udp() as receiver:
        target = receiver.getsockname()
        assert errno_of(gso, sock, bytes(300), 100, target) == errno.EINVAL
        assert sock.sendto(b"plain", target) == 5
        assert list(sockets.drain(receiver)) == [b"plain"]


def test_port_0_gives_einval_with_gso_and_without() -> None:
    with sockets.udp() as sock:
        assert errno_of(gso, sock, bytes(300), 100, ("127.0.0.1", 0)) == errno.EINVAL
        assert errno_of(sock.sendto, b"x", ("127.0.0.1", 0)) == errno.EINVAL


def test_with_an_error_queue_a_dead_peer_costs_a_live_one_its_datagram() -> None:
    with (
        sockets.with_error_queue(sockets.udp()) as sock,
        sockets.udp() as live,
        sockets.udp() as dead,
    ):
        nobody = ends.deafen(dead)
        sock.sendto(b"1", nobody)
        assert errno_of(sock.sendto, b"2", live.getsockname()) == errno.ECONNREFUSED
        sock.sendto(b"3", live.getsockname())
        assert list(sockets.drain(live)) == [b"3"]


def test_an_unread_error_queue_wakes_a_reader_for_ever() -> None:
    with sockets.with_error_queue(sockets.udp()) as sock, sockets.udp() as dead:
        nobody = ends.deafen(dead)
        sock.sendto(b"1", nobody)
        assert errno_of(sock.recv, 100) == errno.ECONNREFUSED
        for _ in range(100):
            ready, _, _ = select.select([sock], [], [], 0)
            assert ready == [sock]
            assert errno_of(sock.recv, 100) == errno.EAGAIN
        sock.recvmsg(100, 500, socket.MSG_ERRQUEUE)
        assert select.select([sock], [], [], 0) == ([], [], [])


def test_half_a_shut_connection_wakes_a_reader_for_ever() -> None:
    with sockets.udp() as sock, sockets.udp() as peer:
        sock.connect(peer.getsockname())
        sock.shutdown(socket.SHUT_RD)
        for _ in range(100):
            assert select.select([sock], [], [], 0)[0] == [sock]
            assert errno_of(sock.recv, 100) == errno.EAGAIN


@pytest.mark.own_network
def test_a_datagram_of_many_fragments_gives_enobufs_while_poll_says_writable() -> None:
    netns.run("ip link set lo mtu 1500")
    with sockets.udp() as sock, sockets.udp() as receiver:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        assert errno_of(sock.sendto, bytes(30_000), receiver.getsockname()) == errno.ENOBUFS
        assert select.select([], [sock], [], 0)[1] == [sock]


@pytest.mark.own_network
def test_used_up_ports_give_eagain_while_poll_says_writable() -> None:
    netns.sysctl("net.ipv4.ip_local_port_range", "40000 40001")
    with (
        sockets.udp("0.0.0.0"),
        sockets.udp("0.0.0.0") as taken,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.setblocking(False)
        assert errno_of(sock.sendto, b"x", taken.getsockname()) == errno.EAGAIN
        assert select.select([], [sock], [], 0)[1] == [sock]
        assert errno_of(sock.bind, ("0.0.0.0", 0)) == errno.EADDRINUSE


@pytest.mark.own_network
def test_an_absent_neighbour_takes_the_send_buffer_from_everybody() -> None:
    far = netns.Namespace()
    netns.veth(far)
    with sockets.udp("10.0.0.1", send_buffer=100_000) as sock:
        sent = 0
        while errno_of(sock.sendto, b"x", ("10.0.0.77", 9)) == 0:
            sent += 1
            assert sent < 1000
        assert errno_of(sock.sendto, b"x", ("10.0.0.2", 9)) == errno.EAGAIN
        assert select.select([], [sock], [], 0)[1] == []


@pytest.mark.own_network
def test_a_slow_queue_gives_eagain_and_later_room() -> None:
    netns.slow_link("8mbit", burst=3000)
    with sockets.udp(send_buffer=2304) as sock, sockets.udp() as receiver:
        target = receiver.getsockname()
        sent = 0
        while errno_of(sock.sendto, bytes(1200), target) == 0:
            sent += 1
            assert sent < 1000
        assert select.select([], [sock], [], 30)[1] == [sock]
        assert errno_of(sock.sendto, bytes(1200), target) == 0
        arrived = 0
        while arrived < sent + 1:
            assert select.select([receiver], [], [], 30)[0]
            arrived += len(list(sockets.drain(receiver)))


@pytest.mark.own_network
def test_a_full_queue_gives_enobufs_with_an_error_queue() -> None:
    netns.attempt("tc qdisc replace dev lo root tbf rate 8kbit burst 2000 limit 3000")
    with sockets.with_error_queue(sockets.udp()) as sock, sockets.udp() as receiver:
        target = receiver.getsockname()
        codes = {errno_of(sock.sendto, bytes(1200), target) for _ in range(20)}
        assert errno.ENOBUFS in codes


@pytest.mark.own_network
def test_a_policy_that_blocks_gives_eperm() -> None:
    netns.veth(netns.Namespace())
    with sockets.udp("10.0.0.1") as sock:
        target = ("10.0.0.2", 9)
        assert errno_of(sock.sendto, b"x", target) == 0
        netns.attempt("ip xfrm policy add dir out dst 10.0.0.2/32 action block")
        assert errno_of(sock.sendto, b"x", target) == errno.EPERM
        netns.run("ip xfrm policy delete dir out dst 10.0.0.2/32")
        assert errno_of(sock.sendto, b"x", target) == 0


@pytest.mark.own_network
def test_routes_give_their_errors() -> None:
    with sockets.udp("0.0.0.0") as sock:
        for kind, code in {
            "unreachable": errno.EHOSTUNREACH,
            "prohibit": errno.EACCES,
            "blackhole": errno.EINVAL,
            "throw": errno.ENETUNREACH,
        }.items():
            netns.run(f"ip route add {kind} 10.9.0.0/16")
            assert errno_of(sock.sendto, b"x", ("10.9.0.1", 9)) == code
            netns.run(f"ip route delete {kind} 10.9.0.0/16")


@pytest.mark.own_network
def test_nft_drops_whole_trains_silently() -> None:
    with sockets.udp() as sock, sockets.udp() as receiver:
        port = receiver.getsockname()[1]
        netns.nft("filter hook input", f"udp dport {port} numgen inc mod 4 0 drop")
        for _ in range(40):
            gso(sock, bytes(1000), 100, receiver.getsockname())
        assert len(list(sockets.drain(receiver))) == 300


@pytest.mark.own_network
def test_nft_corrupts_a_payload_that_passes_loopbacks_checksum() -> None:
    with sockets.udp() as sock, sockets.udp() as receiver:
        netns.nft("filter hook ingress device lo", "@th,64,8 set 0x58")
        sock.sendto(b"abc", receiver.getsockname())
        assert list(sockets.drain(receiver)) == [b"Xbc"]


@pytest.mark.own_network
def test_drops_are_datagrams_with_gro_off_and_buffers_with_gro_on() -> None:
    for gro, per_buffer in ((False, 1), (True, 10)):
        with sockets.udp() as sock, sockets.udp(receive_buffer=10_000, gro=gro) as receiver:
            for _ in range(100):
                gso(sock, bytes(1000), 100, receiver.getsockname())
            datagrams = sum(len(data) // 100 for data in sockets.drain(receiver))
            assert sockets.drops(receiver) > 0
            assert datagrams + sockets.drops(receiver) * per_buffer == 1000


@pytest.mark.own_process
def test_a_sandbox_forbids_a_call() -> None:
    with sockets.udp() as sock:
        assert errno_of(sock.sendmsg, [b"x"], [], 0, sock.getsockname()) == 0
        sandbox.forbid(errno.ENOSYS, "sendmsg")
        assert errno_of(sock.sendmsg, [b"x"], [], 0, sock.getsockname()) == errno.ENOSYS
        assert errno_of(sock.sendto, b"x", sock.getsockname()) == 0


@pytest.mark.own_process
def test_a_timer_interrupts_a_process_a_thousand_times_a_second() -> None:
    with limits.signals(1000) as handled:
        until = time.monotonic() + 30
        while len(handled) < 50:
            assert time.monotonic() < until


@pytest.mark.own_process
def test_a_process_without_descriptors_gets_no_socket() -> None:
    with limits.no_more_descriptors(spare=1):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM):
            assert errno_of(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) == errno.EMFILE


@pytest.mark.own_network
def test_a_namespace_is_a_network_of_its_own_and_a_socket_stays_in_it() -> None:
    far = netns.Namespace()
    netns.veth(far)
    with far:
        receiver = sockets.udp("10.0.0.2")
    with receiver, sockets.udp("10.0.0.1") as sock:
        assert errno_of(sockets.udp, "10.0.0.2") == errno.EADDRNOTAVAIL
        sock.sendto(b"through the cable", receiver.getsockname())
        assert select.select([receiver], [], [], 30)[0]
        assert receiver.recvfrom(100) == (b"through the cable", sock.getsockname())


@pytest.mark.own_network
@pytest.mark.parametrize("v6", [False, True])
async def test_the_relay_loses_doubles_damages_and_delays_what_it_says(v6: bool, seed: int) -> None:
    left_ip, right_ip = ("fd00::1", "fd00::2") if v6 else ("10.0.0.1", "10.0.0.2")
    far = netns.Namespace()
    left = tun.Tun("left", ip=left_ip, peer_ip=right_ip)
    with far:
        right = tun.Tun("right", ip=right_ip, peer_ip=left_ip)
        receiver = sockets.udp(right_ip)
    faults = tun.Faults(loss=0.2, damage=0.1, duplication=0.1, reordering=0.2)
    relay = tun.Relay(left, right, seed=seed, there=faults)
    book = ledger.Ledger()
    with left, right, receiver, sockets.udp(left_ip) as sock:
        for size in range(16, 1416):
            sock.sendto(book.write(size=size), receiver.getsockname())
            relay.carry_all()
        relay.flush()
        book.deliver_all(sockets.drain(receiver))
        way = relay.there
        assert way.taken == 1400
        for count in (way.lost, way.damaged, way.duplicated):
            assert count > 50
        account = book.account()
        assert account.late > 50
        assert account.duplicates > 50
        assert account.unique == way.taken - way.lost - way.damaged
        with far:
            assert sockets.snmp("InCsumErrors", v6=v6) == way.damaged_emitted
            assert sockets.snmp("RcvbufErrors", v6=v6) == 0
        assert account.delivered == way.emitted - way.damaged_emitted


@pytest.mark.own_network
async def test_the_relay_carries_by_itself_in_both_directions() -> None:
    far = netns.Namespace()
    left = tun.Tun("left", ip="10.0.0.1", peer_ip="10.0.0.2")
    with far:
        right = tun.Tun("right", ip="10.0.0.2", peer_ip="10.0.0.1")
        there = trio.socket.from_stdlib_socket(sockets.udp("10.0.0.2"))
    here = trio.socket.from_stdlib_socket(sockets.udp("10.0.0.1"))
    relay = tun.Relay(left, right, seed=1, there=tun.Faults())
    with left, right, here, there:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay.run)
                for number in range(100):
                    await here.sendto(b"%d" % number, there.getsockname())
                    assert await there.recvfrom(100) == (b"%d" % number, here.getsockname())
                    await there.sendto(b"back", here.getsockname())
                    assert await here.recvfrom(100) == (b"back", there.getsockname())
                nursery.cancel_scope.cancel()


@pytest.mark.own_network
def test_a_tun_device_that_nobody_reads_counts_what_it_drops() -> None:
    with (
        tun.Tun("tun0", ip="10.0.0.1", peer_ip="10.0.0.2") as device,
        sockets.udp("10.0.0.1") as sock,
    ):
        netns.run("ip link set dev tun0 txqueuelen 100")
        for _ in range(300):
            sock.sendto(b"x", ("10.0.0.2", 9))
        read = 0
        while device.read() is not None:
            read += 1
        assert device.dropped() > 0
        assert read + device.dropped() == 300


@pytest.mark.own_network
def test_a_tun_device_brings_in_a_train_that_the_kernel_believes() -> None:
    with (
        tun.Tun("tun0", ip="10.0.0.1", peer_ip="10.0.0.2", virtio_headers=True) as device,
        sockets.udp("10.0.0.1", gro=True) as sock,
    ):
        source = ("10.0.0.2", 7)
        payload = os.urandom(1000)
        train = packets.gso_packet(source, sock.getsockname(), payload, 300)
        assert device.write(train) == 0
        data, control, _, address = sock.recvmsg(65_536, 256)
        assert (data, address) == (payload, source)
        assert control == [(socket.IPPROTO_UDP, sockets.UDP_GRO, struct.pack("=i", 300))]


@pytest.mark.own_network
def test_a_tun_device_brings_in_whatever_a_stranger_writes() -> None:
    with (
        tun.Tun("tun0", ip="10.0.0.1", peer_ip="10.0.0.2") as device,
        sockets.udp("10.0.0.1") as sock,
    ):
        here = sock.getsockname()
        assert device.write(packets.udp_packet(("10.0.0.2", 0), here, b"from port 0")) == 0
        assert device.write(packets.udp_packet(("10.0.0.2", 7), here, b"bad", checksum=1)) == 0
        assert device.write(packets.udp_packet(("10.0.0.2", 7), here, b"bad", udp_length=7)) == 0
        assert device.write(packets.udp_packet(("10.0.0.2", 7), here, b"none", checksum=0)) == 0
        assert sock.recvfrom(100) == (b"from port 0", ("10.0.0.2", 0))
        assert sock.recvfrom(100) == (b"none", ("10.0.0.2", 7))
        assert errno_of(sock.recv, 100) == errno.EAGAIN
