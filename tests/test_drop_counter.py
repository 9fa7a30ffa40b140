# The kernel's drop counter has 32 bits and is as old as the socket: what a receiver reports is what
# was dropped since it was made, across the counter's end.

from __future__ import annotations

import socket
import struct
import sys
from typing import TYPE_CHECKING

import pytest

from snaptun_trio import UdpBatchReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator

# include/uapi/asm-generic/socket.h, include/uapi/linux/sock_diag.h
SO_MEMINFO = 55
MEMINFO = struct.Struct("=9I")
DROPS = 8

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells what a socket dropped"
)


class OldSocket(socket.socket):
    """A socket whose drop counter says what it is told to.

    Attributes:
      dropped: what it has dropped since it was made.
    """

    dropped = 0

    def getsockopt(self, level: int, option: int, size: int = 0, /) -> int | bytes:  # type: ignore[override]
        if (level, option) != (socket.SOL_SOCKET, SO_MEMINFO):
            return (
                super().getsockopt(level, option, size)
                if size
                else super().getsockopt(level, option)
            )
        words = list(MEMINFO.unpack(super().getsockopt(level, option, MEMINFO.size)))
        words[DROPS] = self.dropped % 2**32
        return MEMINFO.pack(*words)[:size]


@pytest.fixture
def old_socket() -> Iterator[OldSocket]:
    with OldSocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        yield sock


def test_drops_are_counted_across_the_end_of_the_kernels_counter(
    backend: str, old_socket: OldSocket
) -> None:
    old_socket.dropped = 2**32 - 10
    receiver = UdpBatchReceiver(old_socket)
    counted = []
    for more in (0, 3, 6, 1, 1, 500):
        old_socket.dropped += more
        counted.append(receiver.statistics().buffers_dropped_by_kernel)
    assert counted == [0, 3, 9, 10, 11, 511]


def test_drops_up_to_the_closing_are_kept(backend: str, old_socket: OldSocket) -> None:
    old_socket.dropped = 2**32 - 1
    receiver = UdpBatchReceiver(old_socket)
    old_socket.dropped += 7
    receiver.close()
    old_socket.close()
    assert receiver.statistics().buffers_dropped_by_kernel == 7
