"""What an experiment's two arms have shown: the fold of its results and of the feedback on them.

Results and feedback come in any order and any number of times; the figures are the same, to the
bit, as all sums are of integers. Requests are counted in the arm they were drawn for, whatever
answered them in the end: who is left out by what happened later is no longer a random half.

What is held, whatever the traffic: half a kilobyte for each of the newest ``max_requests``
requests, to which feedback may still come, and for each answer with feedback (as many at most);
some 200 bytes for each measure of a unit, of the first MOST_UNITS of an arm; and ``max_waiting``
examples without a result. No text. What a forgotten request had shown stays in the sums; late
feedback on it is dropped, and its redelivery would count again.

Knows nothing of topics, verdicts or confidence. Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from sys import intern
from typing import Literal, NamedTuple, get_args

from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.generation import Arm, GenerationResult
from infra.contracts.events.model import ArmFigures
from infra.rollouts.sequential import Moments

Metric = Literal["rating", "score", "edit"]
Measure = Literal["errors", "ttft", "itl", "tokens"]
ARMS: tuple[Arm, ...] = get_args(Arm)
MEASURES: tuple[Measure, ...] = get_args(Measure)
FINISHED = ("stop", "length")
FAILED = ("error", "deadline_exceeded")
LONGEST_EDIT = 4_000
"""Characters of an answer and of its edit that are compared, in some ten milliseconds."""
MOST_UNITS = 100_000
"""Of an arm that are measured: a lift of one point is found with fewer."""
FINE = 2**20
"""Parts of 1 that values are rounded to, so that sums are of integers."""
NOTHING = Moments()
"""Of what was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """An arm's figures, and the sufficient statistics of what is compared.

    ``outcome``, ``errors`` and ``edits`` (shares of an answer) lie in 0 to 1. ``ttft`` and ``itl``
    are natural logarithms of milliseconds, ``tokens`` are of finished answers.
    """

    figures: ArmFigures
    outcome: Moments = NOTHING
    edits: Moments = NOTHING
    errors: Moments = NOTHING
    ttft: Moments = NOTHING
    itl: Moments = NOTHING
    tokens: Moments = NOTHING


