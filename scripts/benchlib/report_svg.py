"""The plot: for every row a bar for every candidate, its ratio to the bare directory on a logarithmic axis."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from .filesystems import Candidate
from .rows import BANDWIDTH, Row, human, three
from .stats import BARE, Results

BAR, GAP, LEFT, RIGHT, WIDTH = 9, 10, 330, 60, 1080
GREY, INK = "#dddddd", "#222222"


class Axis:
    """From ratios to x: `slower` is how many times as slow as the bare directory, whatever the row counts."""

    def __init__(self, ratios: list[float]) -> None:
        low, high = min([*ratios, 0.5]), max([*ratios, 10.0])
        self.low, self.high = math.floor(math.log10(low) * 2) / 2, math.ceil(math.log10(high) * 2) / 2

    def x(self, slower: float) -> float:
        share = (math.log10(slower) - self.low) / (self.high - self.low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def ticks(self) -> list[float]:
        marks = [m * 10.0**e for e in range(math.floor(self.low), math.ceil(self.high) + 1) for m in (1, 2, 5)]
        return [m for m in marks if self.low <= math.log10(m) <= self.high + 1e-9]


def slower(results: Results, row: Row, candidate: str) -> tuple[float, float, float] | None:
    """Median, least and most of how many times as slow it is."""
    ratio = results.ratio(row, candidate)
    if ratio is None or ratio.least <= 0:
        return None
    if row.kind == BANDWIDTH:
        return 1 / ratio.median, 1 / ratio.most, 1 / ratio.least
    return ratio.median, ratio.least, ratio.most


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 11, colour: str = INK) -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">'
            f"{escape(words)}</text>")


def _legend(candidates: list[Candidate], y: float) -> tuple[list[str], float]:
    """Swatches in lines; what was drawn, and where it ends."""
    drawn, x = [], 20.0
    for candidate in candidates:
        width = 24 + 6.6 * len(candidate.label)
        if x + width > WIDTH - 20:
            x, y = 20.0, y + 18
        drawn.append(f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="11" height="11" fill="{candidate.colour}"/>')
        drawn.append(_text(x + 16, y, candidate.label))
        x += width + 10
    return drawn, y + 14


def _bar(axis: Axis, y: float, candidate: Candidate, found: tuple[float, float, float], tip: str) -> list[str]:
    middle, least, most = found
    one, end = axis.x(1), axis.x(middle)
    x, width = min(one, end), max(abs(end - one), 1.5)
    drawn = [f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR - 1}" fill="{candidate.colour}">'
             f"<title>{escape(tip)}</title></rect>"]
    if most > least:
        drawn.append(f'<line x1="{axis.x(least):.1f}" x2="{axis.x(most):.1f}" y1="{y + BAR / 2 - .5:.1f}" '
                     f'y2="{y + BAR / 2 - .5:.1f}" stroke="{INK}" stroke-width="1"/>')
    label_x = max(axis.x(most), one, end) + 4
    drawn.append(_text(label_x, y + BAR - 2, three(middle), size=8))
    return drawn


def svg(results: Results, rows: list[Row], candidates: list[Candidate], subtitle: str) -> str:
    """The whole plot; rows without a ratio are left out."""
    shown = [candidate for candidate in candidates if candidate.name != BARE]
    bars = {(row.id, c.name): found for row in rows for c in shown for found in [slower(results, row, c.name)] if found}
    plotted = [row for row in rows if any((row.id, c.name) in bars for c in shown)]
    axis = Axis([number for found in bars.values() for number in found])
    legend, top = _legend(shown, 62)
    top += 20
    body: list[str] = []
    y = top + 8
    for index, row in enumerate(plotted):
        present = [c for c in shown if (row.id, c.name) in bars]
        height = BAR * len(present)
        if index % 2:
            body.append(f'<rect x="0" y="{y - GAP / 2:.1f}" width="{WIDTH}" height="{height + GAP}" fill="#f6f6f6"/>')
        bare = results.value(row.id, BARE)
        body.append(_text(LEFT - 10, y + height / 2 + 1, row.title, "end"))
        if bare:
            body.append(_text(LEFT - 10, y + height / 2 + 12, f"bare: {human(bare.median, row.unit)}", "end", 9, "#777777"))
        for line, candidate in enumerate(present):
            found = bars[row.id, candidate.name]
            body += _bar(axis, y + line * BAR, candidate, found, f"{candidate.label}: {three(found[0])}")
        y += max(height, 14) + GAP
    grid = []
    for tick in axis.ticks():
        weight, colour = (1.5, "#555555") if tick == 1 else (0.6, GREY)
        x = axis.x(tick)
        grid.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{y:.1f}" stroke="{colour}" '
                    f'stroke-width="{weight}"/>')
        grid.append(_text(x, top - 4, three(tick), "middle", 9))
    bands = [line for line in body if 'fill="#f6f6f6"' in line]
    rest = [line for line in body if 'fill="#f6f6f6"' not in line]
    height = y + 14
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="white"/>',
        _text(20, 24, "Times as slow as the bare directory (1: as fast; to the left: faster)", size=15),
        _text(20, 42, subtitle, size=10, colour="#777777"),
        *legend, *bands, *grid, *rest, "</svg>"]) + "\n"
