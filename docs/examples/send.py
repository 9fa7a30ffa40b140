from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import trio

from snaptun_trio import SendBatchError, UdpBatchReceiver, UdpBatchSender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from snaptun_trio import Address


async def send_to_all(
    sock: trio.socket.SocketType, packets: Iterable[bytes], targets: list[Address]
) -> list[Address | None]:
    """Send every packet to every target, and say which targets could not be reached."""
    unreachable: list[Address | None] = []

    async def flush() -> None:
        try:
            await sender.flush()
        except SendBatchError as error:  # all the others have been sent
            unreachable.extend(failure.train.address for failure in error.failures)

    with UdpBatchSender(sock) as sender:
        for packet in packets:
            for target in targets:
                if sender.is_full:
                    await flush()
                sender.try_queue_packet(packet, target)
        await flush()
    return unreachable


async def answer_each(sock: trio.socket.SocketType, answer_to: Callable[[bytes], bytes]) -> None:
    """Answer every datagram, those of a batch together, until cancelled."""
    with UdpBatchReceiver(sock) as receiver, UdpBatchSender(sock) as sender:
        async for batch in receiver:
            for question, address in batch:
                if sender.is_full:
                    await flush(sender)
                sender.try_queue_packet(answer_to(question), address)
            await flush(sender)


async def flush(sender: UdpBatchSender) -> None:
    """Send what is queued. Whom nothing can be sent to, port 0 say, gets no answer."""
    with contextlib.suppress(SendBatchError):  # all others have been sent
        await sender.flush()


async def resolve(name: str, port: int) -> Address:
    """The first IPv4 address of a name, for a sender on an IPv4 socket."""
    found = await trio.socket.getaddrinfo(name, port, socket.AF_INET, socket.SOCK_DGRAM)
    host, *_ = found[0][4]
    return str(host), port
