"""Summaries of samples. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median


def percentile(values: Iterable[float], quantile: float) -> float:
    """Nearest rank: the least value that at least this fraction does not exceed; NaN if none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of a few rounds."""
    return {
        "median": median(values),
        "min": min(values),
        "max": max(values),
        "rounds": len(values),
    }


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the rounds' own ratios: what drifts between rounds cancels."""
    return median(a / b for a, b in zip(above, below, strict=True))


def event_rate(times: Iterable[float]) -> float:
    """Events per unit of time: the slope of their running count (least squares).

    Events that come in bursts at the edges of a window distort it less than their plain number.
    """
    ordered = sorted(times)
    mean_time, mean_count = sum(ordered) / len(ordered), (len(ordered) - 1) / 2
    pairs = [(time - mean_time, count - mean_count) for count, time in enumerate(ordered)]
    return sum(t * c for t, c in pairs) / sum(t * t for t, _ in pairs)


def rounded(value: object, digits: int = 4) -> object:
    """Floats of a nested structure to so many significant digits, for files people read."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): rounded(each, digits) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each, digits) for each in value]
    return value
