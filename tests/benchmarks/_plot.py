# The pictures for the docs: each contender's cost a datagram, on a logarithmic scale, as an SVG.
#
# They are written by hand, since a plotting library would be a large dependency for two pictures,
# and take the page's colours where they are part of one.

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
    FLOOR: "var(--ink)",
    OURS: "#d55e00",
    "uvloop": "#009e73",
    "aiofastnet": "#f0e442",
    "asyncio": "#56b4e9",
    "trio.socket": "#0072b2",
    "anyio": "#cc79a7",
}
# The first page has these rows, by work and shape, and less contenders.
FEW = {
    ("pump", "50x1200"): "forward trains of 50 x 1200 bytes",
    ("pump", "1x1200"): "forward single datagrams of 1200 bytes",
    ("look", "64x64"): "look at each datagram of trains of 64 x 64 bytes",
    ("echo", "64p 1x100"): "echo packet by packet, 64 peers, 100 bytes",
}
FEW_CONTENDERS = (FLOOR, OURS, "uvloop", "asyncio", "trio.socket")
# Narrow, so that a telephone does not have to make the letters tiny.
LEFT, RIGHT, TOP = 80, 32, 76
WIDTH, ROW, GAP = 520, 22, 38
DECADES = (1, 10, 100, 1_000, 10_000, 100_000)
TITLE = "CPU nanoseconds a datagram (less is better)"
STYLE = """<style>
svg.plot {
  --ink: var(--color-foreground-primary, #1c1c1c); --rule: var(--color-background-border, #ddd);
  --edge: var(--color-foreground-border, #878787);
}
@media (prefers-color-scheme: dark) {
  svg.plot {
    --ink: var(--color-foreground-primary, #cfd0d0); --rule: var(--color-background-border, #333);
  }
}
.plot text { fill: var(--ink); font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
.plot .head { font-weight: 600; }
.plot path { stroke: var(--rule); }
.plot circle { stroke: var(--edge); }
</style>"""


def across(ns: float) -> float:
    """The horizontal place of a cost."""
    low, high = math.log10(DECADES[0]), math.log10(DECADES[-1])
    return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(max(ns, DECADES[0])) - low) / (high - low)


def text(x: float, y: float, words: str, **attributes: str) -> str:
    """A line of text."""
    extra = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{value}"' for name, value in attributes.items()
    )
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{escape(words)}</text>'


def legend(contenders: Sequence[str]) -> list[str]:
    """What each colour stands for, in as many lines as it takes above the rows."""
    marks, x, y = [], 16.0, 40
    for name in contenders:
        label = "floor (C, only the system calls)" if name == FLOOR else name
        width = 26 + 7.0 * len(label)
        if x + width > WIDTH:
            x, y = 16.0, y + 20
        marks.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{COLOURS[name]}"/>')
        marks.append(text(x + 10, y + 4, label))
        x += width
    return marks


def said(measured: Measured, label: str, contenders: Sequence[str]) -> str:
    """A row as a sentence, for whoever does not see the picture."""
    costs = ((name, measured.median(name)) for name in contenders)
    figures = ", ".join(f"{name} {ns:,.0f}" for name, ns in costs if ns is not None)
    return f"{label}: {figures}."


def draw(results: Sequence[Measured]) -> str:
    """The whole picture, of IPv4 and the plain shapes if these were measured."""
    chosen = [m for m in results if not m.row.ipv6 and m.row.shape in SHAPES] or list(results)
    labels = [(m.row.title, m.row.shape.name) for m in chosen]
    return picture("plot-all", chosen, labels, tuple(COLOURS))


def draw_few(results: Sequence[Measured]) -> str:
    """The picture of the first page: of IPv4, a few rows and contenders."""
    chosen = [m for m in results if (m.row.work, m.row.shape.name) in FEW and not m.row.ipv6]
    chosen.sort(key=lambda m: list(FEW).index((m.row.work, m.row.shape.name)))
    labels = [(FEW[m.row.work, m.row.shape.name], "") for m in chosen]
    return picture("plot-few", chosen, labels, FEW_CONTENDERS)


def picture(
    name: str,
    chosen: Sequence[Measured],
    labels: Sequence[tuple[str, str]],
    contenders: Sequence[str],
) -> str:
    """A picture of rows, each with what it belongs to and what it is."""
    contenders = [each for each in contenders if any(each in m.ns for m in chosen)]
    marks: list[str] = []
    y, previous = float(TOP), ""
    for measured, (group, label) in zip(chosen, labels, strict=True):
        if group != previous:
            previous = group
            y += GAP
            marks.append(text(16, y - 18, group, class_="head"))
        marks.append(text(LEFT - 8, y + 4, label, text_anchor="end"))
        marks.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        for contender in contenders:
            ns = measured.median(contender)
            if ns is not None:
                title = f"<title>{escape(contender)}: {ns:,.0f} ns</title>"
                place = f'cx="{across(ns):.1f}" cy="{y:.1f}"'
                marks.append(f'<circle {place} r="5" fill="{COLOURS[contender]}">{title}</circle>')
        y += ROW
    scale = []
    for decade in DECADES:
        x = across(decade)
        scale.append(f'<path d="M{x:.1f} {TOP + 8}V{y:.1f}"/>')
        scale.append(text(x, y + 18, f"{decade:,}", text_anchor="middle"))
    spoken = (
        said(measured, f"{group} {label}".strip(), contenders)
        for measured, (group, label) in zip(chosen, labels, strict=True)
    )
    return "\n".join(
        (
            '<svg xmlns="http://www.w3.org/2000/svg" class="plot"'
            f' viewBox="0 0 {WIDTH} {y + 30:.0f}" role="img"'
            f' aria-labelledby="{name}-title {name}-desc">',
            f'<title id="{name}-title">{escape(TITLE)}</title>',
            f'<desc id="{name}-desc">{escape(" ".join(spoken))}</desc>',
            STYLE,
            text(16, 20, TITLE, class_="head"),
            *legend(contenders),
            *scale,
            *marks,
            "</svg>\n",
        )
    )
