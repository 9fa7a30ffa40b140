"""Passes statsd's datagrams on to all backends: python statsd_fan_out.py HOST PORT HOST:PORT..."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections import Counter

import trio

from snaptun_trio import SendBatchError, UdpBatchReceiver, UdpBatchSender, open_udp_socket


async def fan_out(
    receiver: UdpBatchReceiver, backends: dict[str, UdpBatchSender], missed: Counter[str]
) -> None:
    async for batch in receiver:
        for name, sender in backends.items():
            try:
                sender.send_nowait(batch.to(None))  # nothing is copied
            except trio.WouldBlock:
                missed[name] += len(batch)  # to wait for one would be to hold up the others
            except SendBatchError as error:  # too large for the way to this one, say
                missed[name] += sum(failure.datagrams for failure in error.failures)


async def main(host: str, port: int, targets: list[str]) -> None:
    backends, missed = dict[str, UdpBatchSender](), Counter[str]()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM))
        sock = stack.enter_context(await open_udp_socket((host, port)))
        for target in targets:
            there, _, its_port = target.rpartition(":")
            link = await open_udp_socket(remote=(there.strip("[]"), int(its_port)))
            backends[target] = UdpBatchSender(stack.enter_context(link))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fan_out, UdpBatchReceiver(sock), backends, missed)
            print("passing on from port", sock.getsockname()[1], flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()
    for name, sender in backends.items():
        seen = sender.statistics()
        refused = sum(seen.asynchronous_errors.values())
        print(f"{name}: {seen.datagrams_sent} sent, {missed[name]} missed, {refused} refused")


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3:])
