"""Intervals that hold at every look: the difference of two arms' means, looked at as one likes.

A fixed-horizon interval is wrong five times in a hundred if it is looked at once. Looked at after
every batch until it says something, it is wrong far more often. A confidence sequence covers the
truth at all looks together, with the same confidence, so an experiment may end whenever it has
shown enough. This one is the normal mixture (Robbins 1970): the mixture sequential probability
ratio test of Johari, Koomen, Pekelis and Walsh ("Always Valid Inference", Operations Research
2022), which with an estimated variance is the asymptotic confidence sequence of Waudby-Smith,
Arbour, Sinha, Kennedy and Ramdas (arXiv 2103.06476). It is stated here in the variance of the
estimate, which is all that it needs: estimates whose information grows have independent increments
(Scharfstein, Tsiatis and Robins 1997), however the observations cluster.

The unit of analysis is the unit of randomisation, a user for instance, whose observations are not
independent of each other: the variance is that of a ratio of unit totals, by the delta method
(Deng, Knoblich and Lu, arXiv 1803.06336).

Own code, as no library fits: confseq ships C++ against Boost and no wheel; gbstats pins numpy,
pandas and scipy below 2; spotify-confidence wants pandas, statsmodels and a plotting library; savvi
wants cvxpy, and has tests of counts only; ville is a first release on numpy and scipy. What is
needed of them are three formulas. Knows nothing of rollouts. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FEWEST_UNITS = 20
"""Of each arm, by effective number: with fewer there is no interval.

The sequence is valid asymptotically, and variances of a few units are too often too small. Over
simulated A/A experiments, looked at after every unit, intervals of 95% were wrong at some look in
10 to 19% from 2 units on, in up to 7% from 5, up to 4.3% from 10 and up to 3.7% from 20 (log
latencies with a random effect of the user, and ratings; 1 label a user, 1 to 5, and Pareto(1.2)).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Sufficient statistics of one measure in one arm.

    Unit ``i`` has ``n_i`` observations that sum to ``y_i``. ``total`` is the sum of the ``y_i``,
    ``count`` of the ``n_i``, ``total_squared`` of ``y_i**2``, ``cross`` of ``y_i * n_i`` and
    ``count_squared`` of ``n_i**2``. Those of disjoint units add up.
    """

    units: int = 0
    total: float = 0.0
    count: float = 0.0
    total_squared: float = 0.0
    cross: float = 0.0
    count_squared: float = 0.0

    @property
    def mean(self) -> float | None:
        """Over all observations; ``None`` without any."""
        return self.total / self.count if self.count else None

    @property
    def effective_units(self) -> float:
        """How many units of equal size would tell as much (Kish 1965): ``units`` if they are."""
        return self.count**2 / self.count_squared if self.count_squared else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value and the variance of its error."""

    value: float
    variance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value and its interval at one look; all looks together hold with the confidence."""

    value: float
    low: float
    high: float


def estimate(moments: Moments, *, bounded: bool) -> Estimate | None:
    """The mean over all observations, with its variance between units.

    ``None`` below FEWEST_UNITS effective units. ``bounded``: the observations lie in 0 to 1. Then
    the variance counts two more units, one all 0 and one all 1 (after Agresti and Caffo 2000): the
    first ones may all have said the same, which does not make the next one certain.
    """
    effective = moments.effective_units
    if effective < FEWEST_UNITS:
        return None
    mean = moments.total / moments.count
    squares = moments.total_squared - mean * (2 * moments.cross - mean * moments.count_squared)
    variance = max(squares, 0.0) / moments.count**2
    if bounded:
        variance += (mean**2 + (1 - mean) ** 2) / effective**2
    return Estimate(value=mean, variance=variance * effective / (effective - 1))


def difference(candidate: Estimate, stable: Estimate) -> Estimate:
    """Candidate less stable, of independent arms.

    A unit that was in both, as its share of traffic grew, pulls both the same way: the variance is
    then too large, never too small.
    """
    return Estimate(
        value=candidate.value - stable.value, variance=candidate.variance + stable.variance
    )


def log_of(mean: Estimate) -> Estimate:
    """The logarithm of a positive mean, by the delta method: differences of it are of ratios."""
    return Estimate(value=math.log(mean.value), variance=mean.variance / mean.value**2)


def sequence(found: Estimate, *, confidence: float, effect: float) -> Interval:
    """The interval at this look, of a confidence sequence of two-sided ``confidence`` (0 to 1).

    ``effect`` (above 0, in the units of the value) is the standard deviation of the mixture. It
    costs no validity, only speed: the interval is at its tightest for the information it has when
    half its width is about ``effect``, so a true difference of that size is found soonest.
    """
    variance, mixture = found.variance, effect**2
    if variance == 0.0:
        return Interval(value=found.value, low=found.value, high=found.value)
    both = variance + mixture
    odds = math.log(both / variance) - 2 * math.log(1 - confidence)
    radius = math.sqrt(variance * both / mixture * odds)
    return Interval(value=found.value, low=found.value - radius, high=found.value + radius)
