# The traffic of demo and bench: this process sends a burst to a forwarder in a process of its own,
# takes in what comes back until all of it is there, and sends the next. A burst is no more than the
# receive buffers hold. How a forwarder works is not known here.
#
# Each datagram has a number (8 bytes), and after it bytes that are random, and the same in all. So
# each is known to have arrived once, with every byte as it was sent; and each must have, or the
# kernel must have counted that it dropped it.

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress

import attrs
import trio

from .. import PacketBatch, PacketTrain, UdpBatchReceiver, UdpBatchSender
from ._forwarders import LOOPBACK, open_end
from ._terminal import CommandError, Facts

NUMBER_BYTES = 8
LARGEST = 65_507  # 65 535 less the IPv4 and the UDP header
# UDP_MAX_SEGMENTS of include/linux/udp.h, of Linux 6.9 and newer; before that it was 64.
MOST_IN_A_MESSAGE = 128
# A burst at most: 1.2 MB keep the forwarder busy, and more only leaves the processor's cache.
MOST_AT_ONCE = 1_000
# How long nothing may arrive before what is missing is given up, if the kernel dropped some, and in
# any case; and before none comes once more. A busy machine makes nothing wrong, only late.
DROPPED_AFTER_SECONDS, LOST_AFTER_SECONDS, AGAIN_WITHIN_SECONDS = 1.0, 30.0, 0.05


@attrs.frozen
class Shape:
    """What is sent: datagrams of so many bytes, so many of them at once."""

    size: int
    train: int

    def __str__(self) -> str:
        one = f"singles of {self.size} bytes"
        return one if self.train == 1 else f"trains of {self.train} x {self.size} bytes"

    def burst_for(self, receive_buffer: int) -> int:
        """How many datagrams fit into a receive buffer, in whole trains.

        The kernel charges a queued datagram with its memory, not its length: 832 bytes for up to
        100, 2304 for 1200, 16 640 for 9000; and frees a quarter of the buffer late. Twice the size
        and a kilobyte is more than both. A train must fit in any case; if not, drops are counted.
        """
        held = min(receive_buffer // (2 * self.size + 1024), MOST_AT_ONCE)
        return self.train * max(1, held // self.train)


@attrs.define
class Result:
    """What came of sending once."""

    forwarder: str
    shape: Shape
    sent: int = 0
    delivered: int = 0
    """Those that arrived unharmed, each counted once."""
    damaged: int = 0
    """Those that arrived changed, or once more."""
    messages_dropped: int = 0
    """What the kernel has dropped: a message is a datagram, or a whole train."""
    cpu_microseconds: float = 0.0
    """CPU time of the forwarding process for each datagram, user and system; 0 if too short."""
    datagrams_per_second: float = 0.0

    def rank(self) -> tuple[bool, float]:
        """What is shown of several is the least: what does not add up, or else the cheapest."""
        return self.adds_up, self.cpu_microseconds or float("inf")

    def __str__(self) -> str:
        missing = f"{self.sent - self.delivered} of {self.sent} are missing"
        counted = f"the kernel has dropped {self.messages_dropped} messages"
        return f"{self.shape}: {missing}, {self.damaged} came changed or once more, {counted}"

    @property
    def adds_up(self) -> bool:
        """Whether each was delivered, or was in a message that the kernel dropped."""
        least, missing = self.messages_dropped, self.sent - self.delivered
        return not self.damaged and least <= missing <= least * MOST_IN_A_MESSAGE


class Path:
    """Both ends, and a forwarder between them."""

    def __init__(self, name: str, udp: socket.socket, forwarder: subprocess.Popen[str]) -> None:
        self.name, self._forwarder = name, forwarder
        self._sender, self._receiver = UdpBatchSender(udp), UdpBatchReceiver(udp)
        self._random = secrets.token_bytes(LARGEST)  # those of another run do not pass
        self._next = 0

    async def send_all(self, shape: Shape, datagrams: int, seconds: float) -> Result:
        """Send so many datagrams, in whole trains, or for so long, and wait for the last."""
        before = after = self._ask()
        target = LOOPBACK, before["port"]
        result, burst = Result(self.name, shape), shape.burst_for(before["buffer"])
        began = now = time.perf_counter()
        while result.sent < datagrams and now <= began + seconds:
            expected = await self._send(min(burst, datagrams - result.sent), shape, target)
            result.sent += len(expected)
            heard = time.perf_counter()
            while expected:
                with trio.move_on_after(DROPPED_AFTER_SECONDS):
                    arrived = [packet for packet, _ in (await self._receiver.receive()).packets()]
                    unharmed = expected.intersection(arrived)
                    expected -= unharmed
                    result.delivered += len(unharmed)
                    result.damaged += len(arrived) - len(unharmed)
                    heard = time.perf_counter()
                    continue
                dropped, after = after["dropped"], self._ask()
                if after["dropped"] > dropped or time.perf_counter() > heard + LOST_AFTER_SECONDS:
                    break
            now = time.perf_counter()
        with trio.move_on_after(AGAIN_WITHIN_SECONDS):
            result.damaged += len(await self._receiver.receive())
        after = self._ask()
        result.messages_dropped = after["dropped"] - before["dropped"]
        result.cpu_microseconds = 1e6 * (after["cpu"] - before["cpu"]) / max(result.delivered, 1)
        result.datagrams_per_second = result.delivered / (now - began)
        return result  # noqa: ASYNC910  # a burst has

    def _ask(self) -> Facts:
        """What the forwarder says, with what holds for the sockets of both processes."""
        orders, answers = self._forwarder.stdin, self._forwarder.stdout
        assert orders and answers  # noqa: PT018
        with suppress(BrokenPipeError):
            os.write(orders.fileno(), b"\n")
        facts: Facts = json.loads(answers.readline() or '{"error": "it has ended"}')
        if "error" in facts:
            raise CommandError(f"the {self.name} process: {facts['error']}")
        own = self._receiver.statistics()
        facts["buffer"] = min(facts["buffer"], own.receive_buffer_size)
        facts["dropped"] = (facts["dropped"] or 0) + (own.buffers_dropped_by_kernel or 0)
        return facts

    async def _send(self, datagrams: int, shape: Shape, target: tuple[str, int]) -> set[bytes]:
        """Send so many back to back, so that the forwarder is not woken for each; returns them."""
        filler, batches = self._random[: shape.size - NUMBER_BYTES], []
        sent: set[bytes] = set()
        for first in range(self._next, self._next + datagrams, shape.train):
            numbers = range(first, first + shape.train)
            train = [number.to_bytes(NUMBER_BYTES, "little") + filler for number in numbers]
            sent.update(train)
            # A batch of its own: the trains of one batch could be merged.
            batches.append(PacketBatch([PacketTrain(b"".join(train), shape.size, target)]))
        self._next += len(sent)
        for batch in batches:
            try:
                self._sender.send_nowait(batch)
            except trio.WouldBlock:
                await self._sender.send(batch)
        await self._sender.flush()
        return sent


@contextmanager
def open_path(name: str, *command: str) -> Generator[Path, None, None]:
    """Start ``python`` with these arguments as the forwarder; at the end of the block, end it."""
    # It finds the very package that runs here. It ends when its standard input does, and Ctrl-C is
    # for this process alone, which then ends the others.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with open_end() as udp:
        process = subprocess.Popen(
            [sys.executable, "-P", *command, str(udp.getsockname()[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            text=True,
        )
        with process:
            try:
                yield Path(name, udp, process)
            finally:
                process.kill()
