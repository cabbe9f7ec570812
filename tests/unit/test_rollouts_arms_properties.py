"""The fold of an experiment, beside one that keeps every event and counts at the end."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.generation import (
    Arm,
    Assignment,
    GenerationError,
    GenerationResult,
    Timings,
)
from infra.rollouts.arms import FINE, Arms, Metric
from infra.rollouts.sequential import Moments

REQUESTS = st.sampled_from(["r1", "r2", "r3"])
PEOPLE = st.sampled_from(["ada", "bob", "eve"])


@st.composite
def results(draw: st.DrawFn) -> GenerationResult:
    finish: Any = draw(
        st.sampled_from(["stop", "length", "cancelled", "deadline_exceeded", "error", "stop"])
    )
    return GenerationResult(
        request_id=draw(REQUESTS),
        submit_id=draw(st.sampled_from(["s1", "s2", "s3"])),
        model="m",
        prompt="p",
        text="answer",
        finish_reason=finish,
        prompt_tokens=1,
        output_tokens=draw(st.integers(0, 5)),
        model_versions=("m@1",),
        created_at_ms=draw(st.integers(0, 3)),
        finished_at_ms=9,
        timings=Timings(
            ttft_ms=draw(st.sampled_from([None, 0.0, 1.0, 20.0])),
            itl_ms=draw(st.sampled_from([None, 0.0, 0.5, 8.0])),
        ),
        error=draw(st.sampled_from([None, None, GenerationError(code="c", message="m")])),
        assignment=draw(
            st.none()
            | st.builds(
                Assignment,
                experiment=st.sampled_from(["e", "e", "e", "other"]),
                arm=st.sampled_from(get_args(Arm)),
                unit=PEOPLE,
            )
        ),
    )


@st.composite
def examples(draw: st.DrawFn) -> FeedbackExample:
    merged = draw(st.integers(1, 3))
    return FeedbackExample(
        request_id=draw(REQUESTS),
        prompt="p",
        output="answer",
        model="m",
        model_versions=("m@1",),
        feedback_ids=tuple(map(str, range(merged))),
        updated_at_ms=draw(st.integers(0, 2)),
        ups=draw(st.integers(0, 2)),
        downs=draw(st.integers(0, 2)),
        score=draw(st.sampled_from([None, 0.0, 0.3])),
        edited_text=draw(st.sampled_from([None, "answer", "answers", "else"])),
        principals=tuple(draw(st.lists(PEOPLE, unique=True, max_size=2))),
    )


CHANGED = {"answer": 0.0, "answers": 1 / 7, "else": 4 / 6}


def outcome_of(example: FeedbackExample, metric: Metric) -> float | None:
    edited = None if example.edited_text is None else CHANGED[example.edited_text]
    if metric == "rating":
        votes = example.ups + example.downs
        return example.ups / votes if votes else None
    if metric == "score":
        return example.score
    if edited is not None:
        return 1 - edited
    return 1.0 if example.ups > example.downs else None


def moments(observed: list[tuple[str, float]]) -> Moments:
    units: dict[str, list[int]] = {}
    for unit, value in observed:
        units.setdefault(unit, []).append(round(value * FINE))
    sums = [(sum(values), len(values)) for values in units.values()]
    return Moments(
        units=len(units),
        total=sum(total for total, _ in sums) / FINE,
        count=sum(count for _, count in sums),
        total_squared=sum(total**2 for total, _ in sums) / FINE**2,
        cross=sum(total * count for total, count in sums) / FINE,
        count_squared=sum(count**2 for _, count in sums),
    )


@given(
    events=st.lists(results() | examples() | REQUESTS, max_size=20),
    metric=st.sampled_from(get_args(Metric)),
    most=st.integers(1, 3),
)
def test_the_summary_is_what_all_events_say(events: list[Any], metric: Metric, most: int) -> None:
    fold = Arms("e", stable="1", candidate="2", metric=metric, per_user=most)
    assert fold.experiment == "e"
    taken: dict[tuple[str, str], GenerationResult] = {}
    labels: dict[str, tuple[tuple[float, int], FeedbackExample | None]] = {}
    for event in events:
        if isinstance(event, GenerationResult):
            ours = event.assignment is not None and event.assignment.experiment == "e"
            key = (event.request_id, event.submit_id)
            assert fold.take_result(event) == (ours and key not in taken)
            answered = any(
                one.request_id == event.request_id and one.finish_reason != "error"
                for one in taken.values()
            )
            if ours:
                taken.setdefault(key, event)
            elif not answered:
                # Nobody of the experiment answered it yet: what waited for that is let go.
                labels.pop(event.request_id, None)
        else:
            known = isinstance(event, FeedbackExample)
            name = event.request_id if known else event
            merged = (len(event.feedback_ids), event.updated_at_ms) if known else (math.inf, 0)
            news = name not in labels or merged > labels[name][0]
            if known:
                assert fold.take_feedback(event) == news
            else:
                assert fold.forget(event) == news
            if news:
                labels[name] = (merged, event if known else None)
    for arm in get_args(Arm):
        of_arm = [
            one
            for one in taken.values()
            if one.assignment is not None and one.assignment.arm == arm
        ]
        found = fold.summary(arm)

        def measured(value: Any, of_arm: Any = of_arm) -> Moments:
            pairs = [(one.assignment.unit, value(one)) for one in of_arm]
            return moments([(unit, number) for unit, number in pairs if number is not None])

        def failed(one: GenerationResult) -> bool:
            return one.error is not None or one.finish_reason in ("error", "deadline_exceeded")

        def whole(one: GenerationResult) -> bool:
            return not failed(one) and one.finish_reason in ("stop", "length")

        def logarithm(one: GenerationResult, value: float | None) -> float | None:
            return math.log(value) if whole(one) and value is not None and value > 0 else None

        assert found.errors == measured(lambda one: float(failed(one)))
        assert found.tokens == measured(lambda one: one.output_tokens if whole(one) else None)
        assert found.ttft == measured(lambda one: logarithm(one, one.timings.ttft_ms))
        assert found.itl == measured(lambda one: logarithm(one, one.timings.itl_ms))

        counted: list[tuple[str, FeedbackExample]] = []
        firsts = sorted(
            min(
                (one.created_at_ms, one.request_id, one.submit_id)
                for one in taken.values()
                if one.request_id == name and one.finish_reason != "error"
            )
            for name in {one.request_id for one in taken.values() if one.finish_reason != "error"}
        )
        for _, name, submit in firsts:
            answer, label = taken[name, submit], labels.get(name, (0, None))[1]
            assert answer.assignment is not None
            if answer.assignment.arm != arm or label is None:
                continue
            if outcome_of(label, metric) is None and label.edited_text is None:
                continue
            unit = answer.assignment.unit
            spoken = [one for _, each in counted for one in each.principals]
            if [one for one, _ in counted].count(unit) < most and all(
                spoken.count(one) < most for one in label.principals
            ):
                counted.append((unit, label))
        outcomes = [(unit, outcome_of(label, metric)) for unit, label in counted]
        assert found.outcome == moments([(u, value) for u, value in outcomes if value is not None])
        edits = [(u, CHANGED[one.edited_text]) for u, one in counted if one.edited_text is not None]
        assert found.edits == moments(edits)
        figures = fold.summary(arm).figures
        assert figures == found.figures
        assert figures.version == {"stable": "1", "candidate": "2"}[arm]
        assert (figures.ups, figures.downs) == (
            sum(one.ups for _, one in counted),
            sum(one.downs for _, one in counted),
        )
        assert (figures.requests, figures.errors) == (len(of_arm), sum(map(failed, of_arm)))
        assert (figures.units, figures.labels) == (found.outcome.units, found.outcome.count)
        assert (figures.edits, figures.edit_share) == (len(edits), found.edits.mean)
        assert (figures.outcome, figures.output_tokens) == (found.outcome.mean, found.tokens.mean)
        for shown, logs in ((figures.ttft_ms, found.ttft), (figures.itl_ms, found.itl)):
            assert shown == (None if logs.mean is None else pytest.approx(math.exp(logs.mean)))


def test_edits_and_thumbs_of_two_people_add_up() -> None:
    fold = Arms("e", stable="1", candidate="2")
    for number, unit in enumerate(("ada", "bob")):
        fold.take_result(
            GenerationResult(
                request_id=f"r{number}",
                submit_id="s",
                model="m",
                prompt="p",
                text="answer",
                finish_reason="stop",
                prompt_tokens=1,
                output_tokens=1,
                model_versions=("m@1",),
                created_at_ms=number,
                finished_at_ms=9,
                assignment=Assignment(experiment="e", arm="stable", unit=unit),
            )
        )
        fold.take_feedback(
            FeedbackExample(
                request_id=f"r{number}",
                prompt="p",
                output="answer",
                model="m",
                model_versions=("m@1",),
                feedback_ids=("f",),
                updated_at_ms=1,
                ups=1,
                downs=2 + number,
                edited_text="else",
            )
        )
    found = fold.summary("stable")
    assert (found.edits.units, found.figures.edits) == (2, 2)
    assert (found.figures.ups, found.figures.downs) == (2, 5)
