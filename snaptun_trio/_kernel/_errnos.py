# Which errors of a socket are about an earlier datagram.
#
# ICMP messages come back long after the datagram that caused them. The kernel reports one on the
# next call that is made on the socket, whatever the call does; nothing of that call is lost.

from __future__ import annotations

import errno

# What net/ipv4/icmp.c (icmp_err_convert) and net/ipv6/icmp.c turn ICMP messages into, and what
# macOS and Windows make of them. A receive call has no other reason to report one of these.
_NAMES = (
    "ECONNREFUSED ECONNRESET ECONNABORTED EHOSTUNREACH EHOSTDOWN ENETUNREACH ENETDOWN ENETRESET "
    "ENONET EMSGSIZE EPROTO ENOPROTOOPT EOPNOTSUPP EACCES EPERM ETIMEDOUT EADDRNOTAVAIL ENOBUFS "
    "WSAECONNRESET WSAENETRESET WSAECONNREFUSED"
)
ASYNCHRONOUS = frozenset(getattr(errno, name) for name in _NAMES.split() if hasattr(errno, name))

# What a call on a descriptor says that is no socket any more.
GONE = frozenset((errno.EBADF, errno.ENOTSOCK))
