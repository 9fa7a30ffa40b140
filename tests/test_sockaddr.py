# Raw socket addresses and Address: a round trip loses nothing, and nothing wrong gets through.

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from snaptun_trio._kernel import _sockaddr
from snaptun_trio._kernel._sockaddr import AF_INET, AF_INET6, CACHE_SIZE

if TYPE_CHECKING:
    from snaptun_trio import Address

ports = st.integers(0, 65_535)
ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).map(str)


@given(host=ipv4, port=ports)
def test_ipv4_round_trip(host: str, port: int) -> None:
    assert _sockaddr.decode(_sockaddr.encode((host, port), AF_INET)) == (host, port)


@given(host=ipv6, port=ports, flowinfo=st.integers(0, 0xFFFFF), scope=st.integers(0, 2**32 - 1))
def test_ipv6_round_trip(host: str, port: int, flowinfo: int, scope: int) -> None:
    decoded = _sockaddr.decode(_sockaddr.encode((host, port, flowinfo, scope), AF_INET6))
    assert decoded is not None
    assert len(decoded) == 4
    assert ipaddress.ip_address(decoded[0]) == ipaddress.ip_address(host)
    assert decoded[1:] == (port, flowinfo, scope)


@given(host=ipv4, port=ports)
def test_an_ipv4_host_on_an_ipv6_socket_becomes_a_mapped_address(host: str, port: int) -> None:
    raw = _sockaddr.encode((host, port), AF_INET6)
    assert _sockaddr.decode(raw) == (f"::ffff:{host}", port, 0, 0)
    assert _sockaddr.is_ipv4(raw)
    assert _sockaddr.mapped((host, port), AF_INET6) == (f"::ffff:{host}", port, 0, 0)


@given(host=ipv4, port=ports)
def test_the_bytes_are_what_the_kernel_makes(host: str, port: int) -> None:
    raw = _sockaddr.encode((host, port), AF_INET)
    assert raw == (
        AF_INET.to_bytes(2, sys.byteorder)
        + port.to_bytes(2, "big")
        + socket.inet_aton(host)
        + bytes(8)
    )


@given(host=ipv6, port=ports, scope=st.integers(0, 2**32 - 1))
def test_the_bytes_of_ipv6_are_what_the_kernel_makes(host: str, port: int, scope: int) -> None:
    raw = _sockaddr.name_of((host, port, 0, scope), AF_INET6)
    assert raw == (
        AF_INET6.to_bytes(2, sys.byteorder)
        + port.to_bytes(2, "big")
        + bytes(4)
        + ipaddress.ip_address(host).packed
        + scope.to_bytes(4, sys.byteorder)
    )


@given(raw=st.binary(max_size=64))
def test_any_bytes_are_an_address_or_none(raw: bytes) -> None:
    address = _sockaddr.decode(raw)
    if address is not None:
        ipaddress.ip_address(address[0])
        assert 0 <= address[1] <= 65_535


@pytest.mark.parametrize("raw", [b"", bytes(32), b"\xff\xff" * 16])
def test_a_name_of_no_length_or_another_family_is_none(raw: bytes) -> None:
    assert _sockaddr.decode(raw) is None


def test_a_real_socket_agrees() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
        assert _sockaddr.decode(_sockaddr.encode(address, AF_INET)) == address


def test_which_names_lead_over_ipv4() -> None:
    assert _sockaddr.is_ipv4(_sockaddr.encode(("192.0.2.1", 1), AF_INET))
    assert not _sockaddr.is_ipv4(_sockaddr.encode(("2001:db8::1", 1, 0, 0), AF_INET6))
    assert _sockaddr.mapped(("::1", 1, 0, 0), AF_INET6) == ("::1", 1, 0, 0)
    assert _sockaddr.mapped(("127.0.0.1", 1), AF_INET) == ("127.0.0.1", 1)


@pytest.mark.parametrize(
    ("address", "family"),
    [
        (("localhost", 1), AF_INET),
        (("", 1), AF_INET),
        (("::1", 1), AF_INET),
        (("127.0.0.1\0", 1), AF_INET),
        (("nowhere:", 1), AF_INET6),
        (("fe80::1%lo", 1), AF_INET6),
        (("127.0.0.1", -1), AF_INET),
        (("127.0.0.1", 65_536), AF_INET),
        (("::1", 1, 0x100000, 0), AF_INET6),
        (("::1", 1, 0, 2**32), AF_INET6),
        (("127.0.0.1", 1), int(getattr(socket, "AF_UNIX", 1))),
    ],
)
def test_what_is_no_numeric_address_of_the_family_is_a_value_error(
    address: Address, family: int
) -> None:
    with pytest.raises(ValueError, match=r"numeric|IPv6 address|scope|range|supported"):
        _sockaddr.encode(address, family)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        ("127.0.0.1",),
        ("127.0.0.1", 1, 2),
        (b"127.0.0.1", 1),
        ("127.0.0.1", "1"),
        ("127.0.0.1", 2.5),
        ("127.0.0.1", None),
    ],
)
def test_what_is_no_address_at_all_is_a_type_error(address: object) -> None:
    with pytest.raises(TypeError, match="address"):
        _sockaddr.encode(address, AF_INET)


def test_strangers_cannot_fill_the_memory_with_addresses() -> None:
    for number in range(CACHE_SIZE + 1000):
        raw = _sockaddr.encode((f"10.0.{number >> 8}.{number & 255}", 9), AF_INET)
        _sockaddr.decode(raw)
    for cache in (_sockaddr.encode, _sockaddr.decode):
        assert cache.cache_info().currsize <= CACHE_SIZE
