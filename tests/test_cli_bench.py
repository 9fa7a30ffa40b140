# `snaptun-trio bench`: that it measures what it says, what it shows, and the picture. No figure is
# judged.

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from snaptun_trio._cli import _bench_command, _path, _screen
from snaptun_trio._cli._bench_command import SHAPES, Cost, draw
from snaptun_trio._cli._main import main

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"
COSTS = [
    Cost(shape, name, cost, 1e6 / cost)
    for shape in SHAPES
    for name, cost in {"snaptun_trio pump": 0.25, "trio.socket": 20.0, "<&>": 5.0}.items()
]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that are long enough to have figures."""
    monkeypatch.setattr(_bench_command, "QUICK_ROUNDS", 1)
    monkeypatch.setattr(_bench_command, "QUICK_SECONDS", 0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_it_measures_each_shape_with_each_forwarder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "costs.svg"
    assert main(["bench", "--quick", "--json", "--plot", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["uvloop"] == (importlib.util.find_spec("uvloop") is not None)
    names = [name for name in _path.FORWARDERS if name != "uvloop" or found["uvloop"]]
    measured = [(one["shape"]["size"], one["forwarder"]) for one in found["results"]]
    assert measured == [(shape.size, name) for shape in SHAPES for name in names]
    for one in found["results"]:
        assert one["cpu_microseconds"] > 0
        assert one["datagrams_per_second"] > 0
    assert found["cpus"] >= 1
    ElementTree.fromstring(picture.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_it_says_that_uvloop_is_not_installed_and_which_machine_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(_bench_command, "SHAPES", SHAPES[:1])
    assert main(["bench", "--quick"]) == 0
    shown = capsys.readouterr()
    assert "uvloop is not installed, and so it is not among them." in shown.out
    assert shown.out.count("uvloop") == 1
    for words in ("snaptun_trio pump", "asyncio", " CPUs, ", "The backend is "):
        assert words in shown.out
    assert "measuring" in shown.err


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_forwarder_that_does_not_add_up_ends_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bench_command, "FORWARDERS", {"nobody": ("-c", "pass")})
    assert main(["bench", "--quick"]) == 1
    assert capsys.readouterr().err.endswith("snaptun-trio: the nobody process ended early\n")


def test_the_table_has_a_bar_for_each_cost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _screen.report(False, {}, _bench_command.table_of(COSTS), [])
    shown = capsys.readouterr().out
    assert "…" not in shown, "nothing is cut"
    lines = shown.splitlines()
    assert len([line for line in lines if line.strip() in map(str, SHAPES)]) == len(SHAPES)
    bars = {line.split()[0]: line.count("█") for line in lines if "█" in line}
    assert bars["trio.socket"] == _bench_command.BAR
    assert bars["<&>"] == _bench_command.BAR // 4
    assert "4,000,000" in "".join(lines)


def test_a_shape_says_what_it_is() -> None:
    assert list(map(str, SHAPES)) == [
        "trains of 50 x 1200 bytes",
        "trains of 16 x 1200 bytes",
        "trains of 64 x 64 bytes",
        "singles of 1200 bytes",
    ]


def test_the_picture_is_whole_and_says_its_units() -> None:
    text = draw(COSTS, ["2 CPUs & more", "word " * 30])
    root = ElementTree.fromstring(text)
    rows: dict[str, str] = {}
    for element in root.iter(f"{SVG}text"):
        row = element.attrib["y"]
        rows[row] = f"{rows.get(row, '')} {element.text}"
    words = [" ".join(row.split()) for row in rows.values()]
    assert "CPU µs a datagram datagrams/s" in words
    assert "2 CPUs & more" in words
    assert "…" not in text, "nothing is cut"
    assert "url(http" not in text, "it loads nothing from anywhere"
    for shape in SHAPES:
        assert words.count(str(shape)) == 1
    bars = [row.count("█") for row in words if "20.00 " in row]
    assert bars == [_bench_command.BAR] * len(SHAPES)
    assert len([row for row in words if row.startswith("<&> 5.00 █████ 200,000")]) == len(SHAPES)
