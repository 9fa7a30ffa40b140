# open_udp_socket: what it binds, connects and adopts, what its errors say, and that nothing leaks.

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from snaptun_trio import UdpBatchSender, open_udp_socket
from snaptun_trio._kernel import _abi

from . import ends

if TYPE_CHECKING:
    from collections.abc import Iterator

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="these options are Linux's")
HERE = ("127.0.0.1", 0)


def descriptors() -> set[str]:
    """The open descriptors of this process; that of the look itself is closed again."""
    if sys.platform != "linux":
        return set()
    return {name for name in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{name}").exists()}


@pytest.fixture
def no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose kernel knows no IPv6."""

    class OfIPv4(socket.socket):
        def __init__(self, family: int = -1, *arguments: int, **named: Any) -> None:  # noqa: ANN401
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *arguments, **named)

    monkeypatch.setattr(socket, "socket", OfIPv4)


class Names(trio.abc.HostnameResolver):
    """A resolver that knows what a test tells it."""

    def __init__(self, known: dict[str, list[str]]) -> None:
        self.known = known
        self.asked: list[object] = []

    async def getaddrinfo(self, host: Any, port: Any, *rest: Any, **named: Any) -> Any:  # noqa: ANN401
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        await trio.lowlevel.checkpoint()
        if name == "never":
            await trio.sleep_forever()
        if name not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", (numeric, port, 0, 0))
            if ":" in numeric
            else (socket.AF_INET, socket.SOCK_DGRAM, 17, "", (numeric, port))
            for numeric in self.known[name]
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:  # noqa: ANN401
        raise NotImplementedError


@pytest.fixture
async def names() -> Names:
    resolver = Names({"both": ["::1", "127.0.0.1"], "nobodys": ["198.51.100.1", "127.0.0.1"]})
    trio.socket.set_custom_hostname_resolver(resolver)  # for this run
    return resolver


# -- what it binds


async def test_it_is_bound_and_asks_for_long_buffers() -> None:
    with await open_udp_socket(HERE) as sock:
        assert sock.getsockname()[1] > 0
        wanted = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with wanted:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                wanted.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
                granted = wanted.getsockopt(socket.SOL_SOCKET, option)
                assert sock.getsockopt(socket.SOL_SOCKET, option) == granted


async def test_a_buffer_is_never_made_less_than_it_is() -> None:
    with await open_udp_socket(HERE, receive_buffer=1, send_buffer=1) as sock:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
                usual = plain.getsockopt(socket.SOL_SOCKET, option)
            assert sock.getsockopt(socket.SOL_SOCKET, option) == usual


async def test_without_an_address_it_takes_both_families(udp: ends.MakeSocket) -> None:
    udp("::1")  # skips where there is no IPv6
    for local in (None, (None, 0)):
        with await open_udp_socket(local) as sock:
            assert sock.getsockname()[0] == "::"
            for host in ("127.0.0.1", "::1"):
                peer = udp(host)
                peer.sendto(b"hello", (host, sock.getsockname()[1]))
                assert (await sock.recvfrom(10))[0] == b"hello"


async def test_without_ipv6_it_takes_ipv4(no_ipv6: None) -> None:
    with await open_udp_socket() as sock:
        assert sock.getsockname()[0] == "0.0.0.0"


async def test_a_port_that_is_taken_is_not_taken_in_half() -> None:
    """With "::" refused because of the port, 0.0.0.0 might be free, and half a server."""
    with await open_udp_socket() as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=rf"local=\('::', {port}\)") as info:
            await open_udp_socket((None, port))
        assert info.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("host", "local", "wildcard"),
    [("127.0.0.1", None, "127.0.0.1"), ("::1", None, "::1"), ("::1", (None, 0), "::1")],
)
async def test_with_a_remote_it_is_connected_and_of_its_family(
    udp: ends.MakeSocket,
    host: str,
    local: tuple[None, int] | None,
    wildcard: str,
) -> None:
    peer = udp(host)
    with await open_udp_socket(local, remote=ends.address_of(peer)) as sock:
        assert sock.getpeername() == peer.getsockname()
        assert sock.getsockname()[0] == wildcard
        await sock.send(b"hello")
        assert ends.read_plainly(peer, 1) == [b"hello"]


async def test_the_dual_stack_wildcard_reaches_a_remote_of_ipv4(udp: ends.MakeSocket) -> None:
    udp("::1")
    peer = udp()
    with await open_udp_socket(("::", 0), remote=ends.address_of(peer)) as sock:
        await sock.send(b"hello")
        assert ends.read_plainly(peer, 1) == [b"hello"]


async def test_families_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="different families"):
        await open_udp_socket(("127.0.0.1", 0), remote=("::1", 9))


# -- names


async def test_names_are_resolved_once_and_the_next_address_is_tried(names: Names) -> None:
    with await open_udp_socket(("nobodys", 0)) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
    assert names.asked == ["nobodys"]
    with await open_udp_socket(("127.0.0.1", 0), remote=("both", 9)) as sock:
        assert sock.getpeername() == ("127.0.0.1", 9)


async def test_a_port_that_is_taken_on_one_address_is_taken_on_the_next(
    names: Names, udp: ends.MakeSocket
) -> None:
    for attempt in range(20):  # another test may have the same port of the other address
        port = ends.address_of(udp("::1"))[1]
        try:
            sock = await open_udp_socket(("both", port))
        except OSError:
            assert attempt < 19
            continue
        with sock:
            assert sock.getsockname() == ("127.0.0.1", port)
        break


async def test_a_remote_that_cannot_be_connected_to_is_followed_by_the_next(names: Names) -> None:
    names.known["two"] = ["255.255.255.255", "127.0.0.1"]  # the first is a broadcast
    with await open_udp_socket(remote=("two", 9)) as sock:
        assert sock.getpeername() == ("127.0.0.1", 9)


async def test_where_only_one_was_tried_nothing_is_listed() -> None:
    with pytest.raises(OSError, match=r"address: local=\('198.51.100.1', 0\)$"):
        await open_udp_socket(("198.51.100.1", 0))


async def test_the_last_error_says_what_was_tried(names: Names) -> None:
    names.known["elsewhere"] = ["198.51.100.1", "198.51.100.2"]
    with pytest.raises(
        OSError, match=r"local=\('198.51.100.2', 0\); tried \('198.51.100.1', 0\), "
    ) as no:
        await open_udp_socket(("elsewhere", 0))
    assert no.value.errno == errno.EADDRNOTAVAIL


async def test_a_name_that_nobody_knows(names: Names) -> None:
    arguments: dict[str, Any]
    for argument in ("local", "remote"):
        arguments = {argument: ("unknown", 9)}
        with pytest.raises(socket.gaierror, match=rf"not known: {argument}=\('unknown', 9\)"):
            await open_udp_socket(**arguments)


@pytest.mark.parametrize("host", ["a" * 80, "with\0nul", "é" * 80])
async def test_what_is_no_name(host: str) -> None:
    with pytest.raises((ValueError, socket.gaierror), match=r"local=\("):
        await open_udp_socket((host, 0))


async def test_an_ipv6_address_keeps_its_scope(udp: ends.MakeSocket) -> None:
    udp("::1")
    with await open_udp_socket(("::1", 0, 0, 0)) as sock:
        assert sock.getsockname()[0] == "::1"
    with pytest.raises(OSError, match="'fe80::1', 0, 0, 12345"):  # no interface has that number
        await open_udp_socket(("fe80::1", 0, 0, 12345))


# -- descriptors


@pytest.fixture
def descriptor() -> Iterator[int]:
    """A bound UDP socket as a process finds it that inherited it: blocking, nobody's object."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(HERE)
    sock.set_inheritable(True)
    fd = sock.detach()
    yield fd
    with contextlib.suppress(OSError):  # a test may have closed it
        os.close(fd)


async def test_a_descriptor_is_adopted(descriptor: int, udp: ends.MakeSocket) -> None:
    peer = udp()
    with await open_udp_socket(descriptor, remote=ends.address_of(peer)) as sock:
        assert sock.fileno() == descriptor
        assert not os.get_blocking(descriptor)
        assert not os.get_inheritable(descriptor)
        await sock.send(b"hello")
        assert ends.read_plainly(peer, 1) == [b"hello"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_an_adopted_socket_tries_the_next_address_as_well(
    descriptor: int, names: Names
) -> None:
    # Two are broadcasts, which this socket may not send.
    names.known["three"] = ["::1", "255.255.255.255", "127.0.0.1", "127.255.255.255"]
    with await open_udp_socket(descriptor, remote=("three", 9)) as sock:
        assert sock.getpeername() == ("127.0.0.1", 9)


@linux_only  # which keeps twice what is asked for
async def test_the_buffer_of_an_adopted_socket_is_made_larger_and_never_less() -> None:
    for asked, expected in ((50_000, 160_000), (120_000, 240_000)):
        plain = ends.bound_socket(receive_buffer=80_000)
        with await open_udp_socket(plain.detach(), receive_buffer=asked) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == expected


async def test_a_descriptor_that_is_not_adopted_stays_open(descriptor: int) -> None:
    with pytest.raises(ValueError, match="reuse_port"):
        await open_udp_socket(descriptor, reuse_port=True)
    with pytest.raises(ValueError, match="family"):
        await open_udp_socket(descriptor, remote=("::1", 9))
    with pytest.raises(OSError, match=r"remote=\('255.255.255.255', 9\)"):
        await open_udp_socket(descriptor, remote=("255.255.255.255", 9))
    os.fstat(descriptor)


@pytest.mark.parametrize("kind", ["tcp", "unix", "icmp", "unbound", "pipe", "closed"])
async def test_a_descriptor_of_something_else(kind: str) -> None:
    if kind == "tcp":
        fd = socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach()
    elif kind == "unix":
        fd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()
    elif kind == "icmp":
        try:
            ping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
        except PermissionError:
            pytest.skip("net.ipv4.ping_group_range allows no such socket")
        ping.bind(("127.0.0.1", 0))  # and has an id then, where UDP has its port
        fd = ping.detach()
    elif kind == "unbound":
        fd = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()
    else:
        fd, other = os.pipe()
        os.close(other)
        if kind == "closed":
            os.close(fd)
    error = OSError if kind in ("pipe", "closed") else ValueError
    with pytest.raises(error, match=f"local={fd}, a file descriptor"):
        await open_udp_socket(fd)
    if kind != "closed":
        os.close(fd)  # it is still ours


# -- options


@linux_only
async def test_fragmenting_is_left_to_ip_and_nothing_is_segmented(backend: str) -> None:
    for host in ("127.0.0.1", "::"):
        with await open_udp_socket((host, 0), fragment=True) as sock:
            sender = UdpBatchSender(sock)
            assert not sender.gso
            level, name = _abi.SOL_IP, _abi.IP_MTU_DISCOVER
            assert sock.getsockopt(level, name) == _abi.IP_PMTUDISC_OMIT
            if host == "::":
                level, name = _abi.SOL_IPV6, _abi.IPV6_MTU_DISCOVER
                assert sock.getsockopt(level, name) == _abi.IP_PMTUDISC_DONT


@linux_only
async def test_without_it_a_sender_forbids_fragments(backend: str) -> None:
    with await open_udp_socket(HERE) as sock:
        UdpBatchSender(sock)
        mode = sock.getsockopt(_abi.SOL_IP, _abi.IP_MTU_DISCOVER)
        assert mode == _abi.IP_PMTUDISC_PROBE


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"local": "127.0.0.1"}, TypeError, "local is"),
        ({"local": True}, TypeError, "descriptor"),
        ({"local": -1}, ValueError, "descriptor"),
        ({"local": ("127.0.0.1", 70_000)}, ValueError, "local=.*70000"),
        ({"local": ("127.0.0.1", "53")}, TypeError, "local="),
        ({"local": ("", 53)}, ValueError, "None is every address"),
        ({"local": (None, 70_000)}, ValueError, "local="),
        ({"remote": 9}, TypeError, r"remote is \(host, port\)"),
        ({"remote": (None, 9)}, TypeError, "remote="),
        ({"remote": ("127.0.0.1", 0)}, ValueError, "port 0"),
        ({"reuse_port": 1}, TypeError, "reuse_port"),
        ({"fragment": None}, TypeError, "fragment"),
        ({"receive_buffer": 0}, ValueError, "receive_buffer"),
        ({"send_buffer": 2**30}, ValueError, "send_buffer"),
        ({"send_buffer": 1e6}, TypeError, "send_buffer"),
    ],
)
async def test_wrong_arguments_are_refused_before_any_call(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    monkeypatch.setattr(socket, "socket", None)
    with pytest.raises(error, match=match):
        await open_udp_socket(**arguments)


async def test_a_system_without_reuse_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT", raising=False)
    with pytest.raises(ValueError, match="SO_REUSEPORT"):
        await open_udp_socket(HERE, reuse_port=True)


# -- nothing is left behind


@pytest.mark.parametrize("option", ["SO_RCVBUF", "SO_SNDBUF"])
async def test_an_option_that_is_refused_is_named(
    monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    class Refusing(socket.socket):
        def setsockopt(self, level: int, name: int, *value: Any) -> None:  # noqa: ANN401
            if (level, name) == (socket.SOL_SOCKET, getattr(socket, option)):
                raise PermissionError(errno.EPERM, "Operation not permitted")
            super().setsockopt(level, name, *value)

    monkeypatch.setattr(socket, "socket", Refusing)
    before = descriptors()
    name = "receive_buffer" if option == "SO_RCVBUF" else "send_buffer"
    with pytest.raises(PermissionError, match=f"{name}=4194304"):
        await open_udp_socket(HERE)
    assert descriptors() == before


async def test_failing_leaves_no_descriptor(names: Names) -> None:
    before = descriptors()
    for local, remote in (
        (("198.51.100.1", 0), None),  # an address of nobody's (RFC 5737)
        (("127.0.0.1", 0), ("255.255.255.255", 9)),  # no broadcasts without SO_BROADCAST
        (("127.0.0.1", 0), ("unknown", 9)),
    ):
        with pytest.raises(OSError, match=r"local=|remote="):
            await open_udp_socket(local, remote=remote)
    assert descriptors() == before


async def test_a_cancelled_one_leaves_no_descriptor(names: Names, descriptor: int) -> None:
    before = descriptors()
    with trio.CancelScope() as scope:
        scope.cancel()
        await open_udp_socket(HERE)
    assert scope.cancelled_caught
    for local in (HERE, descriptor):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: open_udp_socket(local, remote=("never", 9)))  # noqa: B023
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert descriptors() == before
    os.fstat(descriptor)


async def test_it_is_a_checkpoint(descriptor: int) -> None:
    for local in (None, HERE, descriptor):
        with trio.testing.assert_checkpoints():
            sock = await open_udp_socket(local)
        sock.close()
