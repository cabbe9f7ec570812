"""How an A/B test decides: false promotions, power and samples, beside a fixed-horizon z-test.

Measured: `infra.rollouts.policy.decide` itself over simulated experiments, at its defaults (95%
confidence, at least 100 users an arm, tuned to 5 points), looked at after every batch of users of
both arms until it promotes, rolls back or the horizon is reached. The stable version is liked in
half of all cases. The other side is what people do without it: a two-sided z-test at 95%, once at
the sample size that finds the lift with 90% power, or, the usual mistake, at every look.

A/A: both arms are the same; what share is promoted by then. A/B: what share of true lifts is found
within three times the fixed-horizon sample size, and after how many users an arm, in terms of that
size (an experiment that found nothing counts with the whole horizon). Clustered: users give 1 to 5
labels, one a look, and differ in taste (their own shares are 35 points above or below the mean);
the naive variance takes each label for a user of its own. Times are of one process.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean, median
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Broken, Report, Target, command, table
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.generation import Assignment, GenerationResult, Timings
from infra.contracts.events.model import ArmFigures, Verdict
from infra.rollouts.arms import ARMS, Arms, ArmSummary
from infra.rollouts.policy import Policy, decide
from infra.rollouts.sequential import Moments

Array: TypeAlias = npt.NDArray[np.float64]

BASELINE = 0.5
LIFTS = (0.02, 0.05, 0.1)
POWER = 0.9
LOOKS_A_HORIZON = 25
"""Looks within the sample size of the fixed-horizon test."""
HORIZONS = 3
FALSE_LOOKS = (1, 5, 10, 25, 50, 75)
TASTE = 0.35
LABELS_A_USER = 5
EXPERIMENTS, QUICK_EXPERIMENTS = 2_000, 200
CALLS, QUICK_CALLS = 20_000, 2_000
SEED = 17
POLICY = Policy()
FIGURES = ArmFigures(version="v")


@dataclass(frozen=True, kw_only=True)
class Users:
    """``labels``: each user gives 1 to so many, evenly, one a look from the first on. Half of them
    like an answer by ``taste`` more often than the mean, half by as much less.
    """

    labels: int = 1
    taste: float = 0.0


CLUSTERED = Users(labels=LABELS_A_USER, taste=TASTE)


def histories(
    random: np.random.Generator,
    share: float,
    *,
    experiments: int,
    looks: int,
    batch: int,
    users: Users,
) -> Array:
    """One arm's Moments at each look, in the order of their fields: [experiments, looks, 6].

    ``batch`` users are new at each look. ``share`` of all answers are liked.
    """
    patterns = [
        labels
        for count in range(1, users.labels + 1)
        for labels in itertools.product((0, 1), repeat=count)
    ]
    chances = np.array([_chance(labels, share, users) for labels in patterns])
    # What the label of each age adds to the Moments, by its user's pattern: [patterns, ages, 6].
    adds = np.zeros((len(patterns), users.labels, 6))
    for number, labels in enumerate(patterns):
        before = np.zeros(6)
        for age in range(len(labels)):
            total, count = sum(labels[: age + 1]), age + 1
            after = np.array([1, total, count, total**2, total * count, count**2], float)
            adds[number, age], before = after - before, after
    drawn = random.multinomial(batch, chances, size=(experiments, looks)).astype(float)
    added = np.zeros((experiments, looks, 6))
    for age in range(min(users.labels, looks)):
        added[:, age:] += drawn[:, : looks - age] @ adds[:, age]
    return added.cumsum(axis=1)


def _chance(labels: tuple[int, ...], share: float, users: Users) -> float:
    tastes = (share - users.taste, share + users.taste)
    return (
        fmean(math.prod(own if liked else 1 - own for liked in labels) for own in tastes)
        / users.labels
    )


def by_label(moments: Moments) -> Moments:
    """As if every label, 0 or 1, were a user's only one."""
    total, count = moments.total, moments.count
    return Moments(
        units=int(count),
        total=total,
        count=count,
        total_squared=total,
        cross=total,
        count_squared=count,
    )


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an experiment ended, after how many looks; ``hold``: it reached the horizon."""

    verdict: Verdict
    looks: int


def sequential(
    stable: Array, candidate: Array, policy: Policy = POLICY, *, naive: bool = False
) -> Ending:
    """Look until a verdict. Each [looks, 6]. ``naive``: with the variance of labels."""
    for look, arms in enumerate(zip(stable.tolist(), candidate.tolist(), strict=True), start=1):
        before, after = (
            Moments(
                units=int(units),
                total=total,
                count=count,
                total_squared=squared,
                cross=cross,
                count_squared=counts,
            )
            for units, total, count, squared, cross, counts in arms
        )
        if naive:
            before, after = by_label(before), by_label(after)
        verdict = decide(
            ArmSummary(figures=FIGURES, outcome=before),
            ArmSummary(figures=FIGURES, outcome=after),
            policy,
            age_hours=0.0,
        ).verdict
        if verdict != "hold":
            return Ending(verdict=verdict, looks=look)
    return Ending(verdict="hold", looks=len(stable))


def peeked(stable: Array, candidate: Array, confidence: float) -> Ending:
    """A z-test of two shares with one label a user, at every look as if it were the only one."""
    before, after = stable[:, 1] / stable[:, 2], candidate[:, 1] / candidate[:, 2]
    variance = before * (1 - before) / stable[:, 2] + after * (1 - after) / candidate[:, 2]
    over = np.abs(after - before) > _quantile((1 + confidence) / 2) * np.sqrt(variance)
    if not over.any():
        return Ending(verdict="hold", looks=len(stable))
    first = int(over.argmax())
    return Ending(
        verdict="promote" if after[first] > before[first] else "rollback", looks=first + 1
    )


def fixed_horizon(lift: float, *, confidence: float = 0.95, power: float = POWER) -> int:
    """Users of each arm, one label each, for a two-sided z-test to find ``lift``."""
    spread = sum(share * (1 - share) for share in (BASELINE, BASELINE + lift))
    reach = _quantile((1 + confidence) / 2) + _quantile(power)
    return math.ceil(reach**2 * spread / lift**2)


def simulated(
    lift: float,
    *,
    experiments: int,
    looks: int,
    batch: int,
    users: Users = Users(),
    seed: int = SEED,
) -> list[tuple[Array, Array]]:
    """Experiments whose candidate is liked by ``lift`` more often: stable, candidate."""
    random = np.random.Generator(np.random.PCG64([seed, round(1000 * abs(lift))]))
    stable, candidate = (
        histories(random, share, experiments=experiments, looks=looks, batch=batch, users=users)
        for share in (BASELINE, BASELINE + lift)
    )
    return list(zip(stable, candidate, strict=True))


def promoted(endings: list[Ending], within: int | None = None) -> float:
    """What share was promoted, within so many looks."""
    return fmean(
        end.verdict == "promote" and (within is None or end.looks <= within) for end in endings
    )


def measure(report: Report) -> None:
    """See the module."""
    experiments = QUICK_EXPERIMENTS if report.quick else EXPERIMENTS
    looks = HORIZONS * LOOKS_A_HORIZON
    report.figures = {"experiments": experiments, "confidence": POLICY.confidence}
    false_promotions(report, experiments, looks)
    lifts_found(report, experiments, looks)
    times(report, QUICK_CALLS if report.quick else CALLS)


def false_promotions(report: Report, experiments: int, looks: int) -> None:
    """A/A, and A/A with users who give several labels."""
    batch = math.ceil(fixed_horizon(POLICY.effect) / LOOKS_A_HORIZON)
    same = simulated(0.0, experiments=experiments, looks=looks, batch=batch)
    ends = [sequential(*arms) for arms in same]
    mistaken = [peeked(*arms, POLICY.confidence) for arms in same]
    clustered = simulated(0.0, experiments=experiments, looks=looks, batch=batch, users=CLUSTERED)
    by_user = [sequential(*arms) for arms in clustered]
    naive = [sequential(*arms, naive=True) for arms in clustered]
    columns = {
        "sequential": ends,
        "z-test, peeked at": mistaken,
        "clustered, sequential": by_user,
        "clustered, naive variance": naive,
    }
    table(
        f"A/A: promoted within so many looks, {batch} new users an arm at each",
        {"looks": "right", **dict.fromkeys(columns, "right")},
        [
            [str(within), *(f"{promoted(found, within):.1%}" for found in columns.values())]
            for within in FALSE_LOOKS
        ],
    )
    for name, found in columns.items():
        target = Target("<=", 0.05) if "sequential" in name else None
        report.ratio(f"A/A, promoted within {looks} looks: {name}", promoted(found), target)
        report.figures[f"A/A, {name}: promoted by look"] = {
            str(within): promoted(found, within) for within in FALSE_LOOKS
        }


def lifts_found(report: Report, experiments: int, looks: int) -> None:
    """A/B. Those of lift ``policy.effect`` are what it is tuned to."""
    rows = []
    for lift in LIFTS:
        fixed = fixed_horizon(lift)
        batch = math.ceil(fixed / LOOKS_A_HORIZON)
        ends = [
            sequential(*arms)
            for arms in simulated(lift, experiments=experiments, looks=looks, batch=batch)
        ]
        shares = [batch * end.looks / fixed for end in ends]
        points = f"{100 * lift:.0f} points"
        found = promoted(ends)
        report.ratio(f"found of lifts of {points}", found, Target(">=", 0.9))
        report.ratio(f"users to decide / fixed horizon, {points}, mean", fmean(shares))
        report.ratio(f"users to decide / fixed horizon, {points}, median", median(shares))
        rows.append(
            [
                points,
                f"{found:.1%}",
                str(fixed),
                f"{fixed * fmean(shares):.0f}",
                f"{fixed * median(shares):.0f}",
                f"{fmean(shares):.2f}",
            ]
        )
    table(
        f"A/B within {HORIZONS} fixed horizons; users are of each arm",
        {
            "lift": "left",
            "found": "right",
            "fixed horizon": "right",
            "mean": "right",
            "median": "right",
            "mean / fixed": "right",
        },
        rows,
    )


def times(report: Report, calls: int) -> None:
    """Of a decision over all that can be measured, and of the fold that it stands on."""
    arms = Arms("e", stable="a", candidate="b")
    random = np.random.Generator(np.random.PCG64(SEED))
    results, examples = zip(*(traffic(number, random) for number in range(calls)), strict=True)
    began = time.perf_counter()
    for result in results:
        arms.take_result(result)
    taken = time.perf_counter()
    for example in examples:
        arms.take_feedback(example)
    labelled = time.perf_counter()
    stable, candidate = (arms.summary(arm) for arm in ARMS)
    summed = time.perf_counter()
    policy = replace(POLICY, min_lift=1.0)
    for _ in range(calls):
        decision = decide(stable, candidate, policy, age_hours=1.0)
    decided = time.perf_counter()
    if not all(check.low < check.high for check in decision.checks):
        raise Broken("a check had nothing to judge")
    found = {
        "us a result": 1e6 * (taken - began) / calls,
        "us an example": 1e6 * (labelled - taken) / calls,
        "us an example to sum up": 1e6 * (summed - labelled) / calls,
        "us a decision": 1e6 * (decided - summed) / calls,
    }
    report.figures["time"] = found
    table(
        f"time, over {calls} requests with feedback",
        dict.fromkeys(found, "right"),
        [[f"{value:.1f}" for value in found.values()]],
    )


def traffic(number: int, random: np.random.Generator) -> tuple[GenerationResult, FeedbackExample]:
    """A request of one of 2,000 users with a rating."""
    user = number % 2_000
    liked = random.random() < BASELINE
    result = GenerationResult(
        request_id=f"r{number}",
        submit_id="s",
        model="m",
        prompt="p",
        text="t",
        finish_reason="stop",
        prompt_tokens=1,
        output_tokens=int(random.integers(1, 200)),
        model_versions=("a",),
        created_at_ms=number,
        finished_at_ms=number,
        timings=Timings(ttft_ms=random.lognormal(4, 0.5), itl_ms=random.lognormal(3, 0.3)),
        assignment=Assignment(experiment="e", arm=ARMS[user % 2], unit=f"u{user}"),
    )
    example = FeedbackExample(
        request_id=result.request_id,
        prompt="p",
        output="t",
        model="m",
        model_versions=("a",),
        feedback_ids=("f",),
        updated_at_ms=number,
        ups=int(liked),
        downs=int(not liked),
        principals=(f"u{user}",),
    )
    return result, example


def _quantile(chance: float) -> float:
    return NormalDist().inv_cdf(chance)


main = command(measure, name="bench_ab", description=__doc__)

if __name__ == "__main__":
    main()
