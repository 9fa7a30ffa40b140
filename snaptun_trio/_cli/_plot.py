# The picture of `bench`: a bar for each cost, as an SVG written by hand. It knows only costs.

from __future__ import annotations

import itertools
import textwrap
from html import escape
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._path import Shape

# The palette of Okabe and Ito, which colour-blind readers can tell apart, on light and on dark.
COLOURS = ("#d55e00", "#0072b2", "#56b4e9", "#009e73")
LEFT, WIDTH, ROW, BAR = 160, 760, 24, 460
STYLE = (
    "svg{background:#fff}text{fill:#222;font:13px sans-serif}.t{font-weight:bold}"
    "@media(prefers-color-scheme:dark){svg{background:#161616}text{fill:#eee}}"
)


@attrs.frozen
class Cost:
    """The best that a forwarder did with a shape."""

    shape: Shape
    forwarder: str
    cpu_microseconds: float
    datagrams_per_second: float


def draw(costs: Sequence[Cost], notes: Sequence[str]) -> str:
    """The whole picture; the bars of each shape are to a scale of their own."""
    marks, y = [_text(12, 24, "CPU microseconds a datagram (shorter is better)", "t")], 24
    for shape, group in itertools.groupby(costs, key=lambda cost: cost.shape):
        y += 2 * ROW
        marks.append(_text(12, y, str(shape), "t"))
        shown = list(group)
        scale = BAR / max(cost.cpu_microseconds for cost in shown)
        for cost, colour in zip(shown, COLOURS, strict=False):
            y += ROW
            wide = max(1.0, scale * cost.cpu_microseconds)
            size = f'width="{wide:.1f}" height="{ROW - 8}" fill="{colour}"'
            marks += [
                _text(24, y, cost.forwarder),
                f'<rect x="{LEFT}" y="{y - 13}" {size}/>',
                _text(LEFT + wide + 8, y, f"{cost.cpu_microseconds:.2f} µs"),
            ]
    y += ROW
    for line in itertools.chain.from_iterable(textwrap.wrap(note, 100) for note in notes):
        y += ROW
        marks.append(_text(12, y, line))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + ROW}">'
    return "\n".join((head, f"<style>{STYLE}</style>", *marks, "</svg>\n"))


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y}" class="{kind}">{escape(words)}</text>'
