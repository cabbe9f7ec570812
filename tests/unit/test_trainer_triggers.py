"""What starts a round of training, and what does not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.config_sections import TrainerConfig
from infra.contracts.errors import ConfigurationError
from infra.contracts.events.feedback import FeedbackExample
from trainer.triggers import LiveWinRate, Schedule, liked, why_now

CONFIG = TrainerConfig(min_examples=10, max_wait_s=60.0, drift_drop=0.1)


def example(
    number: int, *, ups: int = 0, downs: int = 0, edit: str | None = None,
    score: float | None = None, version: str = "m@2",
) -> FeedbackExample:  # fmt: skip
    return FeedbackExample(
        request_id=f"r{number}", prompt="p", output="o", model="m", model_versions=("m@1", version),
        feedback_ids=("f",), updated_at_ms=1, ups=ups, downs=downs, edited_text=edit, score=score,
    )  # fmt: skip


def why(**given: object) -> str | None:
    calm: dict[str, object] = {
        "teaching": 0, "waiting": 1, "waited_s": 0.0, "fall": None, "scheduled": False,
    }  # fmt: skip
    return why_now(**{"config": CONFIG, **calm, **given})  # type: ignore[arg-type]


def test_each_trigger_says_why_and_only_new_feedback_counts() -> None:
    assert why() is None
    for given_, word in (
        ({"teaching": 10}, "count"),
        ({"waited_s": 60.0}, "age"),
        ({"fall": (0.8, 0.7)}, "drift"),
        ({"scheduled": True}, "schedule"),
    ):
        assert (why(**given_) or "").startswith(word)
        if word != "count":
            assert why(waiting=0, **given_) is None
    assert why(fall=(0.8, 0.75)) is None
    assert why(fall=(0.8, 0.2), config=TrainerConfig(drift_drop=0.0)) is None


def test_what_people_like() -> None:
    assert liked(example(1, ups=2, downs=1)) is True
    assert liked(example(1, downs=1, score=1.0)) is False
    assert liked(example(1, ups=2, edit="better")) is False
    assert liked(example(1, score=0.4)) is False
    assert liked(example(1, ups=1, downs=1)) is None


def rate(*groups: tuple[int, int]) -> LiveWinRate:
    """Groups of so many liked of so many answers, spread evenly."""
    found, number = LiveWinRate(), 0
    found.follow("m@2")
    for good, count in groups:
        for index in range(count):
            up = (index + 1) * good // count > index * good // count
            found.add(example(number, ups=up, downs=not up))
            number += 1
    return found


def test_a_fall_is_told_from_chance() -> None:
    assert rate((80, 100)).fall(100) is None
    assert rate((80, 100), (99, 99)).fall(100) is None
    assert rate((80, 100), (76, 100)).fall(100) is None
    assert rate((80, 100), (60, 100)).fall(100) == (0.8, 0.6)
    # A slow fall is held against the beginning, not against yesterday.
    assert rate((80, 100), (75, 100), (70, 100), (65, 100)).fall(100) == (0.8, 0.65)
    assert rate((60, 100), (80, 100)).fall(100) is None
    assert rate((10, 10), (10, 10)).fall(10) is None


@given(st.lists(st.booleans(), min_size=20, max_size=60), st.integers(10, 30))
def test_the_same_share_is_never_a_fall(verdicts: list[bool], window: int) -> None:
    found = LiveWinRate()
    found.follow("m@2")
    for number, up in enumerate([*verdicts, *verdicts][: 2 * len(verdicts)]):
        found.add(example(number, ups=up, downs=not up))
    measured = found.fall(len(verdicts))
    assert measured is None
    fallen = found.fall(window)
    assert fallen is None or fallen[0] > fallen[1]


def test_another_version_and_a_reset_begin_anew() -> None:
    found = rate((90, 100), (10, 100))
    found.add(example(999, downs=1, version="m@1"))
    assert found.fall(100) == (0.9, 0.1)
    found.follow("m@2")
    assert found.fall(100) is not None
    found.forget("r0")
    assert found.fall(100) is None
    found = rate((90, 100), (10, 100))
    found.follow("m@3")
    assert found.fall(100) is None
    found = rate((90, 100), (10, 100))
    found.reset()
    assert found.fall(10) is None


def at(day: int, hour: int, minute: int = 0) -> float:
    return datetime(2030, 1, day, hour, minute, tzinfo=UTC).timestamp()


def test_a_schedule_is_due_once_and_makes_up_for_what_it_missed() -> None:
    nightly = Schedule("0 3 * * *", last_s=at(1, 12))
    assert not nightly.is_due(at(2, 2, 59))
    assert nightly.is_due(at(2, 3, 1))
    assert nightly.is_due(at(5, 17))
    nightly.ran(at(5, 17))
    assert not nightly.is_due(at(6, 2))
    assert nightly.is_due(at(6, 4))
    assert not Schedule(None, last_s=0.0).is_due(at(1, 1))


def test_a_wrong_expression_is_refused_at_start() -> None:
    with pytest.raises(ConfigurationError, match="cron expression"):
        Schedule("every night", last_s=0.0)


@given(
    ups=st.integers(0, 2),
    downs=st.integers(0, 2),
    score=st.sampled_from([None, 0.0, 0.4999, 0.5, 1.0]),
    edit=st.sampled_from([None, "", "better"]),
)
def test_an_edit_speaks_before_thumbs_and_thumbs_before_a_score(
    ups: int, downs: int, score: float | None, edit: str | None
) -> None:
    found = liked(example(1, ups=ups, downs=downs, score=score, edit=edit))
    if edit is not None:
        assert found is False
    elif ups != downs:
        assert found is (ups > downs)
    else:
        assert found is (None if score is None else score >= 0.5)


@given(st.integers(1, 60), st.data())
def test_a_fall_is_one_that_the_test_of_two_proportions_shows(
    window: int, data: st.DataObject
) -> None:
    """Fleiss, Levin and Paik 2003, section 3.1, without the correction for continuity."""
    good, later = data.draw(st.integers(0, window)), data.draw(st.integers(0, window))
    between = data.draw(st.integers(0, 5))
    # Those between count neither as the measure nor as what is held against it.
    found = rate((good, window), (between, between), (later, window)).fall(window)
    before, now = good / window, later / window
    pooled = (good + later) / (2 * window)
    error = (2 * pooled * (1 - pooled) / window) ** 0.5
    if before - now > 1.6448536269514722 * error:
        assert found == (before, now)
    else:
        assert found is None
    assert rate((good, window), (max(0, window - 1), window - 1)).fall(window) is None


def test_newer_feedback_takes_the_place_of_older_and_of_another_version_none() -> None:
    found = rate((4, 4), (0, 4))
    assert found.fall(4) == (1.0, 0.0)
    # The first four are the measure still: one of them changed its mind.
    found.add(example(0, downs=1))
    assert found.fall(4) == (0.75, 0.0)
    found.add(example(0, ups=1, downs=1))
    assert found.fall(4) == (0.75, 0.0)
    found.add(example(0, ups=1, version="m@1"))
    assert found.fall(4) == (0.75, 0.0)
    found.forget("never there")
    found.forget("r0")
    assert found.fall(4) is None


def test_why_is_said_in_whole_sentences_and_at_the_very_limits() -> None:
    assert why(teaching=9) is None
    assert why(teaching=10) == "count: 10 new answers with feedback to learn from"
    assert why(waited_s=59.9) is None
    assert why(waited_s=60.0) == "age: feedback waits for 60 s"
    assert why(fall=(0.75, 0.5)) == "drift: people like 50% of the answers, before 75%"
    exact = TrainerConfig(min_examples=10, max_wait_s=60.0, drift_drop=0.25)
    assert why(fall=(0.75, 0.5), config=exact) is not None
    assert why(fall=(0.75, 0.51), config=exact) is None
    # A drop of one, and everything beyond it, can never be.
    whole = TrainerConfig(min_examples=10, max_wait_s=60.0, drift_drop=1.0)
    assert why(fall=(1.0, 0.0), config=whole) is not None
    assert why(scheduled=True) == "schedule"
    assert why(waiting=0, scheduled=True) is None


def test_a_schedule_counts_from_the_last_round_and_not_before_its_moment() -> None:
    hourly = Schedule("0 * * * *", last_s=at(1, 12))
    assert not hourly.is_due(at(1, 12, 59))
    assert hourly.is_due(at(1, 13, 1))
    hourly.ran(at(1, 13))
    # The moment that the last round was run at is not due again.
    assert not hourly.is_due(at(1, 13, 30))
    with pytest.raises(
        ConfigurationError,
        match=r"^trainer\.schedule: 'every night' is no cron expression, such as '0 3 \* \* \*'$",
    ):
        Schedule("every night", last_s=0.0)


def test_where_chance_ends() -> None:
    """At 1.645 standard errors: 0.1007 for 80 and 70 of 100, 0.1014 for 80 and 69."""
    assert rate((80, 100), (70, 100)).fall(100) is None
    assert rate((80, 100), (69, 100)).fall(100) == (0.8, 0.69)
