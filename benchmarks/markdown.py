"""Numbers and tables as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def number(value: float | None) -> str:
    """Three digits, or all before the point."""
    if value is None:
        return "not measured"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def spread(found: Mapping[str, float]) -> str:
    """A median with least and greatest, as :func:`benchmarks.stats.spread` gives them."""
    if found["rounds"] == 1:
        return number(found["median"])
    return f"{number(found['median'])} ({number(found['min'])} to {number(found['max'])})"


def whole(found: Mapping[str, float]) -> str:
    """The same of rates, in whole numbers."""
    return f"{found['median']:.0f} ({found['min']:.0f} to {found['max']:.0f})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A line a row."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
