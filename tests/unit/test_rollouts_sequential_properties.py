"""The three formulas, one unit at a time, and the ends of what they are defined for."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.rollouts.sequential import (
    FEWEST_UNITS,
    Estimate,
    Interval,
    Moments,
    difference,
    estimate,
    log_of,
    sequence,
)

UNIT = st.tuples(st.integers(0, 8), st.integers(1, 4))
# Enough to have a variance, or any number.
UNITS = st.lists(UNIT, min_size=30, max_size=60) | st.lists(UNIT, min_size=1, max_size=60)


def moments(units: list[tuple[int, int]]) -> Moments:
    """Each unit's sum, in quarters, and how many observations it is of."""
    sums = [total / 4 for total, _ in units]
    counts = [float(count) for _, count in units]
    return Moments(
        units=len(units),
        total=sum(sums),
        count=sum(counts),
        total_squared=sum(total**2 for total in sums),
        cross=sum(total * count for total, count in zip(sums, counts, strict=True)),
        count_squared=sum(count**2 for count in counts),
    )


@given(UNITS, st.booleans())
def test_the_variance_is_that_of_a_ratio_of_unit_totals(
    units: list[tuple[int, int]], bounded: bool
) -> None:
    """Deng, Knoblich and Lu 2018: the residuals of the units about their share of the mean."""
    found = moments(units)
    count = sum(each for _, each in units)
    mean = Fraction(sum(total for total, _ in units), 4 * count)
    effective = Fraction(count**2, sum(each**2 for _, each in units))
    assert found.mean == pytest.approx(float(mean))
    assert found.effective_units == pytest.approx(float(effective))
    one = estimate(found, bounded=bounded)
    if effective < FEWEST_UNITS:
        assert one is None
        return
    residuals = sum((Fraction(total, 4) - mean * each) ** 2 for total, each in units)
    variance = residuals / count**2
    if bounded:
        variance += (mean**2 + (1 - mean) ** 2) / effective**2
    assert one is not None
    assert one.value == pytest.approx(float(mean))
    expected = float(variance * effective / (effective - 1))
    assert one.variance == pytest.approx(expected, abs=1e-12)


def test_the_fewest_units_are_enough_and_nothing_has_no_mean() -> None:
    enough = estimate(moments([(4, 1)] * FEWEST_UNITS), bounded=True)
    assert enough is not None
    # As if two more had been there, one all nothing and one all one, and no more varied.
    assert enough.variance == pytest.approx(1 / FEWEST_UNITS**2 * FEWEST_UNITS / (FEWEST_UNITS - 1))
    assert estimate(moments([(4, 1)] * FEWEST_UNITS), bounded=False) == Estimate(
        value=1.0, variance=0.0
    )
    assert estimate(moments([(4, 1)] * (FEWEST_UNITS - 1)), bounded=True) is None
    assert (Moments().mean, Moments().effective_units) == (None, 0.0)


def test_rounding_makes_no_variance_negative() -> None:
    """All units have the mean of 1/3, which no float is: the squares cancel to less than 0."""
    third = Moments(
        units=60,
        total=20.0,
        count=60.0,
        total_squared=20 / 3 - 1e-12,
        cross=20.0,
        count_squared=60.0,
    )
    found = estimate(third, bounded=False)
    assert found is not None
    assert found.variance == 0.0


@given(
    st.floats(0.5, 100),
    st.floats(0.001, 10),
    st.floats(0.5, 100),
    st.floats(0.001, 10),
)
def test_differences_and_logarithms(value: float, one: float, less: float, other: float) -> None:
    first, second = Estimate(value=value, variance=one), Estimate(value=less, variance=other)
    assert difference(first, second) == Estimate(value=value - less, variance=one + other)
    assert log_of(first).value == pytest.approx(math.log(value))
    assert log_of(first).variance == pytest.approx(one / value**2)


def test_an_interval_is_the_published_one() -> None:
    """Robbins 1970, worked out by hand: variance 1, mixture 3, so odds 4 and a half width."""
    found = sequence(Estimate(value=2.0, variance=1.0), confidence=0.5, effect=math.sqrt(3))
    radius = math.sqrt(4 / 3 * (math.log(4) + 2 * math.log(2)))
    assert found.value == 2.0
    assert [found.low, found.high] == pytest.approx([2 - radius, 2 + radius])
    assert sequence(Estimate(value=2.0, variance=0.0), confidence=0.5, effect=1.0) == Interval(
        value=2.0, low=2.0, high=2.0
    )
