# A batch is columns, not objects: forwarding one train and forwarding 64 make the same few Python
# objects, and no payload is copied.
#
# Nothing is timed. What is counted is what Python's allocator holds when the batch is handed to
# sendmmsg, less what it held when recvmmsg returned; and the most that it held in between.

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import defaultdict

import attrs
import pytest
import trio

from snaptun_trio import (
    BatchPump,
    PacketBatch,
    PacketTrain,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import ends
from .recorder import Recorder

pytestmark = [
    pytest.mark.needs_gso,
    pytest.mark.needs_gro,
    pytest.mark.usefixtures("nothing_copied"),  # one short train is compared with 64
    pytest.mark.skipif(
        sys.implementation.name != "cpython", reason="only CPython counts its blocks"
    ),
]

ROUNDS = 5


@attrs.frozen
class Cost:
    """What it took to forward a batch, the least of several rounds."""

    blocks: int
    """Objects that are alive when sendmmsg is called and were not when recvmmsg returned."""
    peak: int
    """The most bytes that were allocated at any moment in between."""


class Meter:
    """Measures between the return of recvmmsg and the call of sendmmsg, by messages received."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._costs: defaultdict[int, list[Cost]] = defaultdict(list)
        self._blocks = self._bytes = 0
        recorder.after_receiving = self._begin
        recorder.before_sending = self._end

    def _begin(self) -> None:
        tracemalloc.reset_peak()
        self._bytes = tracemalloc.get_traced_memory()[0]
        self._blocks = sys.getallocatedblocks()

    def _end(self) -> None:
        blocks = sys.getallocatedblocks() - self._blocks
        peak = tracemalloc.get_traced_memory()[1] - self._bytes
        self._costs[self._recorder.received_messages].append(Cost(blocks, peak))

    def least(self, messages: int) -> Cost:
        """The least that a call which brought so many messages took.

        A round in which something older was let go of shows fewer than none, and tells nothing.
        """
        costs = self._costs[messages]
        blocks = [cost.blocks for cost in costs if cost.blocks >= 0]
        assert blocks, f"no call brought {messages} messages"
        return Cost(min(blocks), min(cost.peak for cost in costs))


class Scene:
    """Senders, a pump with a handler, and a sink behind it.

    Attributes:
      recorder: what the kernel was handed.
      looking: whether the handler looks at the trains, instead of only passing them on.
    """

    def __init__(
        self, recorder: Recorder, udp: ends.MakeSocket, peers: int, *, looking: bool = False
    ) -> None:
        self.recorder = recorder
        self.looking = looking
        self._seen: object = None
        self._sink = udp()
        incoming = udp()
        self._here, self._there = ends.address_of(incoming), ends.address_of(self._sink)
        self._senders = [UdpBatchSender(udp()) for _ in range(peers)]
        self._pump = BatchPump(
            UdpBatchReceiver(incoming), UdpBatchSender(udp()), handler=self._forward
        )

    def _forward(self, batch: PacketBatch) -> PacketBatch:
        if self.looking:
            self._seen = batch.trains
        return batch.to(self._there)

    def _send(self, trains: list[PacketTrain]) -> int:
        for number, train in enumerate(trains):
            batch = PacketBatch([train.to(self._here)])
            self._senders[number % len(self._senders)].send_nowait(batch)
        return sum(map(len, trains))

    async def _pump_by_turns(self, trains: list[PacketTrain]) -> None:
        sent = 0
        async with trio.open_nursery() as nursery:
            await nursery.start(self._pump.run)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(ends.PATIENCE):
                for _ in range(ROUNDS):
                    # A long batch after a short one, so that the memory of the one before does not
                    # stand in for what it takes itself.
                    for some in (trains[:1], trains):
                        sent += self._send(some)  # no checkpoint: the pump finds all at once
                        while self._pump.statistics().datagrams_sent < sent:
                            await trio.lowlevel.checkpoint()
                        self._empty_the_sink()
            self._pump.close()

    def _empty_the_sink(self) -> None:
        with pytest.raises(BlockingIOError):
            while True:
                self._sink.recv(65_535)

    def measure(self, trains: list[PacketTrain]) -> tuple[Cost, Cost]:
        """What it takes to forward the first of these trains, and all of them."""
        meter = Meter(self.recorder)
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            trio.run(self._pump_by_turns, trains)
        finally:
            tracemalloc.stop()
            gc.enable()
        return meter.least(1), meter.least(len(trains))


@pytest.fixture
def recorder(linux_backend: None, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


SHAPES = {
    "trains alike": [PacketTrain(bytes(1400), 700, None)] * 64,
    "trains of many sizes": [PacketTrain(bytes(700 + 10 * n), 700, None) for n in range(64)],
    "single datagrams": [PacketTrain(bytes(500), 500, None)] * 64,
    "single datagrams of many sizes": [PacketTrain(bytes(300 + n), 400, None) for n in range(64)],
}


@pytest.mark.core
@pytest.mark.parametrize("peers", [1, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_forwarding_64_trains_makes_no_more_objects_than_forwarding_one(
    recorder: Recorder, udp: ends.MakeSocket, shape: str, peers: int
) -> None:
    one, many = Scene(recorder, udp, peers).measure(SHAPES[shape])
    assert abs(many.blocks - one.blocks) <= 8
    assert many.blocks <= 30
    if "many sizes" not in shape:
        # Sizes that differ are looked at as a list of ints for a moment.
        assert many.peak <= one.peak + 1000


def test_looking_at_the_trains_does_make_objects(recorder: Recorder, udp: ends.MakeSocket) -> None:
    """What the test above would see if forwarding made an object for each train."""
    if not sys.getallocatedblocks():  # PYTHONMALLOC=malloc, under a sanitizer
        pytest.skip("only Python's own allocator counts its blocks")
    one, many = Scene(recorder, udp, 64, looking=True).measure(SHAPES["trains of many sizes"])
    assert many.blocks >= one.blocks + 64


@pytest.mark.core
@pytest.mark.parametrize("shape", [*SHAPES, "long trains"])
def test_forwarding_copies_no_payload(recorder: Recorder, udp: ends.MakeSocket, shape: str) -> None:
    long_trains = [PacketTrain(bytes(24_000), 1200, None)] * 3
    trains = SHAPES.get(shape, long_trains)
    one, many = Scene(recorder, udp, 1).measure(trains)
    total = sum(train.nbytes for train in trains)
    assert many.peak < total / 2
    if shape == "long trains":
        assert max(one.peak, many.peak) < 24_000 / 2
    forwarded = [message for message in recorder.messages if message.name == sink_name(recorder)]
    assert len({base for message in forwarded for base in message.bases}) >= 1
    for message in forwarded:
        assert set(message.bases) <= recorder.received_at


def sink_name(recorder: Recorder) -> bytes:
    """The address of whom the last message was for: the sink's."""
    return recorder.messages[-1].name
