# The socket options, as other systems and sandboxes answer: what is missing is switched off, or
# said.

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import pytest

from snaptun_trio import UdpBatchReceiver, UdpBatchSender, _kernel, open_batch_pump
from snaptun_trio._kernel import _interface, choose_backend, socket_io
from snaptun_trio._kernel._portable import PortableIO

from . import ends

if TYPE_CHECKING:
    from collections.abc import Iterator

_rows = pytest.importorskip("snaptun_trio._kernel._rows", reason="the compiled part is not there")


class RefusingSocket(socket.socket):
    """A socket on a system that knows none of our options."""

    refused: frozenset[int] = frozenset()

    def setsockopt(self, level: int, name: int, *value: object) -> None:
        if level in self.refused:
            raise OSError("Protocol not available")
        super().setsockopt(level, name, *value)  # type: ignore[call-overload]

    def getsockopt(self, level: int, name: int, *size: int) -> object:  # type: ignore[override]
        if level in self.refused:
            raise OSError("Protocol not available")
        return super().getsockopt(level, name, *size)


@pytest.fixture
def refusing() -> RefusingSocket:
    sock = RefusingSocket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    sock.refused = frozenset({0, 1, 17})
    return sock


def test_a_kernel_without_the_offloads_gets_none(refusing: RefusingSocket) -> None:
    with refusing:
        receiver, sender = UdpBatchReceiver(refusing), UdpBatchSender(refusing)
        assert not receiver.statistics().gro
        assert receiver.statistics().buffers_dropped_by_kernel is None
        assert not sender.gso
        assert sender.statistics().send_buffer_size == 0


@pytest.mark.parametrize("flag", ["ecn", "packet_info", "timestamps"])
def test_what_cannot_be_reported_is_a_value_error(refusing: RefusingSocket, flag: str) -> None:
    with refusing, pytest.raises(ValueError, match=flag):
        UdpBatchReceiver(refusing, **{flag: True})  # type: ignore[arg-type]


@pytest.mark.parametrize("flag", ["ecn", "packet_info", "timestamps"])
def test_only_linux_reports(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setattr(_interface, "_LINUX", False)
    with pytest.raises(ValueError, match=f"{flag}=True: only Linux"):
        UdpBatchReceiver(udp(), **{flag: True})  # type: ignore[arg-type]


def test_another_system_sends_and_receives_without_offloads(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_interface, "_LINUX", False)
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setenv("SNAPTUN_TRIO_BACKEND", "portable")
    with ends.make_pair(udp(), udp()) as pair:
        packets = ends.numbered(20, 100)
        pair.sender.send_nowait(ends.batch_of(packets, pair.target))
        assert ends.payloads(pair.receiver, 20) == packets
        assert not pair.sender.gso
        assert not pair.receiver.statistics().gro
        assert pair.receiver.statistics().buffers_dropped_by_kernel is None
        assert not socket_io(pair.receiver.socket).drain_errors()


def test_a_socket_that_has_no_name_is_not_bound(refusing: RefusingSocket) -> None:
    """Windows has no name for a socket that was never bound."""

    def no_name() -> object:
        raise OSError("An invalid argument was supplied")

    refusing.getsockname = no_name  # type: ignore[method-assign]
    with refusing, pytest.raises(ValueError, match="bound"):
        UdpBatchSender(refusing)


async def test_a_socket_that_the_pump_opens_asks_for_large_buffers() -> None:
    with ends.bound_socket(receive_buffer=1) as plain:
        default = plain.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    async with open_batch_pump(("127.0.0.1", 0)) as pump:
        statistics = pump.statistics()
        assert statistics.receiver is not None
        assert statistics.sender is not None
        assert statistics.sender.send_buffer_size >= default
        assert statistics.receiver.receive_buffer_size >= default


# -- backends


@pytest.fixture
def chosen_anew() -> Iterator[None]:
    """Whether the backend for Linux is there is asked once; here before and after the test."""
    _kernel._linux_backend.cache_clear()
    yield
    _kernel._linux_backend.cache_clear()


def test_a_sandbox_without_the_two_calls_gets_the_portable_backend(
    chosen_anew: None, linux_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rows, "forbidden", lambda: "sendmmsg")
    with pytest.raises(ImportError, match="forbids sendmmsg"):
        choose_backend()
    monkeypatch.delenv("SNAPTUN_TRIO_BACKEND")
    backend, reason = choose_backend()
    assert backend is PortableIO
    assert "sendmmsg" in reason


def test_other_systems_get_the_portable_backend(
    chosen_anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert choose_backend()[0] is PortableIO


def test_without_the_compiled_part_there_is_the_portable_backend_and_the_reason(
    chosen_anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "snaptun_trio._kernel._rows", None)
    monkeypatch.delitem(sys.modules, "snaptun_trio._kernel._linux", raising=False)
    monkeypatch.delattr(_kernel, "_linux", raising=False)
    monkeypatch.delattr(_kernel, "_rows", raising=False)
    backend, reason = choose_backend()
    assert backend.backend == "portable"
    assert "the compiled part is not there" in reason
    monkeypatch.setenv("SNAPTUN_TRIO_BACKEND", "linux")
    with pytest.raises(ImportError, match="the compiled part is not there"):
        choose_backend()


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPTUN_TRIO_BACKEND", "windows")
    with pytest.raises(ImportError, match="there are linux and portable"):
        choose_backend()
