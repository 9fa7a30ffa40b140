"""A tunnel for IP packets between two hosts, over UDP. An example; nobody has audited it.

python tunnel.py --key FILE tun0 PORT PEER_HOST PEER_PORT
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import attrs
import trio
from tunnel_crypto import DATA, HELLO, REPLY, Keyring
from tunnel_packets import LARGEST, cut, join, open_tun

from snaptun_trio import (
    PacketBatch,
    PacketTrain,
    SendBatchError,
    UdpBatchReceiver,
    UdpBatchSender,
    open_udp_socket,
)

TOGETHER = 128  # messages that are sealed before they are sent: more wait longer for the last one
REPORT, END = [signal.SIGUSR1], [signal.SIGINT, signal.SIGTERM]
RETRY = 1.0  # seconds between two HELLOs, which UDP may lose


@attrs.define(eq=False)
class Tunnel:
    """Between a TUN device and a UDP socket that is connected to the peer."""

    tun: int
    takes_udp: bool
    receiver: UdpBatchReceiver
    sender: UdpBatchSender
    keys: Keyring
    dropped: Counter[str] = attrs.field(factory=Counter)

    async def tun_to_udp(self) -> None:
        while True:
            messages = self.sealed()
            if messages:
                await self.send(messages)
            else:
                await trio.lowlevel.wait_readable(self.tun)

    def sealed(self) -> list[bytes]:
        """What waits in the device, cut and sealed."""
        messages: list[bytes] = []
        for _ in range(TOGETHER):  # bounded also while all that is read is dropped
            if len(messages) >= TOGETHER:
                break
            try:
                packets = cut(os.read(self.tun, LARGEST))
            except BlockingIOError:
                break
            except ValueError:
                self.dropped["headers too long"] += 1
                continue
            session = self.keys.sending
            if session is None:
                self.dropped["no session"] += len(packets)
            else:
                messages += [session.seal(packet, notes) for packet, notes in packets]
        return messages

    async def send(self, messages: list[bytes]) -> None:
        """All in one call, as trains. What the path says ends nothing: it can be better later."""
        try:
            await self.sender.send(PacketBatch(PacketTrain.pack(messages, None)))
        except SendBatchError as error:
            for failure in error.failures:
                self.dropped[os.strerror(failure.error.errno or 0)] += failure.datagrams
        except OSError as error:
            self.dropped[os.strerror(error.errno or 0)] += 1

    async def udp_to_tun(self) -> None:
        async for batch in self.receiver:
            now = trio.current_time()
            opened: list[tuple[bytes, bytes]] = []
            answers: list[bytes] = []
            for message, _ in batch:
                packet, answer = self.taken(message, now)
                if packet:
                    opened.append((packet, message[:16]))
                if answer:
                    answers.append(answer)
            for frame in join(opened, udp=self.takes_udp):
                try:
                    os.writev(self.tun, frame)
                except OSError as error:  # the device is down, or takes no such packet
                    self.dropped[f"tun: {os.strerror(error.errno or 0)}"] += 1
            if answers:
                await self.send(answers)

    def taken(self, message: bytes, now: float) -> tuple[bytes | None, bytes | None]:
        """The packet in a message of the peer's, and what to answer."""
        kind = message[0] if message else None
        if kind == DATA:
            return self.keys.open(message, now)
        if kind == HELLO:
            return None, self.keys.take_hello(message, now)
        if kind == REPLY:
            return None, self.keys.take_reply(message, now)
        self.keys.counts["unknown"] += 1
        return None, None

    async def keep_keys_fresh(self) -> None:
        while True:
            if self.keys.wants_new(trio.current_time()):
                await self.send([self.keys.hello()])
            await trio.sleep(RETRY)

    def report(self) -> str:
        return json.dumps(
            {
                "keys": self.keys.counts,
                "dropped": self.dropped,
                "received": attrs.asdict(self.receiver.statistics()),
                "sent": attrs.asdict(self.sender.statistics()),
            },
            default=dict,
        )


async def main(options: argparse.Namespace, psk: bytes) -> None:
    keys = Keyring(psk, seconds=options.rekey_seconds, messages=options.rekey_messages)
    peer = (options.peer_host, options.peer_port)
    with open_tun(options.tun) as (tun, takes_udp):
        with await open_udp_socket((None, options.port), remote=peer) as sock:
            receiver, sender = UdpBatchReceiver(sock), UdpBatchSender(sock)
            tunnel = Tunnel(tun, takes_udp, receiver, sender, keys)
            with trio.open_signal_receiver(*REPORT, *END) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(tunnel.tun_to_udp)
                    nursery.start_soon(tunnel.udp_to_tun)
                    nursery.start_soon(tunnel.keep_keys_fresh)
                    print(f"{options.tun} on port {sender.local_address[1]}", flush=True)
                    async for number in signals:
                        print(tunnel.report(), flush=True)
                        if number in END:
                            nursery.cancel_scope.cancel()
                            break


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--key", required=True, help="a file with 32 bytes in hexadecimal")
    parser.add_argument("--rekey-seconds", type=float, default=120.0)
    parser.add_argument("--rekey-messages", type=int, default=2**40)
    parser.add_argument("tun", help="the TUN device")
    parser.add_argument("port", type=int)
    parser.add_argument("peer_host")
    parser.add_argument("peer_port", type=int)
    options = parser.parse_args()
    psk = bytes.fromhex(Path(options.key).read_text(encoding="ascii"))
    if len(psk) != 32:
        sys.exit("the key file has to hold 32 bytes in hexadecimal")
    trio.run(main, options, psk)
