# What the tests of receiver groups share: each poller of this system, and sockets by the thousand.

from __future__ import annotations

import contextlib
import select
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import _receiver_group
from snaptun_trio._kernel import _poller

from . import ends

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from snaptun_trio import UdpBatchReceiver, UdpReceiverGroup

    from . import scripted

POLLERS = ["tasks", *(["epoll"] if hasattr(select, "epoll") else [])]


def use_poller(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever group is made from here on has this poller."""
    kind = _poller.EpollPoller if name == "epoll" else _poller.TaskPoller
    monkeypatch.setattr(_receiver_group, "open_poller", kind)


def make_ready(kernel: scripted.ScriptedKernel) -> None:
    """All sockets of a scripted kernel are called ready for ever."""
    kernel.waits.always_ready = kernel.ready = True


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """So many more descriptors may be open, where the system allows it."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 200
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        except (ValueError, OSError) as error:
            pytest.skip(f"{wanted} descriptors cannot be had: {error}")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def many_sockets(count: int) -> Iterator[list[socket.socket]]:
    """So many bound sockets with small buffers, where the system allows it."""
    with room_for(count), contextlib.ExitStack() as stack:
        yield [stack.enter_context(ends.bound_socket(receive_buffer=16_384)) for _ in range(count)]


def send(peer: socket.socket, packet: bytes, to: socket.socket) -> None:
    peer.sendto(packet, to.getsockname())
    ends.wait_until_readable(to)


async def receive(group: UdpReceiverGroup) -> tuple[UdpBatchReceiver, list[bytes]]:
    with trio.fail_after(ends.PATIENCE):
        receiver, batch = await group.receive()
    return receiver, [packet for packet, _ in batch]
