# The parts of the path that demo and bench stand on: the forwarding processes, the window, the
# ledger, the datagrams, the table.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from snaptun_trio import PacketTrain
from snaptun_trio._cli import _child, _datagrams, _demo_command, _path, _screen
from snaptun_trio._cli._ledger import Ledger, balance, lost_between
from snaptun_trio._cli._path import Result, Shape

from .command_line import HANG_GUARD_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

# --- the processes and the window -----------------------------------------------------------------


@pytest.mark.parametrize("name", _path.FORWARDERS)
async def test_a_process_that_gets_no_orders_ends_well(name: str) -> None:
    if name == "uvloop":
        pytest.importorskip("uvloop")
    with trio.fail_after(HANG_GUARD_SECONDS):
        async with _child.open_child("idle", (*_path.FORWARDERS[name], "9")) as child:
            assert (await child.ask())["port"] > 0
    assert child.process.returncode == 0


async def test_no_more_is_under_way_than_the_window_and_a_lost_one_is_written_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hole = tmp_path / "hole.py"
    hole.write_text("""
import sys, trio
from snaptun_trio._cli._forwarders import SocketForwarder, forward
forward(SocketForwarder(("127.0.0.1", int(sys.argv[1]))), lambda _: trio.run(trio.sleep_forever))
""")
    monkeypatch.setattr(_path, "WRITE_OFF_AFTER_SECONDS", 2 * HANG_GUARD_SECONDS)
    shape = Shape(100, 2)
    with trio.fail_after(HANG_GUARD_SECONDS):
        async with _path.open_path("hole", [str(hole)], checked=True) as path:
            facts = await path._forwarder.ask()
            window = _path.window_for(shape, facts["receive_buffer_size"])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(path.send, shape)
                while not path._sent:
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked()
                assert window // 2 < path._sent <= window
                nursery.cancel_scope.cancel()
            monkeypatch.setattr(_path, "WRITE_OFF_AFTER_SECONDS", 0.001)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(path.send, shape)
                while path._sent < 5 * window:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()


# --- the ledger ---------------------------------------------------------------------------------

DROPPED = "buffers_dropped_by_kernel"
SENDER = {"trains_sent": 100, "datagrams_sent": 5000}
FORWARDER: dict[str, Any] = {
    "trains_received": 97,
    "datagrams_received": 4850,
    DROPPED: 3,
    "gro": True,
    "trains_sent": 4850,
    "datagrams_sent": 4850,
    "datagrams_failed": 0,
}
SINK = {
    "trains_received": 4840,
    "datagrams_received": 4840,
    DROPPED: 10,
    "gro": False,
    "delivered": 4840,
    "duplicates": 0,
    "corrupt": 0,
}
BALANCED = balance(SENDER, FORWARDER, SINK, 50)


def test_dropped_buffers_are_turned_into_datagrams_exactly() -> None:
    assert lost_between("", SENDER, FORWARDER, 50) == (150, [])
    assert lost_between("", FORWARDER, SINK) == (10, [])
    sums = {"sent": 5000, "delivered": 4840, "dropped": 160, "unaccounted": 0}
    assert attrs.asdict(BALANCED) == {**sums, "problems": []}


def test_messages_of_mixed_lengths_are_balanced_by_message() -> None:
    assert lost_between("", SENDER, FORWARDER | {"datagrams_received": 4900}) == (100, [])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({DROPPED: 2}, "3 messages are missing, and the kernel counted 2 drops"),
        ({DROPPED: 4}, "3 messages are missing, and the kernel counted 4 drops"),
        ({DROPPED: None}, "3 messages are missing, and the kernel does not say"),
        ({"datagrams_received": 4849}, "151 datagrams are missing"),
        ({"datagrams_received": 4851}, "149 datagrams are missing"),
        ({"gro": False}, "150 datagrams are missing, and the kernel counted 3 drops"),
    ],
)
def test_a_hop_that_does_not_balance_says_what_is_missing(
    changes: dict[str, Any], says: str
) -> None:
    (problem,) = lost_between("a hop", SENDER, FORWARDER | changes, 50)[1]
    assert problem.startswith(f"a hop: {says}")


def test_a_dropped_message_held_a_datagram_at_least() -> None:
    (problem,) = lost_between("a hop", SENDER, FORWARDER | {"datagrams_received": 4998})[1]
    assert problem.startswith("a hop: 2 datagrams are missing")


