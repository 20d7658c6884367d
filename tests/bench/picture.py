"""Figures as a picture: bars in groups, on a logarithmic scale since subjects differ by powers of ten; one SVG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

BAR, GAP, LEFT, RIGHT, TOP, HEIGHT, BOTTOM = 22, 30, 60, 20, 50, 200, 40  # pixels
LETTER = 6  # pixels of a letter below a group
COLOURS = ("#c2410c", "#f59e0b", "#334155", "#64748b", "#94a3b8", "#cbd5e1")
"""Of the series, in their order: ours stand out."""


class Chart(NamedTuple):
    """One diagram."""

    title: str
    """With the unit."""
    groups: Mapping[str, Mapping[str, float]]
    """What was measured, of each series by name; values are positive, and one may be missing."""


def svg(charts: Sequence[Chart], series: Sequence[str]) -> str:
    """The diagrams below each other, and what the colours mean."""
    each = TOP + HEIGHT + BOTTOM
    words = max((len(group) for chart in charts for group in chart.groups), default=0)
    step = max(len(series) * BAR, words * LETTER) + GAP
    width = LEFT + RIGHT + max(len(chart.groups) for chart in charts) * step
    height = each * len(charts) + 20 * len(series) + 20
    parts = [part for number, chart in enumerate(charts) for part in drawn(chart, series, number * each, width, step)]
    for number, name in enumerate(series):
        y = each * len(charts) + 20 * number
        parts.append(f'<rect x="{LEFT}" y="{y}" width="12" height="12" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(text(LEFT + 18, y + 10, name))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    return "\n".join((head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>")) + "\n"


def drawn(chart: Chart, series: Sequence[str], y: int, width: int, step: int) -> list[str]:
    """One diagram whose upper end is at y, with a group at each step."""
    values = [value for group in chart.groups.values() for value in group.values() if value > 0]
    lowest, highest = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    floor = y + TOP + HEIGHT
    scale = HEIGHT / max(highest - lowest, 1)
    parts = [text(LEFT, y + 20, chart.title, size=14)]
    for power in range(lowest, highest + 1):
        at = floor - (power - lowest) * scale
        parts.append(f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e2e8f0"/>')
        parts.append(text(LEFT - 6, at + 4, f"{10.0**power:,g}", anchor="end"))
    for column, (group, found) in enumerate(chart.groups.items()):
        x = LEFT + GAP // 2 + column * step
        parts.append(text(x, floor + 18, group))
        for number, name in enumerate(series):
            value = found.get(name, 0.0)
            if value <= 0:
                continue
            high = max((math.log10(value) - lowest) * scale, 1.0)
            left, colour = x + number * BAR, COLOURS[number % len(COLOURS)]
            parts.append(
                f'<rect x="{left}" y="{floor - high:.1f}" width="{BAR - 3}" height="{high:.1f}" fill="{colour}"/>'
            )
            parts.append(text(left + BAR / 2 - 1.5, floor - high - 3, short(value), size=8, anchor="middle"))
    return parts


def short(value: float) -> str:
    """Two or three digits, for there is little room."""
    return f"{value:.2g}" if value < 1 else f"{value:.3g}" if value < 1000 else f"{float(f'{value:.3g}'):.0f}"


def text(x: float, y: float, words: str, *, size: int = 11, anchor: str = "start") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'
