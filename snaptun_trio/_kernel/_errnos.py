# Which errors of a socket are about an earlier datagram.
#
# ICMP messages come back long after the datagram that caused them. The kernel reports one on the
# next call that is made on the socket, whatever the call does; nothing of that call is lost.

from __future__ import annotations

import errno


def _numbers(names: str) -> frozenset[int]:
    """The errnos of these names that this system has."""
    return frozenset(getattr(errno, name) for name in names.split() if hasattr(errno, name))


# What ICMP messages become: net/ipv4/icmp.c (icmp_err_convert), net/ipv6/icmp.c, and Windows.
FROM_ICMP = _numbers(
    "ECONNREFUSED EHOSTUNREACH EHOSTDOWN ENETUNREACH ENONET EMSGSIZE EPROTO ENOPROTOOPT EOPNOTSUPP "
    "EACCES WSAECONNRESET WSAENETRESET"
)

# On a receive call these, too, are about something else than what it would have received.
ASYNCHRONOUS = FROM_ICMP | _numbers(
    "ECONNRESET ECONNABORTED ENETDOWN ENETRESET EPERM ETIMEDOUT EADDRNOTAVAIL ENOBUFS "
    "WSAECONNREFUSED"
)

# What the system says that has no socket, or no port, for anybody now. Others are about an address.
NOTHING_LEFT = _numbers(
    "EMFILE ENFILE ENOBUFS ENOMEM EAGAIN EADDRINUSE EADDRNOTAVAIL ENOSPC WSAEMFILE WSAENOBUFS"
)

# What a call on a descriptor says that is no socket any more.
CLOSED_ERRNOS = _numbers("EBADF ENOTSOCK")
