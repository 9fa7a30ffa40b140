# What receivers and senders refuse when they are made, before any system call moves data.

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from snaptun_trio import MAX_BATCH_SIZE, PacketBufPool, UdpBatchReceiver, UdpBatchSender

if TYPE_CHECKING:
    from . import ends


@pytest.mark.parametrize("batch_size", [0, -1, MAX_BATCH_SIZE + 1])
def test_a_batch_size_out_of_range_is_a_value_error(udp: ends.MakeSocket, batch_size: int) -> None:
    for end in (UdpBatchReceiver, UdpBatchSender):
        with pytest.raises(ValueError, match="batch_size"):
            end(udp(), batch_size=batch_size)


def test_the_limits_of_batch_size_are_allowed(udp: ends.MakeSocket) -> None:
    assert MAX_BATCH_SIZE == 1024
    for batch_size in (1, MAX_BATCH_SIZE):
        assert UdpBatchReceiver(udp(), batch_size=batch_size).batch_size == batch_size
        assert UdpBatchSender(udp(), batch_size=batch_size).batch_size == batch_size


def test_wrong_types_are_type_errors(udp: ends.MakeSocket) -> None:
    for end in (UdpBatchReceiver, UdpBatchSender):
        with pytest.raises(TypeError, match="batch_size"):
            end(udp(), batch_size=2.0)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="socket"):
            end(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pool"):
        UdpBatchReceiver(udp(), 65_536)  # type: ignore[arg-type]


def test_gro_with_buffers_that_are_too_small_is_a_value_error(udp: ends.MakeSocket) -> None:
    with pytest.raises(ValueError, match="65536"):
        UdpBatchReceiver(udp(), PacketBufPool(9216))
    UdpBatchReceiver(udp(), PacketBufPool(9216), gro=False)


def test_sockets_that_are_not_fit_are_value_errors(udp: ends.MakeSocket) -> None:
    closed = udp()
    closed.close()
    blocking = udp()
    blocking.setblocking(True)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.setblocking(False)
        for sock, reason in ((closed, "closed"), (blocking, "block"), (stream, "UDP")):
            for end in (UdpBatchReceiver, UdpBatchSender):
                with pytest.raises(ValueError, match=reason):
                    end(sock)