@pytest.mark.parametrize(
    ("forwarder", "sink", "says"),
    [
        ({}, {"delivered": 4839}, "1 of those sent are neither delivered nor dropped"),
        ({}, {"delivered": 4841}, "-1 of those sent are neither delivered nor dropped"),
        ({}, {"duplicates": 2}, "2 datagrams arrived more than once"),
        ({}, {"corrupt": 2}, "2 datagrams arrived with a wrong checksum"),
        ({"datagrams_failed": 2}, {}, "2 datagrams the kernel refused to take from the forwarder"),
        ({"datagrams_sent": 4849}, {}, "1 datagrams are missing in the forwarder, between"),
        ({DROPPED: 2}, {}, "to the forwarder: 3 messages are missing"),
        ({}, {DROPPED: 9}, "from the forwarder to the sink: 10 datagrams are missing"),
    ],
)
def test_a_ledger_that_does_not_balance_says_why(
    forwarder: dict[str, Any], sink: dict[str, Any], says: str
) -> None:
    problems = balance(SENDER, FORWARDER | forwarder, SINK | sink, 50).problems
    assert any(says in problem for problem in problems), problems


def test_what_the_kernel_does_not_tell_is_not_guessed() -> None:
    assert balance(SENDER, FORWARDER, SINK | {DROPPED: None}, 50).dropped is None


# --- the rest -----------------------------------------------------------------------------------


def test_every_changed_bit_is_noticed() -> None:
    train = _datagrams.TrainMaker(20, 3, salt=7).make(40)
    packets = [train[start : start + 20] for start in range(0, 60, 20)]
    assert [_datagrams.number_of(packet, 7) for packet in packets] == [40, 41, 42]
    for place in range(20):
        for bit in range(8):
            changed = bytearray(packets[1])
            changed[place] ^= 1 << bit
            assert _datagrams.number_of(bytes(changed), 7) is None
    assert _datagrams.number_of(packets[1], 8) is None  # of another run
    assert _datagrams.number_of(packets[1][:-1], 7) is None
    assert _datagrams.number_of(train, 7) is None
    assert _datagrams.number_of(b"", 7) is None


def test_what_comes_twice_late_or_changed_is_counted() -> None:
    one, two, three = (_datagrams.TrainMaker(100, 1, salt=3).make(number) for number in range(3))
    arrivals = _datagrams.CheckedArrivals(salt=3)
    for packet in (one, three, two, two, b"x" + one[1:]):
        arrivals.take(PacketTrain(packet, 100, None))
    assert (arrivals.delivered, arrivals.duplicates, arrivals.corrupt) == (3, 1, 1)


@pytest.mark.parametrize(
    ("buffer", "window"),
    [(2304, 50), (425_984, 124), (1 << 30, _path.MOST_UNDER_WAY)],
    ids=["too small for a train", "a usual default", "huge"],
)
def test_the_window_follows_the_receive_buffer(buffer: int, window: int) -> None:
    assert _path.window_for(Shape(1200, 50), buffer) == window


@pytest.mark.parametrize(
    ("datagrams", "planned"),
    [(1, (0, 50)), (100, (50, 50)), (2001, (200, 1850)), (10**6, (5000, 995_000))],
)
def test_the_plan_is_whole_trains_and_warms_up(datagrams: int, planned: tuple[int, int]) -> None:
    assert _demo_command.plan(datagrams, 50) == planned


def result(name: str, cpu: float | None, ledger: Ledger = BALANCED) -> Result:
    return Result(
        **attrs.asdict(ledger),
        name=name,
        datagrams_per_second=None if cpu is None else 1e6 / cpu,
        cpu_microseconds=cpu,
        datagrams_per_call=None if cpu is None else 100.0,
        gro=True,
        gso=True,
        window=2000,
    )


def test_what_the_table_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with _screen.open_progress() as progress:
        progress("first", 0.0, "10 delivered")
        progress("first", 1.0, "30 delivered")
    untold = lost_between("another hop", FORWARDER, SINK | {DROPPED: None})[1]
    broken = attrs.evolve(BALANCED, dropped=None, problems=untold)
    results = [result("first", 0.25), result("short", None, broken), result("second", 20.0)]
    table, notes = _demo_command.table_of(results), _demo_command.summary(results)
    _screen.report(False, {}, table, notes)
    shown = capsys.readouterr()
    assert "30 delivered" in shown.err
    assert "4,000,000" in shown.out
    assert "too short to say" in shown.out
    assert "not told" in shown.out
    assert "A datagram costs first 80.0 times less CPU than second." in shown.out
    assert "IT DOES NOT ADD UP:" in shown.out
    assert "short: another hop: 10 datagrams are missing" in shown.out


def test_what_the_summary_says_when_the_pump_is_dearer_or_starved() -> None:
    dear = attrs.evolve(result("first", 30.0), window=63)
    text = " ".join(_demo_command.summary([dear, result("second", 20.0)]))
    assert "A datagram costs first 1.5 times more CPU than second." in text
    assert "Only 63 datagrams could be under way" in text
    assert "Everything adds up" in text
