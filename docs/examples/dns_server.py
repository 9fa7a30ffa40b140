"""Answers DNS questions, until SIGTERM or Control-C: python dns_server.py HOST PORT"""

from __future__ import annotations

import logging
import signal
import sys
from functools import partial

import trio
from dns_message import answer_to

from snaptun_trio import UdpChannel, UdpServer, serve_udp

GRACE = 5.0  # seconds that handlers have to come to an end


async def answer(channel: UdpChannel) -> None:
    """Answer the questions of one peer."""
    async for batch in channel:
        replies = [answer_to(question) for question, _ in batch]
        await channel.send_packets(reply for reply in replies if reply is not None)


def note(error: Exception, channel: UdpChannel) -> None:
    """One peer's trouble: the server goes on."""
    logging.warning("%s: %r", channel.address, error)


async def main(host: str, port: int) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as handlers, trio.open_nursery() as serving:
            server: UdpServer = await serving.start(
                partial(serve_udp, answer, port, host=host, handler_nursery=handlers, on_error=note)
            )
            print("answering on {} port {}".format(*server.local_address), flush=True)
            async for _ in signals:
                break
            serving.cancel_scope.cancel()  # nothing more is received
            handlers.cancel_scope.deadline = trio.current_time() + GRACE
        # All handlers have returned, and what they sent has left.
    counted = server.statistics()
    print(counted.datagrams_received, "received,", counted.sender.datagrams_sent, "sent")


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
