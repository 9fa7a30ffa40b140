# The picture for the docs: each contender's cost a datagram, on a logarithmic scale, as an SVG.
#
# It is written by hand, since a plotting library would be a large dependency for one picture.

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from ._method import FLOOR, OURS
from ._shapes import SHAPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._method import Measured

# The palette of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = {
    FLOOR: "#000000",
    OURS: "#d55e00",
    "uvloop": "#009e73",
    "aiofastnet": "#f0e442",
    "asyncio": "#56b4e9",
    "trio.socket": "#0072b2",
    "anyio": "#cc79a7",
}
LEFT, RIGHT, TOP = 130, 40, 70
WIDTH, ROW, GAP = 860, 22, 34
DECADES = (1, 10, 100, 1_000, 10_000, 100_000)


def across(ns: float) -> float:
    """The horizontal place of a cost."""
    low, high = math.log10(DECADES[0]), math.log10(DECADES[-1])
    return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(max(ns, DECADES[0])) - low) / (high - low)


def text(x: float, y: float, words: str, **attributes: str) -> str:
    """A line of text."""
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{escape(words)}</text>'


def legend(contenders: Sequence[str]) -> list[str]:
    """What each colour stands for."""
    marks, x = [], float(LEFT)
    for name in contenders:
        label = "floor (C, system calls only)" if name == FLOOR else name
        marks.append(f'<circle cx="{x:.1f}" cy="46" r="5" fill="{COLOURS[name]}"/>')
        marks.append(text(x + 10, 50, label))
        x += 30 + 7.2 * len(label)
    return marks


def draw(results: Sequence[Measured]) -> str:
    """The whole picture, of IPv4 and the plain shapes if these were measured."""
    chosen = [m for m in results if not m.row.ipv6 and m.row.shape in SHAPES] or list(results)
    contenders = [name for name in COLOURS if any(name in m.ns for m in chosen)]
    marks: list[str] = []
    y, previous = float(TOP), ""
    for measured in chosen:
        if measured.row.title != previous:
            previous = measured.row.title
            y += GAP
            marks.append(text(LEFT, y - 14, previous, font_weight="bold"))
        marks.append(text(LEFT - 12, y + 4, measured.row.shape.name, text_anchor="end"))
        end = WIDTH - RIGHT
        marks.append(f'<path d="M{LEFT} {y:.1f}H{end}" stroke="#ddd"/>')
        for name in contenders:
            ns = measured.median(name)
            if ns is not None:
                title = f"<title>{escape(name)}: {ns:,.0f} ns</title>"
                place = f'cx="{across(ns):.1f}" cy="{y:.1f}"'
                marks.append(f'<circle {place} r="5" fill="{COLOURS[name]}">{title}</circle>')
        y += ROW
    scale = []
    for decade in DECADES:
        x = across(decade)
        scale.append(f'<path d="M{x:.1f} {TOP}V{y:.1f}" stroke="#ddd"/>')
        scale.append(text(x, y + 18, f"{decade:,}", text_anchor="middle"))
    height = y + 30
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}"'
            ' font-family="sans-serif" font-size="13">',
            f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>',
            text(LEFT, 24, "CPU nanoseconds a datagram (less is better)", font_size="16"),
            *legend(contenders),
            *scale,
            *marks,
            "</svg>\n",
        )
    )
