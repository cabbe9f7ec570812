"""How many partitions the topics with more than one get. They all get the same count.

The worker insists on one count for requests, results and feedback, which are joined by key, and
``feedloom topics apply --partitions`` sets one for all. A count is for good: adding partitions
later sends a key elsewhere than where its result lies (docs/scaling.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from infra.planning.coefficients import Coefficients
from infra.planning.figures import Ground

WINDOW = 2_048
"""Requests of a partition that may end behind a slow one: WINDOW in stream_workers/offsets.py."""
MOST = 65_535
"""A request id has 16 bits for the partition of its answer: producers/gateway/identifiers.py."""
LEAST = 12
"""As the catalogue has it."""
ROOM = 1.25
"""How much more than needed may be taken for the sake of divisors."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """One reason for a count."""

    key: str
    label: str
    count: float
    formula: str
    grounds: tuple[Ground, ...]


def needs(
    coefficients: Coefficients,
    *,
    workers: int,
    clients: int,
    rate: float,
    duration_s: float,
    largest_bytes_s: float,
) -> tuple[Need, ...]:
    """Every lower bound. ``largest_bytes_s``: into the topic that gets most."""
    over = coefficients["partition.over"]
    growth = coefficients["partition.growth"]
    throughput = coefficients["partition.throughput"]
    slow = coefficients["partition.slow"]
    return (
        Need(
            key="over",
            label="evenness",
            count=over.value * workers,
            formula=f"{over.value:g} x {workers} workers",
            grounds=(over,),
        ),
        Need(
            key="growth",
            label="growth",
            count=growth.value * workers,
            formula=f"{growth.value:g} x {workers} workers, each of which needs one at least",
            grounds=(growth,),
        ),
        Need(
            key="reply",
            label="reply partitions",
            count=clients,
            formula=f"one for each of {clients} gateways and SDK clients",
            grounds=(),
        ),
        Need(
            key="throughput",
            label="throughput",
            count=largest_bytes_s / throughput.value,
            formula=f"{largest_bytes_s / 1e6:,.3g} MB/s / {throughput.value / 1e6:g} MB/s",
            grounds=(throughput,),
        ),
        Need(
            key="window",
            label="slow requests",
            count=rate * duration_s * slow.value / WINDOW,
            formula=(
                f"{rate:,.4g}/s x {slow.value:g} x {duration_s:.3g} s / {WINDOW:,} that may end "
                "behind a slow one"
            ),
            grounds=(slow,),
        ),
    )


@lru_cache(maxsize=65_536)
def divisors(number: int) -> int:
    """How many numbers divide it."""
    count, rest, factor = 1, number, 2
    while factor * factor <= rest:
        power = 0
        while rest % factor == 0:
            rest //= factor
            power += 1
        count *= power + 1
        factor += 1
    return count * (2 if rest > 1 else 1)


def rounded(least: float, *, workers: int = 1, survivors: int = 1) -> int:
    """At least ``least``: shared out evenly over all workers and, where that takes little more,
    over the survivors of a zone too; of such counts up to a quarter more than needed, the first
    with most divisors, as autoscalers choose other counts of workers."""
    low = max(LEAST, math.ceil(least - 1e-9))
    step = math.lcm(workers, survivors)
    if step > low * ROOM:
        step = workers
    if step == 1:
        # Of large numbers only even ones, and so on: those with many divisors are among them.
        step = 1 << max(0, low.bit_length() - 9)
    first = step * math.ceil(low / step)
    found = range(first, max(first, int(low * ROOM)) + 1, step)
    return max(found, key=lambda one: (divisors(one), -one))


def unevenness(partitions: int, workers: int) -> float:
    """The fullest worker's partitions over the mean: what must be in the headroom."""
    return math.ceil(partitions / workers) * workers / partitions
