"""What two versions' answers to the same requests show. Figures, and no verdict.

Knows text, but neither engines nor topics nor pages. Pure.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from infra.rollouts.arms import edit_share
from stream_workers.replay_past import Answer, Case

RUN = 4
"""Words in a row whose return counts as repetition."""
MAX_EMPTY = 0.01
MAX_LENGTH_RATIO = 1.5
MAX_RISE = 0.1
"""Of a share: of answers cut off at their limit, of words said again."""

Nearness = Literal["nearer", "as near", "farther"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two answers to one request. ``changed`` and ``lead`` are shares of the longer text.

    ``lead`` is what they begin with alike; ``changed`` is Levenshtein's distance. Where one of them
    failed there is neither. ``distances``: how far both are from what somebody made of the recorded
    answer, the baseline's first.
    """

    case: Case
    baseline: Answer
    candidate: Answer
    lead: float | None = None
    changed: float | None = None
    distances: tuple[float, float] | None = None

    @property
    def same(self) -> bool:
        """Letter by letter."""
        return self.changed is not None and self.baseline.text == self.candidate.text

    @property
    def nearness(self) -> Nearness | None:
        """Of the candidate's answer to what somebody wrote, as against the baseline's."""
        if self.distances is None:
            return None
        before, after = self.distances
        return "nearer" if after < before else "as near" if after == before else "farther"


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One version's answers. Times in milliseconds, median and 95th percentile.

    ``tokens`` and ``repetition`` are means; ``repetition`` is the share of an answer's runs of RUN
    words that it has said before.
    """

    answers: int
    errors: int
    empty: int
    stop: int
    length: int
    tokens: float | None
    repetition: float | None
    ttft_ms: tuple[float, float] | None
    itl_ms: tuple[float, float] | None

    @property
    def length_share(self) -> float:
        """Of the answers, those that were cut off at their limit."""
        return self.length / self.answers if self.answers else 0.0

    @property
    def empty_share(self) -> float:
        """Of the answers, those that say nothing."""
        return self.empty / self.answers if self.answers else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What the pairs show. ``same``, ``lead`` and ``changed`` are of the ``repeatable`` ones.

    Those were answered twice and are greedy or seeded: others differ by chance. ``distances``: mean
    distance to the edits, baseline's and candidate's. ``marks``: what deserves a look.
    """

    baseline: Side
    candidate: Side
    repeatable: int
    same: int
    lead: float | None
    changed: float | None
    length_ratio: float | None
    liked: int
    disliked: int
    nearer: int
    as_near: int
    farther: int
    distances: tuple[float, float] | None
    marks: tuple[str, ...] = ()

    @property
    def edited(self) -> int:
        """Pairs whose recorded answer somebody edited."""
        return self.nearer + self.as_near + self.farther


def pair_of(case: Case, baseline: Answer, candidate: Answer) -> Pair:
    """Two answers side by side. A failed one is as far as can be from what people wrote."""
    lead = changed = None
    if baseline.error is None and candidate.error is None:
        lead = lead_of(baseline.text, candidate.text)
        changed = edit_share(baseline.text, candidate.text)
    wanted = case.feedback.edited_text if case.feedback is not None else None
    distances = None
    if wanted is not None:
        distances = _distance(baseline, wanted), _distance(candidate, wanted)
    return Pair(
        case=case,
        baseline=baseline,
        candidate=candidate,
        lead=lead,
        changed=changed,
        distances=distances,
    )


def lead_of(before: str, after: str) -> float:
    """How much of the longer text two begin with alike, 0 to 1."""
    shorter, longer = sorted((len(before), len(after)))
    parted = (
        at for at, (one, other) in enumerate(zip(before, after, strict=False)) if one != other
    )
    return next(parted, shorter) / longer if longer else 1.0


def _distance(answer: Answer, wanted: str) -> float:
    return 1.0 if answer.error is not None else edit_share(answer.text, wanted)


def figures_of(pairs: Sequence[Pair]) -> Figures:
    """What the pairs show, taken together."""
    both = [pair for pair in pairs if pair.changed is not None]
    repeatable = [pair for pair in both if pair.case.repeatable]
    spoken = [pair.case.feedback for pair in pairs if pair.case.feedback is not None]
    nearness = [pair.nearness for pair in pairs]
    distances = [pair.distances for pair in pairs if pair.distances is not None]
    before = sum(pair.baseline.tokens for pair in both)
    after = sum(pair.candidate.tokens for pair in both)
    baseline = _side([pair.baseline for pair in pairs])
    candidate = _side([pair.candidate for pair in pairs])
    ratio = after / before if before else None
    return Figures(
        baseline=baseline,
        candidate=candidate,
        repeatable=len(repeatable),
        same=sum(pair.same for pair in repeatable),
        lead=_mean(pair.lead for pair in repeatable),
        changed=_mean(pair.changed for pair in repeatable),
        length_ratio=ratio,
        liked=sum(example.ups > example.downs for example in spoken),
        disliked=sum(example.downs > example.ups for example in spoken),
        nearer=nearness.count("nearer"),
        as_near=nearness.count("as near"),
        farther=nearness.count("farther"),
        distances=(
            statistics.fmean(one for one, _ in distances),
            statistics.fmean(other for _, other in distances),
        )
        if distances
        else None,
        marks=tuple(_marks(baseline, candidate, ratio)),
    )


def _side(answers: Sequence[Answer]) -> Side:
    given = [answer for answer in answers if answer.error is None]
    return Side(
        answers=len(given),
        errors=len(answers) - len(given),
        empty=sum(answer.empty for answer in given),
        stop=sum(answer.finish_reason == "stop" for answer in given),
        length=sum(answer.finish_reason == "length" for answer in given),
        tokens=_mean(answer.tokens for answer in given),
        repetition=_mean(repetition(answer.text) for answer in given),
        ttft_ms=_spread([answer.ttft_ms for answer in given if answer.ttft_ms is not None]),
        itl_ms=_spread([answer.itl_ms for answer in given if answer.itl_ms is not None]),
    )


def repetition(text: str) -> float | None:
    """The share of runs of RUN words that came before in the same text; ``None``: too short."""
    words = text.split()
    runs = [tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else None


def _marks(baseline: Side, candidate: Side, ratio: float | None) -> Iterator[str]:
    if candidate.errors:
        yield f"{candidate.errors} requests failed"
    if candidate.empty_share > MAX_EMPTY:
        yield f"{candidate.empty_share:.1%} of the answers are empty ({baseline.empty_share:.1%})"
    if ratio is not None and not 1 / MAX_LENGTH_RATIO <= ratio <= MAX_LENGTH_RATIO:
        yield f"answers are {ratio:.2f} times as long"
    rise = candidate.length_share - baseline.length_share
    if rise > MAX_RISE:
        yield f"{rise * 100:.0f} points more of the answers are cut off at their limit"
    if candidate.repetition is not None and baseline.repetition is not None:
        rise = candidate.repetition - baseline.repetition
        if rise > MAX_RISE:
            yield f"{rise * 100:.0f} points more of the runs of {RUN} words are said again"


def _mean(values: Iterator[float | None] | Iterator[float]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None


def _spread(values: list[float]) -> tuple[float, float] | None:
    """Median and 95th percentile."""
    if not values:
        return None
    values = sorted(values)
    return statistics.median(values), values[min(len(values) - 1, int(0.95 * len(values)))]
