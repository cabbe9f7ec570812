"""The interval that holds at every look: its formulas against others, and its floor by simulation.

How often whole experiments decide wrongly is in ``test_rollouts_policy``.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.rollouts import sequential as under_test
from infra.rollouts.sequential import (
    FEWEST_UNITS,
    Estimate,
    Moments,
    difference,
    estimate,
    log_of,
    sequence,
)

Array: TypeAlias = npt.NDArray[np.float64]

variances = st.floats(1e-8, 10)
effects = st.floats(1e-3, 1)
confidences = st.floats(0.5, 0.999)


def moments_of(totals: Array, counts: Array) -> Moments:
    return Moments(
        units=len(totals),
        total=float(totals.sum()),
        count=float(counts.sum()),
        total_squared=float((totals**2).sum()),
        cross=float((totals * counts).sum()),
        count_squared=float((counts**2).sum()),
    )


@given(variance=variances, effect=effects, confidence=confidences)
def test_the_ends_are_where_the_mixture_likelihood_ratio_reaches_one_in_alpha(
    variance: float, effect: float, confidence: float
) -> None:
    """Johari et al. 2022, equation 11, in the variance of the estimate."""
    found = sequence(Estimate(value=0.3, variance=variance), confidence=confidence, effect=effect)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    both = variance + effect**2
    distance = found.high - found.value
    log_ratio = (math.log(variance / both) + effect**2 * distance**2 / (variance * both)) / 2
    assert log_ratio == pytest.approx(-math.log(1 - confidence))


@given(variance=variances, effect=effects, confidence=confidences)
def test_it_is_wider_than_the_interval_of_a_single_look(
    variance: float, effect: float, confidence: float
) -> None:
    found = sequence(Estimate(value=0.0, variance=variance), confidence=confidence, effect=effect)
    assert found.high > math.sqrt(variance) * math.sqrt(-2 * math.log(1 - confidence))


@given(variance=variances, effect=effects, scale=st.floats(0.1, 100))
def test_it_does_not_depend_on_the_units_of_the_value(
    variance: float, effect: float, scale: float
) -> None:
    one = sequence(Estimate(value=1.0, variance=variance), confidence=0.9, effect=effect)
    other = sequence(
        Estimate(value=scale, variance=variance * scale**2), confidence=0.9, effect=effect * scale
    )
    assert (other.low, other.high) == pytest.approx((one.low * scale, one.high * scale))


def test_an_effect_is_found_with_the_least_information_when_it_was_tuned_to_it() -> None:
    """Half the width is then about the effect. The variance at which zero is just excluded."""

    def needed(effect: float) -> float:
        shown = [
            variance
            for variance in map(float, np.geomspace(1e-6, 1e-2, 2_000))
            if sequence(Estimate(value=0.05, variance=variance), confidence=0.95, effect=effect).low
            > 0
        ]
        return max(shown)

    tuned = needed(0.05)
    assert tuned > needed(0.01)
    assert tuned > needed(0.25)


def test_a_value_without_variance_is_its_own_interval() -> None:
    found = sequence(Estimate(value=0.2, variance=0.0), confidence=0.95, effect=0.05)
    assert (found.low, found.high) == (0.2, 0.2)


def test_the_variance_is_that_between_users() -> None:
    """Of 4,000 simulated arms whose users have 1 to 5 labels and a taste of their own."""
    random = np.random.Generator(np.random.PCG64(3))
    values, found = [], []
    for _ in range(4_000):
        counts = random.integers(1, 6, 60).astype(float)
        totals = random.binomial(counts.astype(int), random.beta(1, 1, 60)).astype(float)
        one = estimate(moments_of(totals, counts), bounded=False)
        assert one is not None
        values.append(one.value)
        found.append(one.variance)
    assert float(np.mean(found)) == pytest.approx(float(np.var(values)), rel=0.05)


def test_units_of_one_label_have_the_variance_of_the_mean() -> None:
    labels = np.array([0.0, 1.0] * 20 + [1.0] * 10)
    found = estimate(moments_of(labels, np.ones(50)), bounded=False)
    assert found is not None
    assert found.value == pytest.approx(0.6)
    assert found.variance == pytest.approx(float(np.var(labels, ddof=1)) / 50)


def test_one_heavy_unit_is_no_more_than_one() -> None:
    """Its mean is nearly the arm's, and what is left to vary between units would be nothing."""
    counts = np.ones(200)
    counts[0] = 10_000
    heavy = moments_of(counts / 2, counts)
    assert heavy.effective_units < 2
    assert estimate(heavy, bounded=True) is None


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_first_units_all_saying_the_same_is_no_proof(share: float) -> None:
    same = estimate(moments_of(np.full(20, share), np.ones(20)), bounded=True)
    other = estimate(
        moments_of(np.array([share] * 16 + [1 - share] * 4), np.ones(20)), bounded=True
    )
    assert same is not None
    assert other is not None
    assert same.variance > 0
    found = sequence(difference(same, other), confidence=0.95, effect=0.05)
    assert found.low < 0 < found.high


def test_too_few_units_have_no_interval() -> None:
    few = moments_of(np.ones(FEWEST_UNITS - 1), np.ones(FEWEST_UNITS - 1))
    assert estimate(few, bounded=True) is None
    assert estimate(Moments(), bounded=True) is None
    assert Moments().mean is None


def test_differences_of_logarithms_are_of_ratios() -> None:
    found = difference(
        log_of(Estimate(value=150.0, variance=9.0)), log_of(Estimate(value=100.0, variance=1.0))
    )
    assert math.exp(found.value) == pytest.approx(1.5)
    assert found.variance == pytest.approx(0.0004 + 0.0001)


def ever_wrong(random: np.random.Generator, sizes: Array) -> float:
    """Of A/A experiments looked at after every unit, those whose interval ever excludes zero.

    Values are normal with a random effect of the unit, as the logarithms of latencies.
    ``sizes``: observations of a unit, [2, experiments, units].
    """
    sums = sizes * random.normal(0, 0.5, sizes.shape)
    sums += np.sqrt(sizes) * random.normal(0, 0.5, sizes.shape)
    fields = [np.ones(sizes.shape), sums, sizes, sums**2, sums * sizes, sizes**2]
    arms = np.stack(fields, axis=-1).cumsum(axis=2)
    wrong, experiments = 0, sizes.shape[1]
    for stable, candidate in zip(*arms.tolist(), strict=True):
        for looks in zip(stable, candidate, strict=True):
            before, after = (
                estimate(
                    Moments(
                        units=int(units),
                        total=total,
                        count=count,
                        total_squared=squared,
                        cross=cross,
                        count_squared=counts,
                    ),
                    bounded=False,
                )
                for units, total, count, squared, cross, counts in looks
            )
            if before is None or after is None:
                continue
            found = sequence(difference(after, before), confidence=0.95, effect=math.log(1.25))
            if not found.low <= 0 <= found.high:
                wrong += 1
                break
    return wrong / int(experiments)


@pytest.mark.parametrize("heavy", [False, True])
def test_from_the_fewest_units_on_it_holds_at_every_look(
    heavy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And from two it does not, by far: what the floor is for."""

    def found(seed: int) -> float:
        random = np.random.Generator(np.random.PCG64(seed))
        shape = (2, 1_000, 120)
        sizes = np.minimum(random.pareto(1.2, shape) + 1, 1000.0) if heavy else np.ones(shape)
        return ever_wrong(random, np.floor(sizes))

    assert found(5) <= 0.05
    monkeypatch.setattr(under_test, "FEWEST_UNITS", 2)
    assert found(5) > 0.075
