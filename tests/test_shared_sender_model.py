# Any number of tasks on one sender: whatever they do, and in whatever order they run, nobody waits
# for ever, nothing is stranded or goes twice, each learns of its own refusals and of no other's,
# and each keeps its order.
#
# Time is trio's mock clock, which jumps when all tasks wait. A task that nobody wakes any more is
# seen at once by that, and one that spins by the number of its turns. That the model sees faults
# was tried with two dozen of them, planted one by one.

from __future__ import annotations

import contextlib
import errno
import random
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import Address, PacketBatch, PacketTrain, SendBatchError, UdpBatchSender
from snaptun_trio._send_queue import Submission

from . import ends, scripted
from .test_sender import check_law

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from snaptun_trio import SendFailure
    from snaptun_trio._kernel._pieces import OutgoingMessage

BAD: Address = ("127.0.0.9", 9)  # whatever is for this one is refused
PEERS: list[Address] = [("127.0.0.1", 9), ("127.0.0.2", 9), ("127.0.0.3", 9), BAD]
REFUSED = errno.EACCES
CALLS = ["packet"] * 5 + ["batch"] * 3 + ["long batch", "pump", "queue", "flush", "now", "nowait"]
MOST_TURNS = 20_000  # of all tasks together; a round takes some hundreds


class Answers:
    """What the kernel says to each message. There is always one more answer."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._full = chance.choice([0.1, 0.5, 0.8])
        self.takes_all = False

    def popleft(self) -> Callable[[OutgoingMessage], int]:
        return self._answer

    def _answer(self, first: OutgoingMessage) -> int:
        if not self.takes_all and self._chance.random() < self._full:
            return -errno.EAGAIN
        return -REFUSED if first.address == BAD else 1  # it knows no more than the first


class Turns(trio.abc.Instrument):
    """Cancels a scope after so many turns of tasks."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self._left = MOST_TURNS

    def before_task_step(self, _: trio.lowlevel.Task) -> None:
        self._left -= 1
        if not self._left:
            self._scope.cancel()


class Model:
    """Tasks on one sender, and what each of them was told."""

    def __init__(
        self, sender: UdpBatchSender, kernel: scripted.ScriptedKernel, chance: random.Random
    ) -> None:
        self.sender = sender
        self.kernel = kernel
        self.chance = chance
        self.told: Counter[bytes] = Counter()
        self.nobodys: set[bytes] = set()  # what somebody else may be told of
        self.order: defaultdict[tuple[int, Address | None], list[bytes]] = defaultdict(list)
        self.ended = 0

    async def task(self, number: int) -> None:
        for index in range(self.chance.randrange(1, 7)):
            await trio.sleep(self.chance.choice([0, 0, 0, 0.001, 0.004]))
            call = self.chance.choice(CALLS)
            count = {"packet": 1, "long batch": 20}.get(call, self.chance.randrange(1, 4))
            names = [b"%d.%d.%d" % (number, index, n) for n in range(count)]
            trains = [PacketTrain(name, len(name), self.chance.choice(PEERS)) for name in names]
            if call in ("flush", "now"):
                trains = []
            within = self.chance.choice([None, None, None, 0.0001, 0.001, 0.003])
            with trio.CancelScope() as scope:
                if within is not None:
                    scope.deadline = trio.current_time() + within
                await self.step(number, call, trains)
            if scope.cancelled_caught:
                # It may not even have been accepted, and whoever flushes is told of refusals.
                self.nobodys |= bad_of(trains)
        self.ended += 1

    async def step(self, number: int, call: str, trains: list[PacketTrain]) -> None:
        for train in trains:
            self.order[number, train.address].append(bytes(train.data))
        told: set[bytes] = set()
        others = call in ("queue", "flush", "now", "nowait")
        if others:  # what is queued without waiting is nobody's, and flushing tells of it
            self.nobodys |= bad_of(trains)
        try:
            await self.call(call, trains)
        except PermissionError:
            assert call == "packet"
            told = bad_of(trains)
            assert told, "told of another's refusal"
        except SendBatchError as error:
            told = named(error.failures)
        except trio.WouldBlock:
            return
        self.told.update(told)
        if others:
            assert told <= self.nobodys, "told of another's refusal"
        else:
            assert told == bad_of(trains), "not told, or of another's refusal"
        if not others:
            self.check_done(trains)

    def check_done(self, trains: list[PacketTrain]) -> None:
        sent = set(self.kernel.payloads)
        good = [bytes(train.data) for train in trains if train.address != BAD]
        assert sent.issuperset(good), "returned, and never sent"

    async def call(self, call: str, trains: list[PacketTrain]) -> None:
        match call:
            case "packet":
                await self.sender.send_packet(bytes(trains[0].data), trains[0].address)
            case "batch" | "long batch":
                await self.sender.send(PacketBatch(tuple(trains)))
            case "nowait":
                self.sender.send_nowait(PacketBatch(tuple(trains)))
            case "pump":
                await self.pump(trains)
            case "queue":
                for train in trains:
                    if not self.sender.is_full:
                        self.sender.try_queue_packet(bytes(train.data), train.address)
                await self.sender.flush()
            case "now":
                self.sender.try_flush_best_effort()
            case _:
                await self.sender.flush()

    async def pump(self, trains: list[PacketTrain]) -> None:
        """As a pump does it, which takes back what is left when it is cancelled."""
        submission = Submission()
        try:
            await self.sender._shared.send_batch(
                self.sender._accept(PacketBatch(tuple(trains))), submission
            )
        except BaseException:
            self.sender._withdraw(submission)
            assert submission.waiting == 0
            raise
        assert submission.sent + sum(submission.failed.values()) == len(trains)
        if submission.failures:
            raise SendBatchError(submission.failures)


