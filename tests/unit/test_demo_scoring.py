"""The demo's judge: a rule that anyone can recompute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.generation import GenerationResult
from producers.demo.judge import judge
from producers.demo.prompts import DemoPrompt, questions
from producers.demo.scoring import overlap_f1, percentile, score, well_formed, win_rate, words
from producers.demo.traffic import Answer

TRUTH = "returns the number of bytes written to the file"


def answer(text: str, continuation: str | None) -> Answer:
    return Answer(
        prompt=DemoPrompt(prompt="The method", continuation=continuation),
        result=GenerationResult(
            request_id="r1",
            submit_id="s1",
            model="default",
            prompt="The method",
            text=text,
            finish_reason="length",
            prompt_tokens=2,
            output_tokens=9,
            model_versions=("default@1",),
            created_at_ms=0,
            finished_at_ms=1,
        ),
        trace_id="0" * 32,
        ttft_ms=1.0,
        itl_ms=(1.0,),
    )


def test_score_is_the_mean_of_unigram_and_bigram_f1() -> None:
    # 3 of 4 words and 1 of 3 bigrams agree, against the first 4 words of the truth.
    assert score("returns the total number", TRUTH) == pytest.approx((3 / 4 + 1 / 3) / 2)


def test_score_of_the_truth_is_one_and_of_nothing_is_zero() -> None:
    assert score(TRUTH, TRUTH) == 1.0
    assert score("", TRUTH) == 0.0


def test_score_counts_a_repeated_word_only_as_often_as_the_truth_has_it() -> None:
    assert overlap_f1(words("the the the the"), words("the cat"), 1) == pytest.approx(2 / 6)


@given(st.text(), st.text())
def test_score_stays_within_zero_and_one(mine: str, truth: str) -> None:
    assert 0.0 <= score(mine, truth) <= 1.0


def test_well_formed_refuses_loops_and_stubs() -> None:
    assert not well_formed("of the of the of the of the of the")
    assert not well_formed("too short")
    assert well_formed("opens a file and returns an object that reads text from it")


def test_win_rate_counts_a_tie_as_half() -> None:
    assert win_rate([0.2, 0.1, 0.5], [0.1, 0.1, 0.9]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="same prompts"):
        win_rate([0.1], [])


@given(st.lists(st.floats(0, 1), min_size=1), st.lists(st.floats(0, 1), min_size=1))
def test_win_rates_of_two_sides_add_to_one(left: list[float], right: list[float]) -> None:
    size = min(len(left), len(right))
    a, b = left[:size], right[:size]
    assert win_rate(a, b) + win_rate(b, a) == pytest.approx(1.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_percentile_lies_between_the_extremes(values: list[float], fraction: float) -> None:
    value = percentile(values, fraction)
    assert min(values) - 1e-6 <= value <= max(values) + 1e-6


def test_an_opening_is_rated_by_score_and_edited_to_the_truth() -> None:
    good, bad = judge([answer(TRUTH, TRUTH), answer("nothing alike", TRUTH)])
    assert (good.rating, good.edit) == ("up", TRUTH)
    assert (bad.rating, bad.edit) == ("down", TRUTH)


def test_every_fourth_opening_yields_a_pair_that_prefers_the_truth() -> None:
    verdicts = list(judge([answer("nothing alike", TRUTH)] * 5))
    assert [verdict.pair is not None for verdict in verdicts] == [True, False, False, False, True]
    assert verdicts[0].pair == (TRUTH, "nothing alike")


def test_a_question_is_rated_by_form_and_never_edited() -> None:
    (verdict,) = judge([answer("opens a file and returns an object that reads text", None)])
    assert (verdict.rating, verdict.edit, verdict.pair) == ("up", None, None)


def test_the_questions_come_with_the_package() -> None:
    asked = questions()
    assert len(asked) >= 16
    assert all(prompt.continuation is None for prompt in asked)
