# The parts of the path that demo and bench stand on: the processes' two ends, the ledger, the
# datagrams, the table.

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
import trio.testing

from snaptun_trio._cli import _datagrams, _demo_command, _ends, _path, _screen, _talk
from snaptun_trio._cli._ledger import Hop, Ledger
from snaptun_trio._cli._path import Result, Shape

from .command_line import HANG_GUARD_SECONDS
from .ends import bound_socket

# --- the processes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [("-m", _path.ENDS, "sender"), ("-m", _path.ENDS, "sink"), *_path.FORWARDERS.values()],
    ids=["sender", "sink", *_path.FORWARDERS],
)
async def test_a_process_that_gets_no_orders_ends_well(command: tuple[str, ...]) -> None:
    if command[-1] == "uvloop":
        pytest.importorskip("uvloop")
    with trio.fail_after(HANG_GUARD_SECONDS):
        async with _talk.open_child("idle", command) as child:
            assert (await child.ask())["port"] > 0
    assert child.process.returncode == 0


async def test_the_sink_counts_what_comes_twice_late_or_changed(nursery: trio.Nursery) -> None:
    one, two, three = (_datagrams.TrainMaker(100, 1, salt=3).make(number) for number in range(3))
    sink = _ends.Sink()
    with sink.udp, bound_socket() as stdlib_peer:
        peer = trio.socket.from_stdlib_socket(stdlib_peer)
        sink.obey({"salt": 3, "every": 3, "tell": peer.getsockname()[1]})
        nursery.start_soon(sink.run)
        for packet in (one, three, two, two, b"x" + one[1:]):
            await peer.sendto(packet, sink.udp.getsockname())
        with trio.fail_after(HANG_GUARD_SECONDS):
            while sink.obey({})["datagrams_received"] < 5:
                await trio.lowlevel.checkpoint()
            # It tells how far everything is settled: the highest number, and one.
            assert int.from_bytes(await peer.recv(100), "big") == 3
        report = sink.obey({})
        nursery.cancel_scope.cancel()
    assert report["delivered"] == 3
    assert report["duplicates"] == 1
    assert report["corrupt"] == 1


async def test_the_sender_stops_at_its_window_and_writes_a_lost_one_off(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    sender = _ends.Sender()
    with sender.udp, bound_socket() as peer:
        nursery.start_soon(sender.run)
        started = trio.current_time()
        sender.obey(
            {"target": peer.getsockname()[1], "size": 100, "train": 2, "window": 4, "burst": 2}
            | {"salt": 3, "datagrams": 12, "seconds": 1e9}
        )
        while sender.obey({})["busy"]:  # noqa: ASYNC110  # as the command asks, but in no real time
            await trio.sleep(_ends.WRITE_OFF_AFTER_SECONDS / 4)
        assert sender.obey({})["datagrams_sent"] == 12
        # Three windows, and nobody told anything: it waited twice.
        assert trio.current_time() - started >= 2 * _ends.WRITE_OFF_AFTER_SECONDS
        nursery.cancel_scope.cancel()


async def test_the_sender_goes_on_when_it_is_told_that_a_window_is_settled(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    sender = _ends.Sender()
    with sender.udp, bound_socket() as peer:
        nursery.start_soon(sender.run)
        sender.obey(
            {"target": peer.getsockname()[1], "size": 100, "train": 2, "window": 4, "burst": 2}
            | {"salt": 3, "datagrams": 8, "seconds": 1e9}
        )
        peer.sendto((4).to_bytes(8, "big"), sender.udp.getsockname())
        autojump_clock.autojump_threshold = HANG_GUARD_SECONDS  # it is real input that it waits for
        with trio.fail_after(HANG_GUARD_SECONDS):
            while sender.obey({})["busy"]:
                await trio.lowlevel.checkpoint()
        assert sender.obey({})["datagrams_sent"] == 8
        assert sender.settled == 4, "and nothing was written off"
        nursery.cancel_scope.cancel()


# --- the ledger ---------------------------------------------------------------------------------

GOOD = Hop(
    name="a hop",
    trains_sent=100,
    datagrams_sent=5000,
    trains_received=97,
    datagrams_received=4850,
    buffers_dropped_by_kernel=3,
    gro=True,
    train=50,
)
SINGLE = Hop(
    name="another hop",
    trains_sent=4850,
    datagrams_sent=4850,
    trains_received=4840,
    datagrams_received=4840,
    buffers_dropped_by_kernel=10,
    gro=False,
)
DROPPED = "buffers_dropped_by_kernel"
BALANCED = Ledger(hops=(GOOD, SINGLE), delivered=4840, duplicates=0, corrupt=0, refused=0)


def test_dropped_buffers_are_turned_into_datagrams_exactly() -> None:
    assert GOOD.dropped == 150
    assert SINGLE.dropped == 10
    assert BALANCED.problems == []
    assert (BALANCED.sent, BALANCED.dropped, BALANCED.unaccounted) == (5000, 160, 0)


def test_messages_of_mixed_lengths_are_balanced_by_message() -> None:
    mixed = attrs.evolve(GOOD, train=None, datagrams_received=4900)
    assert mixed.dropped == 100
    assert list(mixed.problems()) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"buffers_dropped_by_kernel": 2},
            "3 messages are missing, and the kernel counted 2 drops",
        ),
        (
            {"buffers_dropped_by_kernel": 4},
            "3 messages are missing, and the kernel counted 4 drops",
        ),
        (
            {"buffers_dropped_by_kernel": None},
            "3 messages are missing, and the kernel does not say",
        ),
        ({"datagrams_received": 4849}, "151 datagrams are missing"),
        ({"datagrams_received": 4851}, "149 datagrams are missing"),
        ({"train": None, "datagrams_received": 4998}, "2 datagrams are missing"),
        ({"gro": False}, "150 datagrams are missing, and the kernel counted 3 drops"),
    ],
)
def test_a_hop_that_does_not_balance_says_what_is_missing(
    changes: dict[str, Any], says: str
) -> None:
    (problem,) = attrs.evolve(GOOD, **changes).problems()
    assert problem.startswith(f"a hop: {says}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"delivered": 4839}, "1 of those sent are neither delivered nor dropped"),
        ({"delivered": 4841}, "-1 of those sent are neither delivered nor dropped"),
        ({"duplicates": 2}, "2 datagrams arrived more than once"),
        ({"corrupt": 2}, "2 datagrams arrived with a wrong checksum"),
        ({"refused": 2}, "2 datagrams the kernel refused to take from the forwarder"),
    ],
)
def test_a_ledger_that_does_not_balance_says_why(changes: dict[str, Any], says: str) -> None:
    problems = attrs.evolve(BALANCED, **changes).problems
    assert any(says in problem for problem in problems), problems


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
        name=name,
        ledger=ledger,
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
    untold = attrs.evolve(SINGLE, buffers_dropped_by_kernel=None)
    broken = attrs.evolve(BALANCED, hops=(GOOD, untold))
    _demo_command.show(
        [result("first", 0.25), result("short", None, broken), result("second", 20.0)]
    )
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
