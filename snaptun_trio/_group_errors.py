# What a receiver group says of one of its receivers: whose error it is.
#
# Each is what `receive` of that receiver would have raised, and carries the receiver as well. This
# file knows no socket, and no group.
#
#     ReceiverGroupError          (carries the receiver)
#      +-- ReceiverClosedError    a trio.ClosedResourceError too
#      +-- ReceiverFailedError    an OSError too, of the class that its errno has

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from ._receiver import UdpBatchReceiver


class ReceiverGroupError(Exception):
    """One receiver of a `UdpReceiverGroup` was closed, or the kernel reported an error for it.

    Base class of `ReceiverClosedError` and `ReceiverFailedError`. The group itself is whole, and
    goes on with the next `~UdpReceiverGroup.receive`.
    """

    receiver: UdpBatchReceiver
    """The receiver that it is about."""


class ReceiverClosedError(ReceiverGroupError, trio.ClosedResourceError):
    """A receiver, or its socket, was closed. It has left the group."""


class ReceiverFailedError(ReceiverGroupError, OSError):
    """The kernel reported an error for one receiver.

    It has the ``errno`` and is of the class that the receiver itself would have raised, a
    `ConnectionRefusedError` say. The receiver has left the group; but after an error about an
    earlier datagram, which it raises with ``report_errors`` only, it is still there.
    """


def closed(error: trio.ClosedResourceError, receiver: UdpBatchReceiver) -> ReceiverClosedError:
    """The same, of this receiver."""
    found = ReceiverClosedError(str(error))
    found.receiver = receiver
    return found


def failed(error: OSError, receiver: UdpBatchReceiver) -> ReceiverFailedError:
    """The same, of this receiver."""
    kind = type(error)
    if kind not in _failed_as:
        name = ReceiverFailedError.__name__
        _failed_as[kind] = type(name, (ReceiverFailedError, kind), {"__module__": __package__})
    found = _failed_as[kind](*error.args)
    found.receiver = receiver
    return found


_failed_as: dict[type[OSError], type[ReceiverFailedError]] = {OSError: ReceiverFailedError}
