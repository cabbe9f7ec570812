"""A small writer of line charts as SVG. Pure; readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, GAP = 420, 300, 20
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 40, 78
COLOURS = ("#1f77b4", "#e07b00", "#2ca02c", "#9467bd")
DASHES = ("", "6 3", "2 3", "8 3 2 3")


@dataclass(frozen=True)
class Line:
    """One side's points, by x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """One panel; both axes logarithmic, x ticks where the points are."""

    title: str
    x_label: str
    lines: Sequence[Line]


def render(charts: Sequence[Chart]) -> str:
    """All panels side by side, as an SVG document."""
    width = len(charts) * WIDTH + (len(charts) - 1) * GAP
    body = "\n".join(
        f'<g transform="translate({index * (WIDTH + GAP)} 0)">\n{_panel(chart)}\n</g>'
        for index, chart in enumerate(charts)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" '
        f'width="{width}" height="{HEIGHT}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _panel(chart: Chart) -> str:
    points = [point for line in chart.lines for point in line.points]
    xs = sorted({x for x, _ in points})
    low = _tick_below(min(y for _, y in points))
    high = _tick_above(max(y for _, y in points))

    def across(x: float) -> float:
        span = math.log(xs[-1] / xs[0]) or 1.0
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(x / xs[0]) / span

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log(y / low) / math.log(high / low)

    parts = [label(LEFT, 20, chart.title, weight="bold", anchor="start")]
    for tick in _ticks(low, high):
        y = up(tick)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>'
        )
        parts.append(label(LEFT - 6, y + 4, f"{tick:g}", anchor="end"))
    parts += [label(across(x), HEIGHT - BOTTOM + 16, f"{x:g}") for x in xs]
    parts.append(label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 34, chart.x_label))
    for index, line in enumerate(chart.lines):
        parts += _line(index, line, [(across(x), up(y)) for x, y in line.points])
    return "\n".join(parts)


def _line(index: int, line: Line, places: Sequence[tuple[float, float]]) -> list[str]:
    colour = COLOURS[index % len(COLOURS)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = DASHES[index % len(DASHES)]
    style = f'fill="none" stroke="{colour}" stroke-width="2"'
    style += f' stroke-dasharray="{dash}"' if dash else ""
    key_x, key_y = LEFT + 110 * index, HEIGHT - 14
    return [
        f'<polyline points="{path}" {style}/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places),
        f'<line x1="{key_x}" x2="{key_x + 22}" y1="{key_y - 4}" y2="{key_y - 4}" {style}/>',
        label(key_x + 28, key_y, line.name, anchor="start"),
    ]


def label(x: float, y: float, text: str, *, anchor: str = "middle", weight: str = "normal") -> str:
    """A text whose baseline is at ``y``."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="#222222">{escape(text)}</text>'
    )


def _tick_below(value: float) -> float:
    return max(tick for tick in _steps(value) if tick <= value * 0.999)


def _tick_above(value: float) -> float:
    return min(tick for tick in _steps(value) if tick >= value * 1.001)


def _steps(value: float) -> list[float]:
    exponent = math.floor(math.log10(value))
    return [base * 10.0**power for power in range(exponent - 1, exponent + 2) for base in (1, 2, 5)]


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of every decade between the bounds, bounds included."""
    found = {tick for bound in (low, high) for tick in _steps(bound)}
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found |= {base * 10.0**power for power in exponents for base in (1, 2, 5)}
    return sorted(tick for tick in found if low * 0.999 <= tick <= high * 1.001)
