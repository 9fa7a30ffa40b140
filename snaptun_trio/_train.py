# PacketTrain: datagrams of one size to or from one peer, the unit of the kernel's offloads.
#
# A value, checked when a program makes one, immutable after. This file must not know batches,
# sockets, or where the memory of a received train comes from.

from __future__ import annotations

import enum
import typing
from mmap import mmap
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, final, overload

import attrs

from ._brief import brief
from ._coalesce import MAX_TRAIN_IPV4, MAX_TRAIN_IPV6, datagram_count, joined, split
from ._way_back import way_back

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Packet: TypeAlias = bytes | bytearray | memoryview
"""One datagram's payload: any bytes-like object."""

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
"""A numeric socket address, as trio gives it: ``(host, port)`` for IPv4, ``(host, port, flowinfo,
scope_id)`` or ``(host, port)`` for IPv6. No name is ever resolved on the data path."""


class ECN(enum.IntEnum):
    """The two ECN bits of an IP header (RFC 3168, section 5), for `PacketTrain.ecn`.

    >>> ECN(3)
    <ECN.CE: 3>
    """

    NOT_ECT = 0
    """The sender does not take part: a router that is congested drops its datagrams."""
    ECT_1 = 1
    """The sender takes part, and L4S reads this one as scalable congestion control (RFC 9331)."""
    ECT_0 = 2
    """The sender takes part: what any other congestion control says."""
    CE = 3
    """A router on the way is congested, and marked the datagram instead of dropping it."""


Way: TypeAlias = "tuple[ECN | None, str | None, int | None]"
"""What a train asks for beside its address: ECN bits, local address, interface index."""

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # for the defaults: PEP 696, in typing from 3.13 on

    # A received train always has an address, and its type says so. A train that a program makes
    # has the default whatever it is made with: inferred from the argument, the type would be that
    # of the tuple at hand, and two trains would not go into one list.

    AddressT_co = TypeVar(
        "AddressT_co", bound=Address | None, default=Address | None, covariant=True
    )
else:
    AddressT_co = typing.TypeVar("AddressT_co")


def flat_view(data: Packet) -> memoryview:
    """The bytes of any bytes-like object as one flat memoryview, not copied.

    Raises:
      TypeError: ``data`` is not bytes-like, or not contiguous.
    """
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"a packet is a bytes-like object, not {brief(data)}") from None
    if not view.c_contiguous:
        raise TypeError("a packet must be contiguous in memory")
    return view.cast("B") if view.format != "B" or view.ndim != 1 else view


