"""A worker that was cut off writes late, after the new owner: nothing that was known is lost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.feedback import FeedbackExample, FeedbackForgotten, FeedbackReceived
from stream_workers.feedback import Joined, JoinState, corrected, join, merged
from tests.joining import result

RESULT = result()
FORGET = FeedbackForgotten(request_id="r", forgotten_at_ms=9)
WORDS = [
    FeedbackReceived(
        feedback_id=f"f{number}",
        request_id="r",
        created_at_ms=number,
        rating="up",
        principal=f"p{number % 2}",
    )
    for number in range(4)
]
Published = FeedbackExample | FeedbackForgotten


def steps(events: Sequence[Joined]) -> tuple[list[JoinState], list[Published]]:
    """Every state on the way, and what was published, of an owner that sees these events."""
    state, states, published = JoinState(), [], []
    for event in events:
        state, found = join(state, event)
        states.append(state)
        if found is not None:
            published.append(found)
    return states, published


@st.composite
def logs(draw: st.DrawFn, *, forgotten: bool = False) -> tuple[list[Joined], int, list[bool]]:
    """Events, how many of them the one who is cut off saw, and whose write came when."""
    events = draw(st.permutations([RESULT, *WORDS, *([FORGET] if forgotten else [])]))
    seen = draw(st.integers(0, len(events)))
    return events, seen, draw(st.permutations([True] * seen + [False] * len(events)))


def interleaved(
    late: Sequence[JoinState], own: Sequence[JoinState], order: Sequence[bool]
) -> list[JoinState]:
    mine, others = iter(own), iter(late)
    return [next(others if turn else mine) for turn in order]


@given(logs())
def test_the_states_on_the_changelog_hold_all_in_whatever_order_they_came(
    log: tuple[list[Joined], int, list[bool]],
) -> None:
    events, seen, order = log
    own, late = steps(events)[0], steps(events[:seen])[0]
    found = reduce(merged, interleaved(late, own, order))
    assert found.result == RESULT
    assert {one.feedback_id for one in found.feedback} == {one.feedback_id for one in WORDS}


@given(logs(forgotten=True))
def test_what_was_forgotten_stays_so(log: tuple[list[Joined], int, list[bool]]) -> None:
    events, seen, order = log
    own, late = steps(events)[0], steps(events[:seen])[0]
    assert reduce(merged, interleaved(late, own, order)) == JoinState(forgotten=True)


@given(logs())
def test_states_of_one_owner_are_merged_to_its_last(
    log: tuple[list[Joined], int, list[bool]],
) -> None:
    states = steps(log[0])[0]
    assert reduce(merged, states) == states[-1]
    assert merged(states[-1], states[-1]) == states[-1]


@given(logs(), st.data())
def test_an_example_that_came_late_is_put_right(
    log: tuple[list[Joined], int, list[bool]], data: st.DataObject
) -> None:
    states, published = steps(log[0])
    state, last = states[-1], published[-1]
    stale = data.draw(st.sampled_from(published))
    assert isinstance(stale, FeedbackExample)
    found = corrected(state, "r", stale)
    assert found == (None if stale.feedback_ids == last.feedback_ids else last)
    # And that is the end of it.
    assert corrected(state, "r", last if found is None else found) is None  # type: ignore[arg-type]


def test_a_late_example_of_what_is_forgotten_is_taken_out_again() -> None:
    _, published = steps([RESULT, *WORDS])
    last = published[-1]
    assert isinstance(last, FeedbackExample)
    found = corrected(JoinState(forgotten=True), "r", last)
    assert isinstance(found, FeedbackForgotten)
    assert (found.request_id, found.forgotten_at_ms) == ("r", last.updated_at_ms)
    assert corrected(JoinState(forgotten=True), "r", None) is None


def test_what_knows_more_than_this_worker_is_left_alone() -> None:
    states, published = steps([RESULT, *WORDS])
    last = published[-1]
    assert isinstance(last, FeedbackExample)
    for state in (JoinState(), JoinState(feedback=states[-1].feedback), *states[:-1]):
        assert corrected(state, "r", last) is None
    assert corrected(states[-1], "r", None) is None
    first = next(one for one in published if isinstance(one, FeedbackExample))
    assert first.feedback_ids < last.feedback_ids
    assert corrected(JoinState(feedback=states[-1].feedback), "r", first) is None


def test_whose_trace_the_result_came_with_is_kept() -> None:
    known, _ = join(JoinState(), RESULT, origin=(("traceparent", b"1"),))
    words = JoinState(feedback=tuple(WORDS))
    assert merged(known, words).origin == merged(words, known).origin == known.origin
