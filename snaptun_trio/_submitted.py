# What a program gives a sender, looked at before any of it is queued.
#
# A slip gets its error here, and not from the kernel. This file must not know the queue.

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import trio

from ._brief import brief
from ._errors import PacketTooLargeError
from ._plain import check_result
from ._train import PacketTrain, flat_view, payloads_of

if TYPE_CHECKING:
    from ._train import Address, Packet


def payload_of(packet: Packet, address: Address | None, most: int) -> bytes | memoryview:
    """The bytes of a packet, not copied, and not to be changed through this.

    Raises:
      PacketTooLargeError: they are over ``most``.
      TypeError: it is no packet.
    """
    payload = packet if isinstance(packet, bytes) else flat_view(packet).toreadonly()
    if len(payload) > most:
        raise PacketTooLargeError(packet, address, len(payload), most)
    return payload


# The iterable is the program's, and may go on for ever: Control-C interrupts it, whoever calls.
payloads_taken = trio.lowlevel.disable_ki_protection(payloads_of)


_NO_PACKETS = (str, bytes, bytearray, memoryview)  # but one, or text


def payloads_returned(name: str, result: object, may_be: str) -> list[bytes]:
    """The bytes of the packets that a function of the program's returned.

    Args:
      name: the function.
      result: what it returned, and what should be packets.
      may_be: what it may return, for the message.

    Raises:
      TypeError: it is something else.
      Exception: what an iterable of the program's raises.
    """
    # To ask whether something is iterable costs as much as all the rest.
    if type(result) is not list and (
        isinstance(result, _NO_PACKETS) or not isinstance(result, Iterable)
    ):
        check_result(name, result)
        raise TypeError(f"{name} returns {may_be}, not {brief(result, 80)}")
    try:
        return payloads_taken(result)
    except TypeError as error:
        raise TypeError(f"of what {name} returned: {error}") from error


def check_train(train: PacketTrain, most: int) -> None:
    """Make sure that this is a train, of datagrams of at most so many bytes.

    Raises:
      PacketTooLargeError: they are larger.
      TypeError: it is no train.
    """
    if not isinstance(train, PacketTrain):
        raise TypeError(f"a PacketTrain is needed, not {brief(train)}")
    longest = min(train.segment_size, train.nbytes)
    if longest > most:
        raise PacketTooLargeError(train.data, train.address, longest, most)
