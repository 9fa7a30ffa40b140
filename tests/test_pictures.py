# The pictures of the docs, and what the benchmark draws and writes for them.
#
# Whether a picture is right, only eyes can tell; that it is sound, says in words what it shows, and
# has the colours of the page it stands on, can be told here.

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from .benchmarks import _plot, _report
from .benchmarks._method import FLOOR, OURS, Measured, Row
from .benchmarks._shapes import SHAPES
from .examples import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DOCS = ROOT / "docs"
DRAWN = sorted(DOCS.rglob("*.svg"))
PAGES = "".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.rst")))
SVG = "{http://www.w3.org/2000/svg}"


def check(text: str) -> None:
    """A picture is XML, says what it is, and takes its colours from the page."""
    picture = ET.fromstring(text)
    title, description = picture.find(f"{SVG}title"), picture.find(f"{SVG}desc")
    assert title is not None
    assert title.text
    assert description is not None
    assert description.text
    assert picture.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert "var(--color-foreground-primary, #" in text
    assert "@media (prefers-color-scheme: dark)" in text
    _, _, width, height = map(float, str(picture.get("viewBox")).split())
    for words in picture.iter(f"{SVG}text"):
        assert 0 <= float(words.get("x", -1)) <= width
        assert 0 <= float(words.get("y", -1)) <= height


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.stem)
def test_pictures_are_sound(path: Path) -> None:
    check(path.read_text(encoding="utf-8"))


def test_pictures_have_names_of_their_own_and_one_style() -> None:
    texts = [path.read_text(encoding="utf-8") for path in DRAWN]
    names = [name for text in texts for name in re.findall(r'\bid="([^"]+)"', text)]
    assert len(names) == len(set(names))
    for kind in ("picture", "plot"):
        styles = {
            re.findall(r"<style>.*?</style>", text, re.DOTALL)[0]
            for text in texts
            if f'class="{kind}"' in text
        }
        assert len(styles) == 1


def test_every_picture_that_a_page_shows_is_there() -> None:
    shown = re.findall(r"\.\. picture:: (\S+)", PAGES)
    assert shown
    assert all((DOCS / file).is_file() for file in shown)


def measured(work: str, name: str) -> Measured:
    (shape,) = [shape for shape in SHAPES if shape.name == name]
    row = Row(work, shape, ipv6=False)
    return Measured(row, {FLOOR: [100.0, 120.0, 110.0], OURS: [150.0, 151.0, 152.0]})


def test_plots_show_and_say_the_medians() -> None:
    some = [measured("echo", "64p 1x100"), measured("pump", "1x1200"), measured("pump", "mix")]
    for picture in (_plot.draw(some), _plot.draw_few(some)):
        check(picture)
        assert "floor 110, snaptun_trio 151" in picture
        assert "<title>snaptun_trio: 151 ns</title>" in picture
    few = _plot.draw_few(some)
    assert few.count("<title>snaptun_trio") == 2, "mix is not of the few"
    assert few.index("forward single") < few.index("echo packet"), "the order is that of the list"


def test_tables_have_no_column_without_a_figure() -> None:
    lines = _report.rst_table("t (ns)", ("traffic", "ours", "uvloop"), [["mix", '1"', ""]])
    assert lines[-2:] == ['   "traffic","ours"', '   "mix","1"""']
    lines = _report.rst_table("t", _report.FACT_HEAD, [["a", "1 ms", "", "a note"]])
    assert "   :class: figures notes" in lines
    assert lines[-2] == '   " ","figure","note"'