def bad_of(trains: Iterable[PacketTrain]) -> set[bytes]:
    """What of it is refused."""
    return {bytes(train.data) for train in trains if train.address == BAD}


def named(failures: Iterable[SendFailure]) -> set[bytes]:
    """Whose refusal these are."""
    return {bytes(packet) for failure in failures for packet in failure.train}


@pytest.mark.parametrize("first_seed", range(0, 300, 50))
def test_any_tasks_in_any_order(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 50):
        with pytest.MonkeyPatch.context() as patch, contextlib.closing(ends.bound_socket()) as sock:
            one_round(patch, sock, random.Random(seed), f"seed {seed}")


def one_round(
    patch: pytest.MonkeyPatch, sock: socket.socket, chance: random.Random, seed: str
) -> None:
    kernel = scripted.install(patch)
    # Which of the tasks that can run runs first is trio's own random choice.
    patch.setattr("trio._core._run._r", chance)

    async def wait_writable(_: object) -> None:
        await trio.sleep(chance.choice([0, 0.0005, 0.002]))

    patch.setattr(kernel.waits, "wait_writable", wait_writable)
    patch.setattr(kernel, "sends", answers := Answers(chance))
    kernel.ready = False  # so that no wait is in vain
    sender = UdpBatchSender(
        sock, batch_size=chance.choice([1, 2, 4, 16]), gso=chance.random() < 0.5
    )
    model = Model(sender, kernel, chance)
    tasks = chance.randrange(2, 9)

    async def main() -> None:
        with trio.move_on_after(60) as scope:
            turns = Turns(scope)
            trio.lowlevel.add_instrument(turns)
            async with trio.open_nursery() as nursery:
                for number in range(tasks):
                    nursery.start_soon(model.task, number)
            assert not sender._shared._waiting, f"nobody is there, and some wait; {seed}"
            assert sender._shared._to_let_in == 0
            answers.takes_all = True
            with contextlib.suppress(trio.WouldBlock):
                try:  # what cancelled calls left
                    await sender.flush()
                except SendBatchError as error:
                    told = named(error.failures)
                    assert told <= model.nobodys, f"told of another's refusal; {seed}"
                    model.told.update(told)
            trio.lowlevel.remove_instrument(turns)
        assert not scope.cancelled_caught, f"somebody waits for ever, or spins; {seed}"

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    check_law(sender)
    assert sender.is_empty
    assert model.ended == tasks
    sent = Counter(kernel.payloads)
    assert set(sent.values()) <= {1}, f"sent twice; {seed}"
    assert set(model.told.values()) <= {1}, f"told twice; {seed}"
    assert sender.statistics().datagrams_failed == model.told.total(), f"not told; {seed}"
    for (_, address), packets in model.order.items():
        went = [payload for payload, peer in kernel.sent if peer == address]
        own = [packet for packet in went if packet in packets]
        assert own == [packet for packet in packets if packet in own], f"out of order; {seed}"
