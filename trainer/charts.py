"""Line charts: from numbers to where lines, ticks and words go. Pure; draws nothing itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 10, 40
MOST_POINTS = 300
TICKS = 5
ROWS = 40
"""Of a chart's table."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One name's values, by ascending x; finite."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines that share both axes, which are linear. At least one point."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]

    @property
    def description(self) -> str:
        """What the picture shows, in words."""
        ends = (
            f"{line.name} from {number(line.points[0][1])} to {number(line.points[-1][1])}"
            for line in self.lines
        )
        return f"{self.y_label} by {self.x_label}: {'; '.join(ends)}."

    @property
    def rows(self) -> list[list[str]]:
        """The values as a table: x, and each line's value there, if it has one."""
        values = [dict(line.points) for line in self.lines]
        xs = sorted({x for line in self.lines for x, _ in line.points})
        every = -(-len(xs) // ROWS)
        kept = [x for at, x in enumerate(xs) if at % every == 0 or at == len(xs) - 1]
        return [[number(x), *(number(one[x]) if x in one else "" for one in values)] for x in kept]


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A place along an axis, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A chart laid out in WIDTH by HEIGHT. ``lines``: of each, its places."""

    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Sequence[Point]]


def plotted(chart: Chart) -> Plot:
    """Where everything goes; long lines as means of neighbours."""
    lines = [thinned(line.points) for line in chart.lines]
    xs = [x for line in lines for x, _ in line]
    ys = [y for line in lines for _, y in line]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    left, right = min(xs), max(xs)
    low, high = min(*ys, *y_ticks), max(*ys, *y_ticks)

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - left) / ((right - left) or 1.0)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / ((high - low) or 1.0)

    return Plot(
        x_ticks=[Tick(at=across(x), text=number(x)) for x in x_ticks if left <= x <= right],
        y_ticks=[Tick(at=up(y), text=number(y)) for y in y_ticks],
        lines=[[(across(x), up(y)) for x, y in line] for line in lines],
    )


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` points: both ends, and between them means of neighbours."""
    if len(points) <= most:
        return list(points)
    inner, count = points[1:-1], most - 2
    parts = [
        inner[len(inner) * at // count : len(inner) * (at + 1) // count] for at in range(count)
    ]
    means = [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts
    ]
    return [points[0], *means, points[-1]]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, a step of 1, 2 or 5 apart, from at most ``low`` to at least ``high``."""
    if low == high:
        pad = abs(low) / 10 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(base * power for base in (1, 2, 5, 10) if base * power >= rough * 0.999)
    return [at * step for at in range(math.floor(low / step), math.ceil(high / step) + 1)]


def number(value: float) -> str:
    """Four digits, without an exponent where that is short."""
    return "0" if abs(value) < 1e-300 else f"{value:.4g}"
