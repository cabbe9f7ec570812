"""The last minutes of the platform in buckets of a second. Pure; memory is bounded.

Times to first token are kept as a histogram with ``PER_DOUBLING`` bins for each doubling, so that a
quantile is off by no more than half a bin, 5 %.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SECONDS = 900
PER_DOUBLING = 7
TOP_BIN = 28 * PER_DOUBLING
"""2**28 ms: three days. All above counts as that."""


@dataclass(slots=True)
class _Second:
    at_s: int
    requests: int = 0
    failed: int = 0
    tokens: int = 0
    ttft: Counter[int] = field(default_factory=Counter)
    lag: int | None = None


class LiveWindow:
    """What ended in each of the last ``seconds``. For one thread."""

    def __init__(self, seconds: int = SECONDS) -> None:
        self._ring: list[_Second | None] = [None] * seconds
        self._newest = 0

    def add(self, at_s: int, *, tokens: int, failed: bool, ttft_ms: float | None) -> None:
        """One request ended. What is older than the window is passed over."""
        second = self._at(at_s)
        if second is None:
            return
        second.requests += 1
        second.tokens += tokens
        second.failed += failed
        if ttft_ms is not None:
            second.ttft[bin_of(ttft_ms)] += 1

    def sample_lag(self, at_s: int, lag: int) -> None:
        """So many requests waited then."""
        second = self._at(at_s)
        if second is not None:
            second.lag = lag

    def series(self, now_s: int, *, step_s: int) -> dict[str, list[Any]]:
        """The window up to ``now_s`` in steps, oldest first; ``None`` where nothing was measured.

        ``times``: the end of each step, epoch seconds. Steps lie on multiples of ``step_s``, so
        that a point does not change once its step is over.
        """
        last = now_s // step_s
        steps = [
            self._step(range(number * step_s, (number + 1) * step_s), now_s)
            for number in range(last - len(self._ring) // step_s + 1, last + 1)
        ]
        return {name: [step[name] for step in steps] for name in steps[0]}

    def totals(self, now_s: int, seconds: int) -> tuple[int, int]:
        """Requests that ended in the last ``seconds`` whole seconds, and how many failed."""
        found = [
            second
            for at_s in range(now_s - seconds, now_s)
            if (second := self._find(at_s)) is not None
        ]
        return sum(one.requests for one in found), sum(one.failed for one in found)

    def _step(self, seconds: range, now_s: int) -> dict[str, Any]:
        found = [second for at_s in seconds if (second := self._find(at_s)) is not None]
        requests = sum(one.requests for one in found)
        ttft: Counter[int] = Counter()
        for one in found:
            ttft.update(one.ttft)
        # Of the step that is not over, only the seconds that were: rates must not dip at the end.
        length = max(1, min(seconds.stop, now_s + 1) - seconds.start)
        seen = bool(found)
        return {
            "times": seconds.stop,
            "requests_per_s": requests / length if seen else None,
            "tokens_per_s": sum(one.tokens for one in found) / length if seen else None,
            "ttft_p50_ms": quantile(ttft, 0.5),
            "ttft_p95_ms": quantile(ttft, 0.95),
            "failed_share": sum(one.failed for one in found) / requests if requests else None,
            "lag": max((one.lag for one in found if one.lag is not None), default=None),
        }

    def _find(self, at_s: int) -> _Second | None:
        found = self._ring[at_s % len(self._ring)]
        return found if found is not None and found.at_s == at_s else None

    def _at(self, at_s: int) -> _Second | None:
        if at_s <= self._newest - len(self._ring):
            return None
        self._newest = max(self._newest, at_s)
        found = self._find(at_s)
        if found is None:
            found = self._ring[at_s % len(self._ring)] = _Second(at_s)
        return found


def bin_of(ms: float) -> int:
    """The bin of a time in milliseconds; all of a millisecond and less are in the first."""
    return min(TOP_BIN, math.ceil(PER_DOUBLING * math.log2(ms))) if ms > 1 else 0


def quantile(bins: Counter[int], share: float) -> float | None:
    """The time below which that share lies, in milliseconds, as the geometric middle of its bin."""
    rank, passed = share * bins.total(), 0
    for place, count in sorted(bins.items()):
        passed += count
        if passed >= rank:
            return float(2 ** ((place - 0.5) / PER_DOUBLING)) if place else 1.0
    return None
