"""The fold of an experiment: what counts, whose, how often, and in whatever order it came."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.generation import (
    Arm,
    Assignment,
    FinishReason,
    GenerationError,
    GenerationResult,
    Timings,
)
from infra.rollouts import arms as under_test
from infra.rollouts.arms import ARMS, LONGEST_EDIT, Arms, ArmSummary, edit_share

EXPERIMENT = "m:2"
NO_TIMINGS = Timings()


def arms(**options: Any) -> Arms:
    return Arms(EXPERIMENT, stable="v1", candidate="v2", **options)


def result(
    request: str = "r",
    *,
    arm: Arm = "candidate",
    unit: str = "ada",
    submit: str = "s",
    at: int = 0,
    finish: FinishReason = "stop",
    experiment: str = EXPERIMENT,
    tokens: int = 10,
    timings: Timings = NO_TIMINGS,
    error: GenerationError | None = None,
) -> GenerationResult:
    return GenerationResult(
        request_id=request,
        submit_id=submit,
        model="m",
        prompt="p",
        text="an answer",
        finish_reason=finish,
        prompt_tokens=1,
        output_tokens=tokens,
        model_versions=("v",),
        created_at_ms=at,
        finished_at_ms=at,
        timings=timings,
        error=error,
        assignment=Assignment(experiment=experiment, arm=arm, unit=unit),
    )


def example(request: str = "r", **said: Any) -> FeedbackExample:
    """``merged`` feedback events make it what it is."""
    merged = said.pop("merged", 1)
    return FeedbackExample(
        request_id=request,
        prompt="p",
        output="an answer",
        model="m",
        model_versions=("v",),
        feedback_ids=tuple(map(str, range(merged))),
        updated_at_ms=merged,
        **said,
    )


def outcome(example: FeedbackExample, metric: Any) -> float | None:
    fold = arms(metric=metric)
    fold.take_result(result())
    fold.take_feedback(example)
    return fold.summary("candidate").figures.outcome


@pytest.mark.parametrize(
    ("metric", "said", "expected"),
    [
        ("rating", {"ups": 3, "downs": 1}, 0.75),
        ("rating", {"score": 0.9}, None),
        ("score", {"score": 0.25, "ups": 1}, 0.25),
        ("score", {"ups": 1}, None),
        ("edit", {"edited_text": "an answer"}, 1.0),
        ("edit", {"edited_text": "an answer", "downs": 1}, 1.0),
        ("edit", {"edited_text": "an ANSWER"}, 1 - 6 / 9),
        ("edit", {"ups": 1}, 1.0),
        ("edit", {"downs": 1}, None),
        ("edit", {"ups": 1, "downs": 1}, None),
        ("rating", {"comments": ("hm",)}, None),
    ],
)
def test_the_outcome_of_an_example(
    metric: str, said: dict[str, Any], expected: float | None
) -> None:
    found = outcome(example(**said), metric)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-6))


def test_figures() -> None:
    fold = arms()
    for number, (ttft, tokens) in enumerate(((10.0, 20), (1000.0, 40))):
        timings = Timings(ttft_ms=ttft, itl_ms=5.0)
        assert fold.take_result(
            result(f"r{number}", unit=f"u{number}", timings=timings, tokens=tokens)
        )
    fold.take_result(result("broken", finish="error", timings=Timings(ttft_ms=9999.0)))
    fold.take_result(
        result("failed", error=GenerationError(code="engine", message="died"), tokens=999)
    )
    fold.take_result(result("cancelled", finish="cancelled", tokens=999))
    fold.take_result(result("late", finish="deadline_exceeded", tokens=999))
    fold.take_feedback(example("r0", ups=1, edited_text="an ANSWER"))
    fold.take_feedback(example("r1", downs=1))
    found = fold.summary("candidate").figures
    assert found.version == "v2"
    assert (found.requests, found.errors) == (6, 3)
    assert (found.units, found.labels, found.ups, found.downs, found.edits) == (2, 2, 1, 1, 1)
    assert found.outcome == 0.5
    assert found.edit_share == pytest.approx(6 / 9, abs=1e-6)
    assert found.output_tokens == 30
    assert found.ttft_ms == pytest.approx(100, rel=1e-5)
    assert found.itl_ms == pytest.approx(5, rel=1e-5)
    nothing = fold.summary("stable").figures
    assert (nothing.version, nothing.requests, nothing.units) == ("v1", 0, 0)
    assert (nothing.outcome, nothing.edit_share, nothing.output_tokens) == (None, None, None)
    assert (nothing.ttft_ms, nothing.itl_ms) == (None, None)


@given(
    labels=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(0, 4), st.integers(1, 9)), max_size=60
    )
)
def test_what_a_decision_stands_on_is_the_totals_of_units(
    labels: list[tuple[str, int, int]],
) -> None:
    fold = arms(per_user=99)
    units: dict[str, list[float]] = {}
    for number, (unit, ups, downs) in enumerate(labels):
        fold.take_result(result(f"r{number}", unit=unit, tokens=ups))
        fold.take_feedback(example(f"r{number}", ups=ups, downs=downs))
        units.setdefault(unit, []).append(ups / (ups + downs))
    found = fold.summary("candidate")
    sums = [(sum(values), len(values)) for values in units.values()]
    assert found.outcome.units == len(units)
    assert found.outcome.total == pytest.approx(sum(y for y, _ in sums), abs=1e-4)
    assert found.outcome.count == sum(n for _, n in sums)
    assert found.outcome.total_squared == pytest.approx(sum(y * y for y, _ in sums), abs=1e-3)
    assert found.outcome.cross == pytest.approx(sum(y * n for y, n in sums), abs=1e-3)
    assert found.outcome.count_squared == sum(n * n for _, n in sums)
    assert found.tokens.total == sum(ups for _, ups, _ in labels)
    assert found.tokens.count_squared == found.outcome.count_squared


def test_an_answer_of_one_token_has_no_gap_between_tokens() -> None:
    fold = arms()
    fold.take_result(result(timings=Timings(ttft_ms=10.0, itl_ms=None)))
    fold.take_result(result("s", timings=Timings(ttft_ms=0.0, itl_ms=0.0)))
    found = fold.summary("candidate")
    assert (found.ttft.count, found.itl.count, found.tokens.count) == (1, 0, 2)
    assert found.ttft.total == pytest.approx(math.log(10.0), abs=1e-6)


def test_one_unit_has_only_so_many_labels_and_the_earliest() -> None:
    fold = arms(per_user=2)
    for at in (3, 1, 2, 0):
        fold.take_result(result(f"r{at}", at=at))
        fold.take_feedback(example(f"r{at}", ups=int(at < 2), downs=int(at >= 2)))
    found = fold.summary("candidate").figures
    assert (found.labels, found.units, found.outcome, found.ups, found.downs) == (2, 1, 1.0, 2, 0)
    assert found.requests == 4


def test_one_principal_has_only_so_many_labels_whoever_asked() -> None:
    fold = arms(per_user=2)
    for number in range(5):
        fold.take_result(result(f"r{number}", unit=f"u{number}", at=number))
        fold.take_feedback(example(f"r{number}", ups=1, principals=("eve",)))
    fold.take_result(result("other", unit="other", at=9))
    fold.take_feedback(example("other", downs=1, principals=("bob",)))
    for number in range(3):  # the other arm has its own count
        fold.take_result(result(f"s{number}", arm="stable", unit=f"v{number}"))
        fold.take_feedback(example(f"s{number}", ups=1, principals=("eve",)))
    candidate, stable = fold.summary("candidate").figures, fold.summary("stable").figures
    assert (candidate.labels, candidate.ups, candidate.downs, stable.labels) == (3, 2, 1, 2)


def test_feedback_without_a_principal_is_limited_by_its_unit_only() -> None:
    fold = arms(per_user=1)
    for number in range(3):
        fold.take_result(result(f"r{number}", unit=f"u{number}"))
        fold.take_feedback(example(f"r{number}", ups=1))
    assert fold.summary("candidate").figures.labels == 3


def test_what_says_nothing_takes_nobodys_place() -> None:
    fold = arms(per_user=1)
    for at in (0, 1):
        fold.take_result(result(f"r{at}", at=at))
    fold.take_feedback(example("r0", comments=("hm",)))
    fold.take_feedback(example("r1", ups=1))
    assert fold.summary("candidate").figures.labels == 1


def test_feedback_waits_for_its_result_and_that_of_others_is_dropped() -> None:
    fold = arms()
    assert fold.take_feedback(example("r", ups=1))
    assert fold.take_feedback(example("foreign", ups=1))
    assert not fold.take_result(result("foreign", experiment="m:1"))
    assert not fold.take_result(msgspec.structs.replace(result("unassigned"), assignment=None))
    assert fold.take_result(result("r"))
    found = fold.summary("candidate").figures
    assert (found.requests, found.labels) == (1, 1)


def test_an_example_replaces_what_merged_less() -> None:
    fold = arms()
    fold.take_result(result())
    assert fold.take_feedback(example(ups=1))
    assert fold.take_feedback(example(ups=1, downs=1, merged=2))
    assert not fold.take_feedback(example(ups=1, downs=1, merged=2))
    assert not fold.take_feedback(example(ups=1))
    found = fold.summary("candidate").figures
    assert (found.labels, found.outcome) == (1, 0.5)


@pytest.mark.parametrize("known", [True, False])
def test_what_was_forgotten_stays_forgotten(known: bool) -> None:
    fold = arms()
    if known:
        fold.take_result(result())
    fold.take_feedback(example(ups=1))
    assert fold.forget("r")
    assert not fold.take_feedback(example(ups=1, merged=9))
    fold.take_result(result())
    found = fold.summary("candidate").figures
    assert (found.requests, found.labels) == (1, 0)


def test_a_request_id_used_again_is_another_request_and_feedback_is_on_the_first_answer() -> None:
    fold = arms()
    fold.take_feedback(example(ups=1))
    fold.take_result(result(submit="c", at=0, unit="nobody", finish="error"))
    fold.take_result(result(submit="b", at=9, unit="late", arm="stable"))
    assert fold.summary("stable").figures.labels == 1
    fold.take_result(result(submit="a", at=3, unit="early"))
    assert not fold.take_result(result(submit="a", at=3, unit="early"))
    stable, candidate = fold.summary("stable").figures, fold.summary("candidate").figures
    assert (stable.requests, stable.labels) == (1, 0)
    assert (candidate.requests, candidate.errors, candidate.labels) == (2, 1, 1)


def test_the_waiting_and_the_requests_are_bounded_and_the_sums_stay() -> None:
    fold = arms(max_requests=3, max_waiting=2, per_user=99)
    for number in range(4):
        fold.take_feedback(example(f"w{number}", ups=1))
    for number in range(4):
        fold.take_result(result(f"w{number}"))
    assert fold.summary("candidate").figures.labels == 2
    for number in range(10):
        fold.take_result(result(f"r{number}"))
    for number in range(10):
        fold.take_feedback(example(f"r{number}", ups=1))
    found = fold.summary("candidate").figures
    assert (found.requests, found.labels) == (14, 3)
    assert fold.take_feedback(example("w3", ups=1, downs=1, merged=2)), "it was counted already"
    assert fold.summary("candidate").figures.downs == 1


def test_the_units_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "MOST_UNITS", 2)
    fold = arms()
    for number in range(6):
        fold.take_result(result(f"r{number}", unit=f"u{number % 3}"))
    assert (fold.summary("candidate").errors.units, fold.summary("candidate").figures.requests) == (
        2,
        4,
    )


users = st.sampled_from(["ada", "bob", "eve"])
events = st.lists(
    st.one_of(
        st.builds(
            result,
            st.sampled_from("rstu"),
            arm=st.sampled_from(ARMS),
            unit=users,
            submit=st.sampled_from(["a", "b"]),
            at=st.integers(0, 3),
            finish=st.sampled_from(["stop", "error", "cancelled"]),
            tokens=st.integers(0, 100),
            timings=st.builds(
                Timings, ttft_ms=st.floats(1e-3, 1e6), itl_ms=st.none() | st.floats(1e-3, 1e6)
            ),
        ),
        st.builds(
            example,
            st.sampled_from("rstu"),
            merged=st.integers(1, 3),
            ups=st.integers(0, 3),
            downs=st.integers(0, 3),
            edited_text=st.none() | st.text("an swer", max_size=12),
            principals=st.lists(users, unique=True).map(tuple),
        ),
        st.sampled_from("rstu"),
    ),
    max_size=30,
)


def folded(given_events: list[Any]) -> tuple[ArmSummary, ...]:
    fold = arms(per_user=2)
    for number, event in enumerate(given_events):
        if isinstance(event, GenerationResult):
            fold.take_result(event)
        elif isinstance(event, FeedbackExample):
            fold.take_feedback(event)
        else:
            fold.forget(event)
        if number % 3 == 0:
            fold.summary("stable")  # looking changes nothing
    return tuple(map(fold.summary, ARMS))


@given(events=events, data=st.data())
def test_any_order_and_any_number_of_times_give_the_same_bits(
    events: list[Any], data: st.DataObject
) -> None:
    # One submit has one result, and of one request so many events merge into one example.
    alike: dict[object, Any] = {}
    for event in events:
        if isinstance(event, GenerationResult):
            alike.setdefault((event.request_id, event.submit_id), event)
        elif isinstance(event, FeedbackExample):
            alike.setdefault((event.request_id, event.updated_at_ms), event)
        else:
            alike.setdefault(event, event)
    once = list(alike.values())
    again = data.draw(st.lists(st.sampled_from(once))) if once else []
    mixed = data.draw(st.permutations([*once, *again]))
    assert folded(mixed) == folded(once)


def levenshtein(before: str, after: str) -> int:
    row = list(range(len(after) + 1))
    for place, character in enumerate(before, start=1):
        above, row = row, [place]
        for other, there in enumerate(after, start=1):
            row.append(min(above[other] + 1, row[-1] + 1, above[other - 1] + (character != there)))
    return row[-1]


@given(before=st.text("abc", max_size=80), after=st.text("abc", max_size=80))
def test_the_edit_share_is_levenshteins(before: str, after: str) -> None:
    expected = levenshtein(before, after) / max(len(before), len(after), 1)
    assert edit_share(before, after) == pytest.approx(expected)
    assert edit_share(after, before) == pytest.approx(expected)


def test_only_the_beginnings_of_long_texts_are_compared() -> None:
    same = "a" * LONGEST_EDIT
    assert edit_share(same + "b", same + "c") == 0.0
    assert edit_share("", "a") == edit_share("a", "") == 1.0