class Arms:
    """One experiment's fold. See the module.

    ``per_user``: of one unit, and of one principal, the feedback on at most so many answers of an
    arm counts, that on the earliest requests: nobody decides an experiment alone. ``stable`` and
    ``candidate`` are the versions.
    """

    def __init__(
        self,
        experiment: str,
        *,
        stable: str,
        candidate: str,
        metric: Metric = "rating",
        per_user: int = 5,
        max_requests: int = 200_000,
        max_waiting: int = 20_000,
    ) -> None:
        self.experiment = experiment
        self._versions: dict[Arm, str] = {"stable": stable, "candidate": candidate}
        self._metric: Metric = metric
        self._per_user = per_user
        self._max_requests = max_requests
        self._max_waiting = max_waiting
        self._requests: dict[str, _Request] = {}
        self._labelled: dict[str, _Request] = {}
        self._waiting: dict[str, _Label] = {}
        self._folds = {arm: {measure: _Fold() for measure in MEASURES} for arm in ARMS}
        self._counted: dict[Arm, _Counted] = {}

    def take_result(self, result: GenerationResult) -> bool:
        """Whether it was news: a result of this experiment not seen before."""
        assignment = result.assignment
        if assignment is None or assignment.experiment != self.experiment:
            self._waiting.pop(result.request_id, None)
            return False
        request = self._known(result.request_id)
        if request is None:
            request = self._requests[result.request_id] = _Request()
            _keep_newest(self._requests, self._max_requests)
        if result.submit_id in request.submits:
            return False
        request.submits += (result.submit_id,)
        self._measure(assignment.arm, assignment.unit, result)
        if result.finish_reason != "error":
            self._answered(
                request,
                result.request_id,
                _Answer(
                    result.created_at_ms, result.submit_id, assignment.arm, intern(assignment.unit)
                ),
            )
        return True

    def take_feedback(self, example: FeedbackExample) -> bool:
        """Whether it was news on a request of this experiment, or is kept until its result comes.

        An example replaces that of its request which merged less.
        """
        return self._label(example.request_id, _label(example, self._metric))

    def forget(self, request_id: str) -> bool:
        """Take out the feedback on a request, and all that still comes. Whether that was news."""
        return self._label(request_id, _FORGOTTEN)

    def summary(self, arm: Arm) -> ArmSummary:
        """All that a decision needs of one arm. Of feedback, that which counts: see ``per_user``.

        Takes a few microseconds for each answer with feedback if any came since the last one.
        """
        counted = self._count(arm)
        folds = self._folds[arm]
        moments = {measure: folds[measure].moments() for measure in MEASURES}
        outcome, edits = counted.outcome.moments(), counted.edits.moments()
        return ArmSummary(
            figures=ArmFigures(
                version=self._versions[arm],
                requests=int(moments["errors"].count),
                errors=int(moments["errors"].total),
                units=outcome.units,
                labels=int(outcome.count),
                ups=counted.ups,
                downs=counted.downs,
                edits=int(edits.count),
                outcome=outcome.mean,
                edit_share=edits.mean,
                output_tokens=moments["tokens"].mean,
                ttft_ms=_geometric(moments["ttft"]),
                itl_ms=_geometric(moments["itl"]),
            ),
            outcome=outcome,
            edits=edits,
            **moments,
        )

    def _known(self, request_id: str) -> _Request | None:
        return self._labelled.get(request_id) or self._requests.get(request_id)

    def _measure(self, arm: Arm, unit: str, result: GenerationResult) -> None:
        folds, timings = self._folds[arm], result.timings
        # One too slow for its deadlines shows in nothing else: what missed them has no times.
        failed = result.error is not None or result.finish_reason in FAILED
        folds["errors"].add(unit, FINE * failed)
        if failed or result.finish_reason not in FINISHED:
            return
        folds["tokens"].add(unit, FINE * result.output_tokens)
        if timings.ttft_ms is not None and timings.ttft_ms > 0:
            folds["ttft"].add(unit, _fine(math.log(timings.ttft_ms)))
        if timings.itl_ms is not None and timings.itl_ms > 0:
            folds["itl"].add(unit, _fine(math.log(timings.itl_ms)))

    def _answered(self, request: _Request, request_id: str, answer: _Answer) -> None:
        """Of several answers under one id, feedback is about the earliest."""
        if request.answer is None or answer < request.answer:
            request.answer = answer
            if request.label is not None:
                self._counted.clear()  # it may have changed arms
        waiting = self._waiting.pop(request_id, None)
        if waiting is not None:
            self._label(request_id, waiting)

    def _label(self, request_id: str, label: _Label) -> bool:
        request = self._known(request_id)
        if request is None or request.answer is None:
            before = self._waiting.pop(request_id, None)
            newer = label if before is None or label.merged > before.merged else before
            self._waiting[request_id] = newer
            _keep_newest(self._waiting, self._max_waiting)
            return newer is not before
        if request.label is None:
            if len(self._labelled) >= self._max_requests:
                return False
            self._labelled[request_id] = self._requests.pop(request_id)
        elif label.merged <= request.label.merged:
            return False
        request.label = label
        self._counted.pop(request.answer.arm, None)
        return True

    def _count(self, arm: Arm) -> _Counted:
        """The labels that count, of the earliest requests first: no matter when they came."""
        if (found := self._counted.get(arm)) is not None:
            return found
        labels = sorted(
            (request.answer.created_at_ms, request_id, request.answer.unit, request.label)
            for request_id, request in self._labelled.items()
            if request.answer is not None
            and request.answer.arm == arm
            and request.label is not None
            and request.label.says_something
        )
        counted, of_unit, of_principal = _Counted(), Counter[str](), Counter[str]()
        for _, _, unit, label in labels:
            if of_unit[unit] < self._per_user and all(
                of_principal[one] < self._per_user for one in label.principals
            ):
                of_unit[unit] += 1
                of_principal.update(label.principals)
                counted.add(unit, label)
        self._counted[arm] = counted
        return counted


