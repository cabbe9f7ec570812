"""The plot of ``benchmarks.learning``: win rate and forgetting by round, as SVG. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.plot import COLOURS, label
from trainer.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Line, plotted

HEAD = 28
GAP = 24
KEY_WIDTH = 112


Rounds = Sequence[Mapping[str, Any]]


def charts_of(rounds: Rounds, control: Rounds) -> list[Chart]:
    """Of the version that serves after each round; round 0 is the first version."""

    def lines(name: str) -> list[Line]:
        return [
            Line(name=what, points=[(n, one[name]) for n, one in enumerate(part)])
            for what, part in (("with feedback", rounds), ("Pile text alone", control))
            if part
        ]

    return [
        Chart(title="Win rate", x_label="round", y_label="against version 1",
              lines=lines("win_rate")),
        Chart(title="True continuations", x_label="round", y_label="bits per byte",
              lines=lines("truth_bits_per_byte")),
        Chart(title="Held-out Pile text", x_label="round", y_label="bits per byte",
              lines=lines("bits_per_byte")),
    ]  # fmt: skip


def svg(rounds: Rounds, control: Rounds) -> str:
    """The charts side by side; readable on light and dark pages."""
    charts = charts_of(rounds, control)
    width = len(charts) * WIDTH + (len(charts) - 1) * GAP
    panels = "\n".join(
        f'<g transform="translate({index * (WIDTH + GAP)} {HEAD})">\n{_panel(chart)}\n</g>'
        for index, chart in enumerate(charts)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + HEAD}" '
        f'role="img" font-family="sans-serif" font-size="12">\n'
        f"<title>{escape('; '.join(chart.description for chart in charts))}</title>\n"
        f'<rect width="{width}" height="{HEIGHT + HEAD}" fill="#ffffff"/>\n{panels}\n</svg>\n'
    )


def _panel(chart: Chart) -> str:
    plot = plotted(chart)
    parts = [label(LEFT, -10, chart.title, anchor="start", weight="bold")]
    for tick in plot.y_ticks:
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{tick.at:.1f}" y2="{tick.at:.1f}" '
            'stroke="#dddddd"/>'
        )
        parts.append(label(LEFT - 6, tick.at + 4, tick.text, anchor="end"))
    parts += [label(tick.at, HEIGHT - BOTTOM + 16, tick.text) for tick in plot.x_ticks]
    parts.append(label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 34, chart.x_label))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<g transform="rotate(-90 14 {middle})">{label(14, middle, chart.y_label)}</g>')
    for number, (line, named) in enumerate(zip(plot.lines, chart.lines, strict=True)):
        colour = COLOURS[number]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in line]
        # Named in the head of the panel, where no line runs.
        at = WIDTH - RIGHT - KEY_WIDTH * (len(plot.lines) - number)
        parts.append(f'<circle cx="{at}" cy="-14" r="3" fill="{colour}"/>')
        parts.append(label(at + 8, -10, named.name, anchor="start"))
    return "\n".join(parts)
