"""UDP in batches for trio: recvmmsg with GRO, sendmmsg with GSO, for one peer or for many."""

from __future__ import annotations

from ._batch import PacketBatch
from ._channel import UdpChannel
from ._client import open_udp_channel
from ._errors import (
    PacketTooLargeError,
    QueueFullError,
    QueuePacketError,
    SendBatchError,
    SendFailure,
)
from ._group_errors import (
    ReceiverClosedError,
    ReceiverFailedError,
    ReceiverGroupError,
)
from ._incoming import IncomingChannel
from ._kernel import choose_backend as _choose_backend
from ._kernel._abi import MAX_BATCH_SIZE
from ._open import open_batch_pump
from ._pool import PacketBufPool
from ._pump import BatchPump
from ._receiver import UdpBatchReceiver
from ._receiver_group import UdpReceiverGroup
from ._relay import UdpRelay
from ._relay_client import RelayClient
from ._relay_statistics import RelayFlow, RelayStatistics, RelayTarget
from ._sender import UdpBatchSender
from ._serve import serve_udp
from ._server import UdpServer
from ._sockets import open_udp_socket
from ._statistics import (
    ChannelStatistics,
    PoolStatistics,
    PumpStatistics,
    ReceiverStatistics,
    SenderStatistics,
    ServerStatistics,
)
from ._train import ECN, Address, Packet, PacketTrain
from ._version import __version__

__all__ = [
    "ECN",
    "MAX_BATCH_SIZE",
    "Address",
    "BatchPump",
    "ChannelStatistics",
    "IncomingChannel",
    "Packet",
    "PacketBatch",
    "PacketBufPool",
    "PacketTooLargeError",
    "PacketTrain",
    "PoolStatistics",
    "PumpStatistics",
    "QueueFullError",
    "QueuePacketError",
    "ReceiverClosedError",
    "ReceiverFailedError",
    "ReceiverGroupError",
    "ReceiverStatistics",
    "RelayClient",
    "RelayFlow",
    "RelayStatistics",
    "RelayTarget",
    "SendBatchError",
    "SendFailure",
    "SenderStatistics",
    "ServerStatistics",
    "UdpBatchReceiver",
    "UdpBatchSender",
    "UdpChannel",
    "UdpReceiverGroup",
    "UdpRelay",
    "UdpServer",
    "__version__",
    "backend",
    "backend_reason",
    "open_batch_pump",
    "open_udp_channel",
    "open_udp_socket",
    "serve_udp",
]

_chosen = _choose_backend()
backend: str = _chosen[0].backend
"""The name of the backend that this process uses, "linux" or "portable"."""
backend_reason: str = _chosen[1]
"""Why it is that one."""

# The names belong here, wherever they are defined: tracebacks, pickles and the docs say so.
for _name in __all__:
    if hasattr(globals()[_name], "__module__") and isinstance(globals()[_name], type):
        globals()[_name].__module__ = __name__
del _name
