# The error queue of a socket whose owner switched IP_RECVERR on.
#
# We never do: one unread entry keeps the descriptor "ready" for reading and writing alike, and a
# task that waits for it spins at full speed. But the socket is borrowed, so its owner may have;
# then the queue must be emptied before the next wait. On other systems there is no such queue.

from __future__ import annotations

import struct
import sys
from collections import Counter
from typing import TYPE_CHECKING

from . import _abi
from ._portable import plain_socket

if TYPE_CHECKING:
    from ._interface import Socket

# struct sock_extended_err begins with the errno (include/uapi/linux/errqueue.h)
_ERRNO = struct.Struct("=I")
# The queue is charged to the receive buffer, so it is short; the bound is for a storm.
_MOST_ENTRIES = 1024


def drain(sock: Socket) -> Counter[int]:
    """Empty the error queue. Returns how often it held each errno."""
    found: Counter[int] = Counter()
    if sys.platform != "linux" or sock.fileno() < 0:
        return found
    with plain_socket(sock) as plain:
        for _ in range(_MOST_ENTRIES):
            try:
                _, control, _, _ = plain.recvmsg(0, _abi.CONTROL_SIZE, _abi.MSG_ERRQUEUE)
            except OSError:
                break
            for level, kind, data in control:
                if (level, kind) in _RECVERR and len(data) >= _ERRNO.size:
                    found[_ERRNO.unpack_from(data)[0]] += 1
    return found


_RECVERR = {(_abi.SOL_IP, _abi.IP_RECVERR), (_abi.SOL_IPV6, _abi.IPV6_RECVERR)}
