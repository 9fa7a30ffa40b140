from __future__ import annotations

import signal

import trio

from snaptun_trio import open_batch_pump


async def main() -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_batch_pump(("127.0.0.1", 0)) as pump, trio.open_nursery() as nursery:

            async def stop_receiving() -> None:
                async for _ in signals:
                    break
                pump.receiver.close()  # `incoming` ends, after what was received before

            nursery.start_soon(stop_receiving)
            print("echoing on {} port {}".format(*pump.local_address), flush=True)
            async for batch in pump.incoming:
                await pump.outgoing.send(batch)
        # Leaving the block has sent everything.
    print("{0.datagrams_received} received, {0.datagrams_sent} sent".format(pump.statistics()))


trio.run(main)
