# `snaptun-trio bench`: that it measures what it says, what it shows, and the picture. No figure is
# judged.

from __future__ import annotations

import contextlib
import importlib.util
import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import attrs
import pytest
import trio

from snaptun_trio._cli import _compare_commands, _terminal
from snaptun_trio._cli._compare_commands import FORWARDERS, SHAPES, Plan, draw, measure, summary
from snaptun_trio._cli._main import main
from snaptun_trio._cli._traffic import Result, Shape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"
COSTS = [
    Result(name, shape, 4321, 4321, cpu_microseconds=cost, datagrams_per_second=1e6 / cost)
    for shape in SHAPES
    for name, cost in {"snaptun_trio pump": 0.25, "trio.socket": 20.0, "<&>": 5.0}.items()
]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that are long enough to have figures."""
    monkeypatch.setattr(_compare_commands, "QUICK", (1, 0.02))


# --- the whole command --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_it_measures_each_shape_with_each_forwarder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "costs.svg"
    assert main(["bench", "--quick", "--json", "--plot", str(picture)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    found = json.loads(shown.out)
    assert found["adds_up"] is True
    installed = importlib.util.find_spec("uvloop") is not None
    names = [name for name in FORWARDERS if name != "uvloop" or installed]
    assert names[:3] == ["snaptun_trio pump", "trio.socket", "asyncio"]
    measured = [(one["shape"], one["forwarder"]) for one in found["results"]]
    assert measured == [(attrs.asdict(shape), name) for shape in SHAPES for name in names]
    for one in found["results"]:
        assert one["cpu_microseconds"] > 0
        assert one["datagrams_per_second"] > 0
        assert one["sent"] >= one["delivered"] > 0
    assert " CPUs, " in found["machine"][0]
    ElementTree.fromstring(picture.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_it_says_where_the_picture_is_and_that_uvloop_is_not_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(_compare_commands, "SHAPES", SHAPES[:1])
    picture = tmp_path / "costs.svg"
    assert main(["bench", "--quick", "--plot", str(picture)]) == 0
    shown = capsys.readouterr()
    assert "uvloop is not installed, and so it is not among them." in shown.out
    assert shown.out.count("uvloop") == 1
    assert shown.out.endswith(f"\nThe picture is in {picture}.\n")
    for words in ("snaptun_trio pump", "asyncio", " CPUs, ", "The backend is ", "adds up"):
        assert words in shown.out
    assert shown.err == ""
    drawn = "".join(ElementTree.fromstring(picture.read_text(encoding="utf-8")).itertext())
    assert "adds\N{NO-BREAK SPACE}up" in drawn
    assert "picture" not in drawn


@pytest.mark.usefixtures("short")
def test_a_forwarder_that_ends_early_ends_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compare_commands, "FORWARDERS", {"nobody": ("-c", "pass")})
    assert main(["bench", "--quick"]) == 1
    line = "snaptun-trio: the nobody process: it has ended\n"
    assert capsys.readouterr() == ("", line)


# --- the turns ------------------------------------------------------------------------------------


class Turns:
    """Stands in for the paths: each turn of whoever is asked gives the next of its results."""

    def __init__(self, **results: list[Result]) -> None:
        self.asked: list[tuple[str, Shape, int, float]] = []
        self.open: list[str] = []
        self._results = results

    @contextlib.contextmanager
    def open_path(self, name: str, *_command: str) -> Iterator[Turn]:
        self.open.append(name)
        yield Turn(self, name, self._results[name])
        self.open.remove(name)


@attrs.define
class Turn:
    """One of them."""

    turns: Turns
    name: str
    results: list[Result]

    async def send_all(self, shape: Shape, datagrams: int, seconds: float) -> Result:
        await trio.lowlevel.checkpoint()
        assert self.turns.open == ["one", "two"]
        self.turns.asked.append((self.name, shape, datagrams, seconds))
        return self.results.pop(0)


def costing(name: str, shape: Shape, *costs: float) -> list[Result]:
    return [Result(name, shape, 10, 10, cpu_microseconds=cost) for cost in costs]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compare_commands, "FORWARDERS", {"one": (), "two": ()})


@pytest.mark.usefixtures("two")
async def test_they_take_turns_and_the_best_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = SHAPES[:2]
    turns = Turns(
        one=[
            *(*costing("one", first, 2.0), *costing("one", second, 5.0)),
            *(*costing("one", first, 1.0), *costing("one", second, 6.0)),
        ],
        two=[
            *(*costing("two", first, 0.0), *costing("two", second, 7.0)),
            *(*costing("two", first, 9.0), Result("two", second, 10, 9, cpu_microseconds=8.0)),
        ],
    )
    monkeypatch.setattr(_compare_commands, "open_path", turns.open_path)
    said: list[str] = []
    results = await measure(Plan(("one", "two"), (first, second), 2, 0.3, 77), said.append)
    assert (
        turns.asked
        == [(name, shape, 77, 0.3) for shape in (first, second) for name in ("one", "two")] * 2
    )
    assert turns.open == []
    assert [(one.forwarder, one.shape, one.cpu_microseconds) for one in results] == [
        *(("one", first, 1.0), ("two", first, 9.0)),
        *(("one", second, 5.0), ("two", second, 8.0)),
    ]
    assert said[0] == f"1 of 8: one, {first}"
    assert said[-1] == f"8 of 8: two, {second}"


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("wrong_at", [0, 1, 2, 3])
def test_one_turn_that_does_not_add_up_exits_with_1_and_is_in_the_picture(
    wrong_at: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(_compare_commands, "SHAPES", SHAPES[:1])
    ours = costing("one", SHAPES[0], 4.0, 3.0, 2.0, 1.0)
    ours[wrong_at].damaged = 1
    turns = Turns(one=ours, two=costing("two", SHAPES[0], 4.0, 3.0, 2.0, 1.0))
    monkeypatch.setattr(_compare_commands, "open_path", turns.open_path)
    picture = tmp_path / "costs.svg"
    assert main(["bench", "--plot", str(picture)]) == 1
    shown = capsys.readouterr().out
    assert f"IT DOES NOT ADD UP:\none, {SHAPES[0]}: 0 of 10 are" in shown
    assert "two, " not in shown
    drawn = "".join(ElementTree.fromstring(picture.read_text(encoding="utf-8")).itertext())
    assert "IT\N{NO-BREAK SPACE}DOES\N{NO-BREAK SPACE}NOT" in drawn


# --- what is shown --------------------------------------------------------------------------------


def test_the_table_has_a_bar_for_each_cost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    _terminal.report(False, {}, _compare_commands.table_of(COSTS), [])
    shown = capsys.readouterr().out
    assert "…" not in shown, "nothing is cut"
    lines = shown.splitlines()
    assert len([line for line in lines if line.strip() in map(str, SHAPES)]) == len(SHAPES)
    bars = {line.split()[0]: line.count("█") for line in lines if "█" in line}
    assert bars["trio.socket"] == _compare_commands.BAR
    assert bars["<&>"] == _compare_commands.BAR // 4
    rows = [" ".join(line.split()) for line in lines]
    assert sum(row.endswith(" 4,000,000 4,321 4,321") for row in rows) == len(SHAPES)


def test_what_was_too_short_to_cost_anything_is_in_the_table_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    short = costing("one", SHAPES[3], 0.0) + costing("two", SHAPES[3], 0.0)
    _terminal.report(False, {}, _compare_commands.table_of(short), summary(short, []))
    shown = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert "one 0.00 0 10 10" in rows
    assert "times" not in shown


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [(0.25, 20.0, "80.0 times less"), (30.0, 20.0, "1.5 times more"), (2.0, 2.0, "1.0 times less")],
)
def test_the_summary_says_who_is_cheaper(ours: float, theirs: float, words: str) -> None:
    shape = SHAPES[0]
    costs = [*costing("ours", shape, ours), *costing("theirs", shape, theirs)]
    costs += costing("third", shape, 1000.0)
    assert summary(costs, []) == [
        f"Trains of 50 x 1200 bytes cost ours {words} CPU than theirs.",
        "Everything adds up: each was delivered unharmed or dropped by the kernel.",
    ]
    assert summary(costs, costs[2:]) == [
        f"Trains of 50 x 1200 bytes cost ours {words} CPU than theirs.",
        "IT DOES NOT ADD UP:",
        f"third, {costs[2]}",
    ]


def test_the_picture_is_whole_and_says_its_units() -> None:
    text = draw(COSTS, ["2 CPUs & more", "word " * 30])
    root = ElementTree.fromstring(text)
    rows: dict[str, str] = {}
    for element in root.iter(f"{SVG}text"):
        row = element.attrib["y"]
        rows[row] = f"{rows.get(row, '')} {element.text}"
    words = [" ".join(row.split()) for row in rows.values()]
    assert "CPU µs a datagram datagrams/s sent delivered" in words
    assert "2 CPUs & more" in words
    assert "…" not in text, "nothing is cut"
    assert "url(http" not in text, "it loads nothing from anywhere"
    for shape in SHAPES:
        assert words.count(str(shape)) == 1
    bars = [row.count("█") for row in words if "20.00 " in row]
    assert bars == [_compare_commands.BAR] * len(SHAPES)
    ours = [row for row in words if row.startswith("<&> 5.00 █████ 200,000 4,321 4,321")]
    assert len(ours) == len(SHAPES)
