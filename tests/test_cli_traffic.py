# What demo and bench stand on: the forwarding processes, how much is under way, what is noticed of
# a forwarder that does wrong, and when it adds up. No command is around it.

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import pytest
import trio
import trio.testing

from snaptun_trio._cli import _traffic
from snaptun_trio._cli._compare_commands import FORWARDERS
from snaptun_trio._cli._forwarders import LOOPBACK, PUMP, open_end
from snaptun_trio._cli._terminal import CommandError
from snaptun_trio._cli._traffic import MOST_AT_ONCE, Result, Shape, open_path

from .command_line import HANG_GUARD_SECONDS, environment_for, linux_only
from .forwarding_wrongly import HOLE, script_of

if TYPE_CHECKING:
    from snaptun_trio import PacketBatch, UdpBatchReceiver

SINGLES, TRAINS = Shape(100, 1), Shape(100, 50)


# --- the processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORWARDERS)
def test_each_forwarder_is_what_it_says_and_ends_with_its_standard_input(name: str) -> None:
    if name == "uvloop":
        pytest.importorskip("uvloop")
    with open_end() as udp:
        udp.settimeout(HANG_GUARD_SECONDS)
        with subprocess.Popen(
            [sys.executable, "-P", *FORWARDERS[name], str(udp.getsockname()[1])],
            env=environment_for(None, {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stderr is not None
                process.stdin.write("\n")
                process.stdin.flush()
                told = json.loads(process.stdout.readline())
                assert sorted(told) == ["buffer", "cpu", "dropped", "port"]
                udp.sendto(b"there and back", (LOOPBACK, told["port"]))
                assert udp.recvfrom(100) == (b"there and back", (LOOPBACK, told["port"]))
                if sys.platform == "linux":
                    mapped = Path(f"/proc/{process.pid}/maps").read_text()
                    assert ("uvloop" in mapped) == (name == "uvloop")
                process.stdin.close()
                assert (process.stdout.read(), process.stderr.read()) == ("", "")
                assert process.wait(HANG_GUARD_SECONDS) == 0
            finally:
                process.kill()


def test_at_the_end_of_the_block_the_process_has_ended() -> None:
    with open_path("busy", "-c", "while True: pass") as path:
        process = path._forwarder
        assert process.poll() is None
    assert process.returncode is not None


async def test_a_process_that_is_gone_is_told() -> None:
    with open_path("gone", "-c", "pass") as path:
        path._forwarder.wait(HANG_GUARD_SECONDS)
        for _ in range(2):
            with pytest.raises(CommandError, match=r"^the gone process: it has ended$"):
                await path.send_all(SINGLES, 1, math.inf)


# --- how much is under way ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "buffer", "burst"),
    [
        (Shape(1200, 50), 2304, 50),
        (Shape(1200, 50), 425_984, 100),
        (Shape(1200, 1), 425_984, 124),
        (Shape(1200, 50), 1 << 30, MOST_AT_ONCE),
        (Shape(8, 600), 1 << 30, 600),
        (Shape(8, 5000), 1 << 30, 5000),
    ],
    ids=["too small", "a usual default", "singles", "huge", "whole trains", "one train"],
)
def test_a_burst_follows_the_receive_buffer(shape: Shape, buffer: int, burst: int) -> None:
    assert shape.burst_for(buffer) == burst


def test_a_shape_says_what_it_is() -> None:
    assert str(TRAINS) == "trains of 50 x 100 bytes"
    assert str(SINGLES) == "singles of 100 bytes"


async def test_no_more_is_under_way_than_a_burst_and_what_is_lost_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_traffic, "DROPPED_AFTER_SECONDS", 2 * HANG_GUARD_SECONDS)
    with open_path("hole", script_of(tmp_path, HOLE)) as path:
        burst = TRAINS.burst_for(path._ask()["buffer"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(path.send_all, TRAINS, 5 * burst, math.inf)
            while not path._next:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            assert path._next == burst
            nursery.cancel_scope.cancel()
        monkeypatch.setattr(_traffic, "DROPPED_AFTER_SECONDS", 0.001)
        monkeypatch.setattr(_traffic, "LOST_AFTER_SECONDS", 0.01)
        result = await path.send_all(TRAINS, 3 * burst, math.inf)
    assert (result.sent, result.delivered, result.messages_dropped) == (3 * burst, 0, 0)
    assert not result.adds_up


@pytest.mark.parametrize(
    ("datagrams", "seconds", "sent"),
    [(1, math.inf, 50), (50, math.inf, 50), (51, math.inf, 100), (1 << 62, 1e-15, None)],
)
async def test_whole_trains_are_sent_and_one_burst_at_least(
    datagrams: int, seconds: float, sent: int | None
) -> None:
    with open_path(PUMP, *FORWARDERS[PUMP]) as path:
        burst = TRAINS.burst_for(path._ask()["buffer"])
        result = await path.send_all(TRAINS, datagrams, seconds)
        assert path._next == result.sent == result.delivered == (sent or burst)
        assert result.datagrams_per_second > 0
        assert result.adds_up
        again = await path.send_all(SINGLES, 7, math.inf)
    assert attrs.astuple(again, recurse=False)[:4] == (PUMP, SINGLES, 7, 7)


async def test_the_smaller_of_both_receive_buffers_counts(tmp_path: Path) -> None:
    for size in (1, 1 << 40):
        script = script_of(tmp_path, f"tell(receive_buffer_size={size})\n{HOLE}")
        with open_path("hole", script) as path:
            own = path._receiver.statistics().receive_buffer_size
            assert path._ask()["buffer"] == min(size, own)


# --- what is noticed ------------------------------------------------------------------------------


async def sent_through(
    monkeypatch: pytest.MonkeyPatch, directory: Path, code: str, datagrams: int = 200
) -> Result:
    """What came of sending so many, one by one, to a forwarder with this code."""
    monkeypatch.setattr(_traffic, "LOST_AFTER_SECONDS", 3.0)
    with open_path("wrong", script_of(directory, code)) as path:
        return await path.send_all(SINGLES, datagrams, math.inf)


CHANGES = {
    "a bit of the number": "[packet[:7] + bytes([packet[7] ^ 1]) + packet[8:]]",
    "the last bit": "[packet[:-1] + bytes([packet[-1] ^ 1])]",
    "cut by a byte": "[packet[:-1]]",
    "a byte more": "[packet + bytes(1)]",
    "two in one": "[packet + packet]",
    "nothing in it": "[b'']",
    "somebody else's": "[packet[:8] + bytes(92)]",
}


@pytest.mark.slow
async def test_every_change_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = "".join(f"lambda packet: {change}, " for change in CHANGES.values())
    code = f"""
        changes = [{changes}]
        play_changing(lambda packet, n: changes[n](packet) if n < len(changes) else [packet])
    """
    result = await sent_through(monkeypatch, tmp_path, code)
    assert (result.sent, result.delivered) == (200, 200 - len(CHANGES))
    assert (result.damaged, result.messages_dropped) == (len(CHANGES), 0)
    assert not result.adds_up


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "delivered", "damaged"),
    [
        ("[packet] * (1 + (n == 150))", 200, 1),
        ("[packet] * (n != 0)", 199, 0),
        ("[packet] * (n != 199)", 199, 0),
        ("[packet] * (2 * (n == 1) + (n > 1))", 199, 1),
    ],
    ids=["twice", "not the first", "not the last", "lost and twice"],
)
async def test_what_is_lost_or_comes_once_more_is_noticed(
    what: str, delivered: int, damaged: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"play_changing(lambda packet, n: {what})"
    result = await sent_through(monkeypatch, tmp_path, code)
    assert (result.sent, result.delivered, result.damaged) == (200, delivered, damaged)
    assert not result.adds_up


@pytest.mark.slow
async def test_so_is_it_of_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_traffic, "AGAIN_WITHIN_SECONDS", 3.0)
    code = "play_changing(lambda packet, n: [packet] * (1 + (n == 199)))"
    result = await sent_through(monkeypatch, tmp_path, code)
    assert (result.sent, result.delivered, result.damaged) == (200, 200, 1)
    assert not result.adds_up


@pytest.mark.slow
async def test_what_comes_again_in_a_later_burst_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        kept = []

        def again(packet, number):
            kept.append(packet)
            return [packet, kept[0]] if number == 1500 else [packet]

        tell(receive_buffer_size=1 << 30)
        play_changing(again)
    """
    result = await sent_through(monkeypatch, tmp_path, code, 2000)
    assert (result.sent, result.delivered, result.damaged) == (2000, 2000, 1)
    assert not result.adds_up


async def test_order_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        held = []

        def swap(packet, number):
            held.append(packet)
            return [held.pop(), held.pop()] if number % 2 else []

        play_changing(swap)
    """
    result = await sent_through(monkeypatch, tmp_path, code)
    assert (result.sent, result.delivered, result.damaged) == (200, 200, 0)
    assert result.adds_up


async def test_what_one_path_sends_does_not_pass_on_another() -> None:
    nobody = cast("Any", None)
    with open_end() as one, open_end() as other:
        to_itself = one.getsockname()
        sent = [
            await _traffic.Path("", udp, nobody)._send(50, TRAINS, to_itself)
            for udp in (one, other)
        ]
    assert len(sent[0]) == len(sent[1]) == 50
    assert sent[0].isdisjoint(sent[1])
    assert {len(packet) for packets in sent for packet in packets} == {100}


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("kind", ["PUMP", "'trio.socket'"])
@pytest.mark.parametrize("told", [True, False])
async def test_what_the_kernel_drops_is_accounted_for_to_the_datagram(
    kind: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The forwarder's receive buffer is the smallest there is, behind the sender's back, and it
    # does not read on until the kernel has dropped something.
    code = f"""
        forward, open_end = FORWARDERS[{kind}], _forwarders.open_end
        UdpBatchReceiver = _forwarders.UdpBatchReceiver
        tell(receive_buffer_size=4 << 20{"" if told else ", buffers_dropped_by_kernel=None"})

        def open_small_end():  # and count what it drops, before anybody knows its port
            global dropped
            udp = open_end()
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            dropped = UdpBatchReceiver(udp, gro={kind} == PUMP).statistics
            return udp

        def run_slowly(udp, target):
            give_up = time.monotonic() + 60
            while not dropped().buffers_dropped_by_kernel and time.monotonic() < give_up:
                time.sleep(0.001)
            forward(udp, target)

        _forwarders.open_end = open_small_end
        FORWARDERS[{kind}] = run_slowly
        _forwarders.main({kind}, sys.argv[1])
    """
    monkeypatch.setattr(_traffic, "LOST_AFTER_SECONDS", 3.0)
    with open_path("slow", script_of(tmp_path, code)) as path:
        result = await path.send_all(TRAINS, 2000, math.inf)
    assert (result.sent, result.damaged) == (2000, 0)
    missing = result.sent - result.delivered
    assert 0 < missing < 2000
    if told:
        assert missing == result.messages_dropped * (50 if kind == "PUMP" else 1)
        assert result.adds_up
    else:
        assert result.messages_dropped == 0, "what it does not tell is not guessed"
        assert not result.adds_up


class Late:
    """A receiver that takes nothing before the kernel has dropped something."""

    def __init__(self, receiver: UdpBatchReceiver) -> None:
        self._receiver = receiver
        self.statistics = receiver.statistics

    async def receive(self) -> PacketBatch:
        while not self.statistics().buffers_dropped_by_kernel:
            await trio.lowlevel.checkpoint()
        return await self._receiver.receive()


@pytest.mark.slow
@linux_only
async def test_so_is_what_it_drops_on_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_end() as udp:
        monkeypatch.setattr(_traffic, "open_end", lambda: udp)
        with open_path("loop", *FORWARDERS["trio.socket"]) as path:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            monkeypatch.setattr(path, "_receiver", Late(path._receiver))
            result = await path.send_all(TRAINS, 50, math.inf)
    assert (result.sent, result.damaged) == (50, 0)
    assert 0 < result.sent - result.delivered == result.messages_dropped
    assert result.adds_up


# --- when it adds up ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "delivered", "damaged", "dropped", "adds_up"),
    [
        (300, 300, 0, 0, True),
        (300, 299, 0, 0, False),
        (300, 301, 0, 0, False),
        (300, 300, 1, 0, False),
        (300, 299, 1, 1, False),
        (300, 300, 0, 1, False),
        (300, 299, 0, 1, True),
        (300, 172, 0, 1, True),
        (300, 171, 0, 1, False),
        (300, 299, 0, 2, False),
        (300, 298, 0, 2, True),
        (300, 44, 0, 2, True),
        (300, 43, 0, 2, False),
        (300, 0, 0, 3, True),
        (300, 0, 0, 0, False),
    ],
)
def test_a_dropped_message_explains_up_to_128_datagrams_and_nothing_else_does(
    sent: int, delivered: int, damaged: int, dropped: int, adds_up: bool
) -> None:
    result = Result("it", TRAINS, sent, delivered, damaged, dropped)
    assert result.adds_up is adds_up
    assert str(result) == (
        f"trains of 50 x 100 bytes: {sent - delivered} of {sent} are missing, "
        f"{damaged} came changed or once more, the kernel has dropped {dropped} messages"
    )


def test_of_several_results_the_one_that_does_not_add_up_counts_or_else_the_cheapest() -> None:
    cheap, dear, short, wrong = (
        Result("it", SINGLES, 10, delivered, cpu_microseconds=cost)
        for delivered, cost in ((10, 1.0), (10, 2.0), (10, 0.0), (9, 3.0))
    )
    for results, least in (
        ((dear, cheap, short), cheap),
        ((short, dear), dear),
        ((cheap, wrong, short), wrong),
    ):
        assert min(results, key=Result.rank) is least
        assert min(reversed(results), key=Result.rank) is least
