# The way back: how an answer leaves from the address of ours that was asked.
#
# A peer takes an answer only from there. Two addresses are nobody's source, though a datagram can
# be sent to them: what is sent to a group, or to all, is answered from wherever the kernel likes.

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._train import Way


@lru_cache(1024)
def way_back(local_address: str | None, interface_index: int | None) -> Way | None:
    """How an answer leaves to what came to an address of ours, on an interface. `None` is however
    the kernel likes."""
    if local_address is None or not _may_be_source(local_address):
        return None
    return (None, local_address, interface_index if _is_link_local(local_address) else None)


def _may_be_source(host: str) -> bool:
    """Whether a datagram can leave from a host that one was sent to: not so with a group."""
    ip = ip_address(host)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return not (ip.is_multicast or ip == _BROADCAST)


def _is_link_local(host: str) -> bool:
    """Whether a host is one on some interface only: an IPv6 link-local one (RFC 4291, 2.5.6)."""
    return ":" in host and ip_address(host).is_link_local


_BROADCAST = ip_address("255.255.255.255")