def check_int(name: str, value: int, least: int, most: int) -> None:
    """Make sure that an argument is a whole number within its range.

    A bool is not taken for a number: it is nearly always a slip.

    Raises:
      TypeError: it is not an int.
      ValueError: it is out of its range.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is an int, not {brief(value)}")
    if not least <= value <= most:
        raise ValueError(f"{name} is out of range: {brief(value)} is not {least} to {most}")


def check_flags(**flags: bool) -> None:
    """Make sure that arguments are bools.

    Raises:
      TypeError: one is something else.
    """
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is a bool, not {brief(flag)}")


def check_address(address: Address | None) -> None:
    """Make sure that an address looks like one. Which hosts are numeric is the system's matter.

    Raises:
      TypeError: it is neither a tuple of the right length and types nor `None`.
      ValueError: a number is out of its range.
    """
    if address is None:
        return
    if type(address) is tuple and len(address) == 2:
        host, port = address
        if type(host) is str and type(port) is int and 0 <= port <= 0xFFFF:
            return
    if not (isinstance(address, tuple) and len(address) in (2, 4)):
        raise TypeError(
            "an address is (host, port) or (host, port, flowinfo, scope_id), "
            f"not {brief(address, 120)}"
        )
    if not isinstance(address[0], str):
        raise TypeError(f"the host of an address is a str, not {brief(address[0])}")
    for name, number, most in zip(
        ("port", "flowinfo", "scope_id"), address[1:], (0xFFFF, 0xFFFFF, 0xFFFFFFFF)
    ):
        check_int(f"an address's {name}", number, 0, most)


def _beginning(data: bytes | memoryview) -> str:
    """How a train shows its data: all of little, and the beginning of much."""
    try:
        head = bytes(data[:_SHOWN])
        return repr(head) if len(data) <= _SHOWN else f"<{len(data)} bytes: {head!r}...>"
    except ValueError:
        return "<a released view>"


_SHOWN = 32  # bytes


@final
@attrs.define(frozen=True, init=False, slots=True)
class PacketTrain(Generic[AddressT_co]):
    """Datagrams of one size to or from one peer, back to back in one buffer.

    This is the unit that the kernel's receive offload (GRO) hands out and that its segmentation
    offload (GSO) takes. A single datagram is a train of one. ``len(train)`` is the number of
    datagrams; iterating yields each of them as `bytes`.

    To a type checker a train is generic in its ``address``: a received one is a
    ``PacketTrain[Address]``, whose address is never `None`, and every other a plain
    ``PacketTrain``, which may be for the connected peer. `PacketBatch` is generic likewise.

    Args:
      data: the payloads, back to back: `bytes`, or a read-only `memoryview` of bytes. Every
        datagram is ``segment_size`` bytes long, the last one may be shorter. Empty data is one
        zero-length datagram.
      segment_size: the size of each datagram, 1 to 65 535 bytes (0 is allowed for empty data).
      address: the peer that it came from, or that it is for; `None` is the connected peer.
      ecn: the two ECN bits of the IP header, an `ECN` or an int of 0 to 3; `None` is unknown on a
        received train, and the socket's own setting on one to be sent. Reading gives an `ECN`.
      local_address: the numeric host of this machine that a received train was addressed to, or
        the group or ``255.255.255.255``; of one that went to a subnet's broadcast address, the
        machine's own address there. On a train to be sent, the source address to use; a group is
        none, and leaves the choice to the kernel.
      interface_index: the interface it came in by, or is to leave by.
      timestamp_ns: when the kernel received it, in nanoseconds since the epoch; of a train that
        GRO put together, when it was complete. Ignored on sending.

    Raises:
      TypeError: an argument has the wrong type, or ``data`` could change under the train.
      ValueError: a number is out of its range.
    """

    data: bytes | memoryview = attrs.field(repr=_beginning)
    segment_size: int
    address: AddressT_co  # type: ignore[misc]  # frozen, which mypy does not see in attrs
    ecn: ECN | None
    local_address: str | None
    interface_index: int | None
    timestamp_ns: int | None

    def __init__(
        self,
        data: bytes | memoryview,
        segment_size: int,
        address: Address | None,
        *,
        ecn: int | None = None,
        local_address: str | None = None,
        interface_index: int | None = None,
        timestamp_ns: int | None = None,
    ) -> None:
        if isinstance(data, memoryview):
            if not data.readonly:
                raise TypeError("a train's memoryview must be read-only: data.toreadonly()")
            data = flat_view(data)
        elif not isinstance(data, bytes):
            raise TypeError(f"a train's data is bytes or a read-only memoryview, not {brief(data)}")
        check_int("segment_size", segment_size, 1 if len(data) else 0, 0xFFFF)
        check_address(address)
        bits = check_way(ecn, local_address, interface_index)
        if timestamp_ns is not None:
            check_int("timestamp_ns", timestamp_ns, 0, 2**63 - 1)
        peer: Any = address
        self.__attrs_init__(
            data, segment_size, peer, bits, local_address, interface_index, timestamp_ns
        )

    # Plain data: a copy, and what is pickled, has bytes of its own where this one has a view.

    def __getstate__(self) -> tuple[object, ...]:
        return (
            bytes(self.data),
            self.segment_size,
            self.address,
            self.ecn,
            self.local_address,
            self.interface_index,
            self.timestamp_ns,
        )

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__attrs_init__(*state)

    def __copy__(self) -> PacketTrain[AddressT_co]:
        return self  # it is immutable

    def __len__(self) -> int:
        return datagram_count(len(self.data), self.segment_size)

    def __iter__(self) -> Iterator[bytes]:
        return iter(split(self.data, self.segment_size))

    @property
    def nbytes(self) -> int:
        """The payload bytes of all its datagrams."""
        return len(self.data)

    @overload
    def to(self, address: Address) -> PacketTrain[Address]: ...
    @overload
    def to(self, address: Address | None) -> PacketTrain: ...
    def to(self, address: Address | None) -> PacketTrain[Any]:
        """The same data for another peer, not copied.

        ``ecn`` is kept. ``local_address``, ``interface_index`` and ``timestamp_ns`` belong to the
        way to the old peer and are dropped.
        """
        return make_train(self.data, self.segment_size, address, self.ecn)

    def reply(self, packets: Iterable[Packet]) -> list[PacketTrain]:
        """Pack packets for where this train came from, to leave from the address it came to.

        A peer takes an answer only from the address that it asked; on a socket that is bound to
        ``0.0.0.0`` or ``::`` the kernel would choose one of the machine's. So receive with
        ``packet_info=True`` there. Of a train without ``local_address`` (it is `None` where nobody
        asked for it), and of one that was sent to a multicast group or to ``255.255.255.255``,
        which can be nobody's source, the answer leaves from the address that the kernel chooses.

        The way back is the routing table's choice: ``interface_index`` is not kept, except with a
        link-local IPv6 ``local_address``, which is an address only together with its interface.
        ``ecn`` is not kept either: the bits of a received train say what the network did to it.

        Args:
          packets: the payloads, see `pack`.

        Raises:
          TypeError, ValueError: see `pack`.
        """
        way = way_back(self.local_address, self.interface_index)
        _, local, interface = way or (None, None, None)
        return PacketTrain.pack(
            packets, self.address, local_address=local, interface_index=interface
        )

    @staticmethod
    def pack(
        packets: Iterable[Packet],
        address: Address | None,
        *,
        ecn: int | None = None,
        local_address: str | None = None,
        interface_index: int | None = None,
    ) -> list[PacketTrain]:
        """Pack packets for one peer into as few trains as the kernel allows, order kept.

        A train takes packets of one size and one shorter tail, at most 64 of them and at most
        65 493 bytes (65 473 to an IPv6 address). A zero-length packet goes alone.

        Args:
          packets: the payloads.
          address: the peer; `None` is the connected peer.
          ecn, local_address, interface_index: of each train, see `PacketTrain`. To answer a train
            from the address that it came to there is `reply`.

        Raises:
          TypeError: a packet is not bytes-like, there is only one instead of several, or another
            argument has the wrong type.
          ValueError: a packet is over 65 527 bytes, which no UDP datagram can hold, or a number is
            out of its range.
        """
        check_address(address)
        bits = check_way(ecn, local_address, interface_index)
        return [
            make_train(data, size, address, bits, local_address, interface_index)
            for data, size in joined(payloads_of(packets), max_train_bytes(address))
        ]


_ONE_PACKET = (bytes, bytearray, memoryview, mmap, str)


def payloads_of(packets: Iterable[Packet]) -> list[bytes]:
    """The bytes of some packets.

    Raises:
      TypeError: one is not bytes-like, or there is only one instead of several.
    """
    if isinstance(packets, _ONE_PACKET):  # whose items are no packets
        raise TypeError(f"packets is an iterable of packets, not one packet: {brief(packets)}")
    return [p if isinstance(p, bytes) else bytes(flat_view(p)) for p in packets]


def check_way(
    ecn: int | None, local_address: str | None, interface_index: int | None
) -> ECN | None:
    """Make sure that a program may ask for this beside a train's address. Returns the ECN bits.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: a number is out of its range.
    """
    if ecn is not None:
        check_int("ecn", ecn, 0, 3)
    if local_address is not None and not isinstance(local_address, str):
        raise TypeError(f"local_address is a numeric host, not {brief(local_address)}")
    if interface_index is not None:
        check_int("interface_index", interface_index, 1, 2**31 - 1)
    return None if ecn is None else ECN(ecn)


def max_train_bytes(address: Address | None) -> int:
    """The most payload bytes of a train to this address that no device has to split."""
    return MAX_TRAIN_IPV4 if address is not None and ":" not in address[0] else MAX_TRAIN_IPV6


def make_train(
    data: bytes | memoryview,
    segment_size: int,
    address: Address | None,
    ecn: ECN | None = None,
    local_address: str | None = None,
    interface_index: int | None = None,
    timestamp_ns: int | None = None,
) -> PacketTrain[Any]:
    """A train from values that are known to be right: what the kernel reported, or another's."""
    train: PacketTrain[Any] = PacketTrain.__new__(PacketTrain)
    train.__attrs_init__(
        data, segment_size, address, ecn, local_address, interface_index, timestamp_ns
    )
    return train