def edit_share(before: str, after: str) -> float:
    """How much of a text was changed: Levenshtein's distance over the longer length, 0 to 1.

    Of the first LONGEST_EDIT characters each. Bit-parallel (Myers 1999, in the form of Hyyrö
    2003): a row of the table of distances is one long integer.
    """
    before, after = before[:LONGEST_EDIT], after[:LONGEST_EDIT]
    longer = max(len(before), len(after))
    if before == after:
        return 0.0
    if not before or not after:
        return 1.0
    places: dict[str, int] = {}
    for place, character in enumerate(before):
        places[character] = places.get(character, 0) | 1 << place
    row, last = (1 << len(before)) - 1, 1 << (len(before) - 1)
    rises, falls, distance = row, 0, len(before)
    for character in after:
        matches = places.get(character, 0)
        diagonal = (((matches & rises) + rises) ^ rises) | matches | falls
        right_rises = falls | (row & ~(diagonal | rises))
        right_falls = rises & diagonal
        if right_rises & last:
            distance += 1
        elif right_falls & last:
            distance -= 1
        right_rises = (right_rises << 1 | 1) & row
        rises = (right_falls << 1 & row) | (row & ~(diagonal | right_rises))
        falls = right_rises & diagonal
    return distance / longer


class _Answer(NamedTuple):
    """In the order that decides which of several under one request id feedback is about."""

    created_at_ms: int
    submit_id: str
    arm: Arm
    unit: str


class _Label(NamedTuple):
    """What of an example counts. ``merged`` grows with what was merged into it."""

    merged: tuple[int, int]
    outcome: int | None = None
    edited: int | None = None
    ups: int = 0
    downs: int = 0
    principals: tuple[str, ...] = ()

    @property
    def says_something(self) -> bool:
        return self.outcome is not None or self.edited is not None


_FORGOTTEN = _Label(merged=(2**63, 0))


class _Request:
    """One request id: the submits seen of it, its answer, and the feedback on that."""

    __slots__ = ("answer", "label", "submits")

    def __init__(self) -> None:
        self.submits: tuple[str, ...] = ()
        self.answer: _Answer | None = None
        self.label: _Label | None = None


class _Fold:
    """Moments kept up to date, in integers."""

    def __init__(self) -> None:
        self._units: dict[str, tuple[int, int]] = {}
        self._total = self._count = self._total_squared = self._cross = self._count_squared = 0

    def add(self, unit: str, value: int) -> None:
        """One observation of a unit."""
        if unit not in self._units and len(self._units) >= MOST_UNITS:
            return
        total, count = self._units.get(unit, (0, 0))
        self._units[unit] = total + value, count + 1
        self._total += value
        self._count += 1
        self._total_squared += value * (2 * total + value)
        self._cross += total + value * (count + 1)
        self._count_squared += 2 * count + 1

    def moments(self) -> Moments:
        """In the units of what was measured."""
        return Moments(
            units=len(self._units),
            total=self._total / FINE,
            count=float(self._count),
            total_squared=self._total_squared / FINE**2,
            cross=self._cross / FINE,
            count_squared=float(self._count_squared),
        )


class _Counted:
    """The labels of an arm that count, summed up."""

    def __init__(self) -> None:
        self.outcome = _Fold()
        self.edits = _Fold()
        self.ups = self.downs = 0

    def add(self, unit: str, label: _Label) -> None:
        """One more."""
        if label.outcome is not None:
            self.outcome.add(unit, label.outcome)
        if label.edited is not None:
            self.edits.add(unit, label.edited)
        self.ups += label.ups
        self.downs += label.downs


def _label(example: FeedbackExample, metric: Metric) -> _Label:
    votes = example.ups + example.downs
    edited = (
        None if example.edited_text is None else edit_share(example.output, example.edited_text)
    )
    outcome: float | None = None
    if metric == "rating" and votes:
        outcome = example.ups / votes
    elif metric == "score":
        outcome = example.score
    elif metric == "edit" and edited is not None:
        outcome = 1 - edited
    elif metric == "edit" and example.ups > example.downs:
        outcome = 1.0
    return _Label(
        merged=(len(example.feedback_ids), example.updated_at_ms),
        outcome=None if outcome is None else _fine(outcome),
        edited=None if edited is None else _fine(edited),
        ups=example.ups,
        downs=example.downs,
        principals=example.principals,
    )


def _fine(value: float) -> int:
    return round(value * FINE)


def _geometric(logs: Moments) -> float | None:
    mean = logs.mean
    return None if mean is None else math.exp(mean)


def _keep_newest(held: dict[str, _Request] | dict[str, _Label], most: int) -> None:
    if len(held) > most:
        del held[next(iter(held))]
