# open_udp_channel: a client, with a connected socket of its own.
#
# It puts socket, receiver and sender together, and closes them. What a program does with a channel
# is in `_channel`.

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

from ._batch import packed_for
from ._brief import brief
from ._channel import UdpChannel
from ._kernel._sockets import close_socket, path_mtu
from ._receiver import UdpBatchReceiver
from ._sender import UdpBatchSender
from ._sockets import DEFAULT_BUFFER, open_udp_socket
from ._train import check_flags, check_int

if TYPE_CHECKING:
    from ._batch import PacketBatch
    from ._sockets import Local
    from ._statistics import ChannelStatistics
    from ._train import Address, Packet


@final
class ClientChannel(UdpChannel):
    """The channel of a connected socket, which it owns."""

    def __init__(
        self,
        sock: trio.socket.SocketType,
        *,
        gro: bool,
        gso: bool,
        ecn: bool,
        timestamps: bool,
        report_errors: bool,
    ) -> None:
        super().__init__()
        self._sock = sock
        self._receiver = UdpBatchReceiver(
            sock, gro=gro, ecn=ecn, timestamps=timestamps, report_errors=report_errors
        )
        self._sender = UdpBatchSender(sock, gso=gso)
        # A send would take an error away that a receive is to raise.
        self._sender._tell_errors(self._receiver._hear)
        self._address: Address = sock.getpeername()
        self._local_address = self._receiver.local_address

    @property
    def address(self) -> Address:
        return self._address

    @property
    def local_address(self) -> Address:
        return self._local_address

    async def _receive(self) -> PacketBatch[Address]:
        try:
            return await self._receiver.receive()
        except trio.ClosedResourceError:
            self._check_open()  # which says what the program closed
            raise

    async def _send(self, batch: PacketBatch) -> None:
        await self._sender.send(batch.to(None))

    def _send_packets_nowait(self, packets: list[bytes]) -> None:
        sender = self._sender
        sender._unattended.add(sender._accept(packed_for(None, packets)))
        self._learn_sizes(sender._take_unclaimed())

    async def _send_packet(self, packet: Packet) -> None:
        await self._sender.send_packet(packet, None)

    def _path_mtu(self) -> int:
        return path_mtu(self._address)

    def statistics(self) -> ChannelStatistics:
        receiver, sender = self._receiver.statistics(), self._sender.statistics()
        return self._counted(
            received=receiver.datagrams_received,
            waiting=receiver.datagrams_held,
            sent=sender.datagrams_sent,
            receiver=receiver,
            sender=sender,
        )

    def _close(self) -> None:
        self._receiver.close()
        self._sender.close()
        close_socket(self._sock)


async def open_udp_channel(
    host: str,
    port: int,
    *,
    local: Local = None,
    receive_buffer: int = DEFAULT_BUFFER,
    send_buffer: int = DEFAULT_BUFFER,
    fragment: bool = False,
    gro: bool = True,
    gso: bool = True,
    ecn: bool = False,
    timestamps: bool = False,
    report_errors: bool = True,
) -> UdpChannel:
    """Open a channel to a server, in the manner of `trio.open_tcp_stream`.

    ``async with await open_udp_channel("localhost", 5353) as channel:`` sends and receives through
    a connected socket, so only the server's datagrams are received, and what the path says comes
    out of `UdpChannel.receive`: `ConnectionRefusedError` where nobody listens. Whether somebody
    does is not known before something was sent; nothing is sent here. Errors about earlier
    datagrams do not keep a later one from being sent. They end an ``async for``, and anybody who
    knows the ports can make one up: with ``report_errors=False`` they are only counted, for a
    program that has time-outs anyway.

    If cancelled, nothing is left open.

    Args:
      host: the name or the numeric address of the server. The first of its addresses that the
        routing table knows a way to is taken.
      port: 1 to 65 535.
      local: where to receive, see `open_udp_socket`; by default any free port.
      receive_buffer, send_buffer, fragment: see `open_udp_socket`.
      gro, ecn, timestamps: see `UdpBatchReceiver`.
      gso: see `UdpBatchSender`.
      report_errors: have ``receive`` raise what the path says; it is counted all the same, in
        ``asynchronous_errors`` of the channel's receiver and sender.

    Raises:
      OSError: the name is not known (`socket.gaierror`), or there is no way to the server.
      TypeError, ValueError: an argument has the wrong type, or a number is out of its range.
    """
    if not isinstance(host, str):
        raise TypeError(f"host is a str, not {brief(host)}")
    check_int("port", port, 1, 0xFFFF)
    check_flags(gro=gro, gso=gso, ecn=ecn, timestamps=timestamps, report_errors=report_errors)
    sock = await open_udp_socket(
        local,
        remote=(host, port),
        receive_buffer=receive_buffer,
        send_buffer=send_buffer,
        fragment=fragment,
    )
    try:
        return ClientChannel(
            sock, gro=gro, gso=gso, ecn=ecn, timestamps=timestamps, report_errors=report_errors
        )
    except BaseException:
        close_socket(sock)
        raise
