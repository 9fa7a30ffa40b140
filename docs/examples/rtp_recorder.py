"""Records RTP as pcap, with the kernel's time stamps: python rtp_recorder.py HOST PORT FILE"""

from __future__ import annotations

import contextlib
import struct
import sys
from socket import inet_aton

import trio

from snaptun_trio import Address, PacketBatch, UdpBatchReceiver, open_udp_socket

# draft-ietf-opsawg-pcap: times in nanoseconds, and packets that begin with their IPv4 header.
FILE_HEADER = struct.pack("!IHHIIII", 0xA1B23C4D, 2, 4, 0, 0, 65_535, 228)
HEADERS = struct.Struct("!4I BBHIBBH4s4s 4H")  # of the record, of IPv4 and of UDP; no checksums


def records(batch: PacketBatch[Address], target: Address) -> bytes:
    """What is RTP or RTCP of a batch, each packet with the headers that the kernel took off."""
    found: list[bytes] = []
    here = inet_aton(target[0])
    for train in batch.trains:
        seconds, nanoseconds = divmod(train.timestamp_ns or 0, 10**9)
        for packet in train:
            if len(packet) >= 8 and packet[0] >> 6 == 2:  # RFC 3550, section 5.1: version 2
                size = len(packet) + 28
                record = seconds, nanoseconds, size, size
                ip = 0x45, 0, size, 0, 64, 17, 0, inet_aton(train.address[0]), here
                udp = train.address[1], target[1], size - 20, 0
                found += HEADERS.pack(*record, *ip, *udp), packet
    return b"".join(found)


async def main(host: str, port: int, path: str) -> None:
    with (
        open(path, "wb", buffering=0) as file,
        await open_udp_socket((host, port)) as sock,
        # Without GRO each datagram is a train of its own, and has a time of its own.
        UdpBatchReceiver(sock, gro=False, timestamps=True) as receiver,
    ):
        here = receiver.local_address
        file.write(FILE_HEADER)
        print("recording on port", here[1], flush=True)
        try:
            async for batch in receiver:
                file.write(records(batch, here))
        finally:
            seen = receiver.statistics()
            print(seen.datagrams_received, "received,", seen.buffers_dropped_by_kernel, "dropped")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # which ends it
        trio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3])
