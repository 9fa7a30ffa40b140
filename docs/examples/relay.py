from __future__ import annotations

import json
import signal
import sys

import attrs
import trio

from snaptun_trio import UdpRelay


async def main(listen: int, target: int, status: int) -> None:
    """Relay from one port to another, and tell whoever connects to a third how it goes."""
    relay = UdpRelay((None, listen), [("localhost", target)], idle_timeout=30)

    async def tell(stream: trio.SocketStream) -> None:
        counted = attrs.asdict(relay.statistics())
        await stream.send_all(json.dumps(counted, default=dict).encode())

    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        (first, *_) = await nursery.start(trio.serve_tcp, tell, status)
        print("relaying on port", relay.local_address[1], flush=True)
        print("statistics on port", first.socket.getsockname()[1], flush=True)
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                break
        await relay.drain()  # what is under way is sent
        nursery.cancel_scope.cancel()
    print(relay.statistics().to_targets.datagrams_out, "datagrams went to the target")


if __name__ == "__main__":
    listen, target, status = map(int, sys.argv[1:])
    trio.run(main, listen, target, status)
