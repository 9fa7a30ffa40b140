# The parts of the demonstration: the processes' two ends, the ledger, the datagrams, the table.

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from snaptun_trio._demo import _datagrams, _ends, _run, _show, _talk
from snaptun_trio._demo._ledger import Hop, Ledger
from snaptun_trio._demo._run import Result, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

HANG_GUARD_SECONDS = 240


# --- the processes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [("-m", _run.ENDS, "sender"), ("-m", _run.ENDS, "sink"), *(leg.command for leg in _run.LEGS)],
    ids=["sender", "sink", "pump", "trio.socket"],
)
async def test_a_process_that_gets_no_orders_ends_well(command: tuple[str, ...]) -> None:
    with trio.fail_after(HANG_GUARD_SECONDS):
        async with _talk.open_child("idle", command) as child:
            assert (await child.answer())["port"] > 0
    assert child._process.returncode == 0


async def test_the_sink_counts_what_comes_twice_late_or_changed(
    nursery: trio.Nursery, settled: socket.socket
) -> None:
    one, two, three = (_datagrams.TrainMaker(100, 1, salt=3).make(number) for number in range(3))
    with await _ends.open_socket() as udp, await _ends.open_socket() as peer:
        settled.connect(peer.getsockname())
        sink = _ends.Sink(udp, settled, {"salt": 3, "settle_every": 3})
        await nursery.start(sink.run)
        for packet in (one, three, two, two, b"x" + one[1:]):
            await peer.sendto(packet, udp.getsockname())
        with trio.fail_after(HANG_GUARD_SECONDS):
            while sink.obey({})["datagrams"] < 5:
                await trio.lowlevel.checkpoint()
            # It tells how far everything is settled: the highest number, and one.
            assert _ends.SETTLED.unpack(await peer.recv(100)) == (3,)
        report = sink.obey({})
        nursery.cancel_scope.cancel()
    assert report["delivered"] == 3
    assert report["duplicates"] == 1
    assert report["corrupt"] == 1


async def test_the_sender_stops_at_its_window_and_writes_a_lost_one_off(
    nursery: trio.Nursery, settled: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    with await _ends.open_socket() as udp, await _ends.open_socket() as peer:
        settings = {
            "target": peer.getsockname()[1],
            "size": 100,
            "train": 2,
            "window": 4,
            "burst": 2,
            "salt": 3,
        }
        sender = _ends.Sender(udp, settled, settings)
        await nursery.start(sender.run)
        started = trio.current_time()
        sender.obey({"datagrams": 12, "seconds": 1e9})
        while sender.obey({})["busy"]:  # noqa: ASYNC110  # as the parent asks, but in no real time
            await trio.sleep(_ends.WRITE_OFF_AFTER_SECONDS / 4)
        assert sender.obey({})["sent"] == 12
        # Three windows, and nobody told anything: it waited twice.
        assert trio.current_time() - started >= 2 * _ends.WRITE_OFF_AFTER_SECONDS
        nursery.cancel_scope.cancel()


@pytest.fixture
def settled() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.setblocking(False)
        found.bind(("127.0.0.1", 0))
        yield found


# --- the ledger ---------------------------------------------------------------------------------

GOOD = Hop(
    name="a hop",
    messages_sent=100,
    datagrams_sent=5000,
    messages_received=97,
    datagrams_received=4850,
    buffers_dropped=3,
    gro=True,
    train=50,
)
SINGLE = Hop(
    name="another hop",
    messages_sent=4850,
    datagrams_sent=4850,
    messages_received=4840,
    datagrams_received=4840,
    buffers_dropped=10,
    gro=False,
)
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
        ({"buffers_dropped": 2}, "3 messages are missing, and the kernel counted 2 drops"),
        ({"buffers_dropped": 4}, "3 messages are missing, and the kernel counted 4 drops"),
        ({"buffers_dropped": None}, "3 messages are missing, and the kernel does not say"),
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
        ({"delivered": 4839}, "1 are not accounted for"),
        ({"delivered": 4841}, "-1 are not accounted for"),
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


@pytest.mark.parametrize(("size", "length"), [(11, 1), (1200, 0)])
def test_trains_that_cannot_be_made(size: int, length: int) -> None:
    with pytest.raises(ValueError, match="cannot make trains"):
        _datagrams.TrainMaker(size, length, salt=0)


@pytest.mark.parametrize(
    ("buffer", "window"),
    [(2304, 50), (425_984, 124), (1 << 30, _run.MOST_UNDER_WAY)],
    ids=["too small for a train", "a usual default", "huge"],
)
def test_the_window_follows_the_receive_buffer(buffer: int, window: int) -> None:
    settings = Settings(size=1200, train=50, datagrams=None, seconds=1)
    assert _run.window_for(settings, buffer) == window


@pytest.mark.parametrize(
    ("datagrams", "planned"),
    [(1, (0, 50)), (100, (50, 50)), (2001, (200, 1850)), (10**6, (5000, 995_000))],
)
def test_the_plan_is_whole_trains_and_warms_up(datagrams: int, planned: tuple[int, int]) -> None:
    settings = Settings(size=1200, train=50, datagrams=datagrams, seconds=1)
    assert _run.plan(settings) == planned


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


@pytest.mark.parametrize("screen", [_show.PlainScreen(), _show.RichScreen()], ids=["plain", "rich"])
def test_what_the_table_says(
    screen: _show.PlainScreen | _show.RichScreen,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if isinstance(screen, _show.RichScreen):
        pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "200")
    with screen.progress() as progress:
        progress("first", 0.0, 10)
        progress("first", 0.5, 20)
        progress("first", 1.0, 30)
    untold = attrs.evolve(SINGLE, buffers_dropped=None)
    broken = attrs.evolve(BALANCED, hops=(GOOD, untold))
    screen.table([result("first", 0.25), result("short", None, broken), result("second", 20.0)])
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
    text = " ".join(_show.summary([dear, result("second", 20.0)]))
    assert "A datagram costs first 1.5 times more CPU than second." in text
    assert "Only 63 datagrams could be under way" in text
    assert "Everything adds up" in text


def test_a_terminal_gets_one_line_that_changes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with _show.PlainScreen().progress() as progress:
        progress("first", 0.5, 20)
        progress("first", 1.0, 30)
    half, full = capsys.readouterr().err.split("\r")
    assert half.rstrip() == "first:  50%, 20 delivered"
    assert full.rstrip() == "first: 100%, 30 delivered"
    assert full.endswith("\n")
