"""One of several workers on a port: start as many as there are cores. SIGTERM ends one in order."""

from __future__ import annotations

import os
import signal
import sys

import trio

from snaptun_trio import PacketBatch, PacketTrain, open_batch_pump


def answer(batch: PacketBatch) -> PacketBatch:
    """Say who answers, and what."""
    trains: list[PacketTrain] = []
    for train in batch.trains:
        trains += train.reply([b"%d: %b" % (os.getpid(), packet) for packet in train])
    return PacketBatch(trains)


def inherited() -> int | None:
    """The first socket that systemd hands over, if it does."""
    ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    return 3 if ours and int(os.environ.get("LISTEN_FDS", "0")) else None


async def work(port: int) -> None:
    descriptor = inherited()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_batch_pump(
            (None, port) if descriptor is None else descriptor,
            reuse_port=descriptor is None,
            packet_info=True,
            handler=answer,
        ) as pump:
            print("listening on", pump.local_address[1], flush=True)
            async for _ in signals:
                break
            # Leaving answers what was received already. What the kernel still holds is lost.


if __name__ == "__main__":
    trio.run(work, int(sys.argv[1]))
