"""The join's merged example and its bounds, beside rules that look at everything at once."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.feedback import (
    FeedbackExample,
    FeedbackForgotten,
    FeedbackReceived,
    PreferencePair,
)
from infra.contracts.events.generation import Assignment, GenerationResult
from stream_workers import feedback as module
from stream_workers.feedback import Joined, JoinState, decode_state, encode_state, expire, join
from tests.metering import metered

PRINCIPALS = st.none() | st.sampled_from(["ada", "bob", "cid"])


def result(reason: str = "stop", text: str = "out", **more: Any) -> GenerationResult:
    return GenerationResult(
        request_id="r",
        submit_id="s",
        model="m",
        prompt="p",
        text=text,
        finish_reason=reason,  # type: ignore[arg-type]
        prompt_tokens=1,
        output_tokens=1,
        model_versions=("m@1", "m@2"),
        created_at_ms=1,
        finished_at_ms=2,
        tenant="acme",
        **more,
    )


@st.composite
def word(draw: st.DrawFn) -> FeedbackReceived:
    """Ids and moments meet now and then, as they do when something is sent again."""
    said: dict[str, Any] = {
        "rating": draw(st.sampled_from([None, "up", "down"])),
        "score": draw(st.sampled_from([None, 0.0, 0.25, 1.0])),
        "edited_text": draw(st.sampled_from([None, "", "x", "y"])),
        "comment": draw(st.sampled_from([None, "", "c"])),
        "pair": draw(st.sampled_from([None, PreferencePair(preferred="b", rejected="w")])),
    }
    if all(value is None for value in said.values()):
        said["rating"] = "up"
    return FeedbackReceived(
        feedback_id=f"f{draw(st.integers(0, 20))}",
        request_id="r",
        created_at_ms=draw(st.integers(0, 9)),
        principal=draw(PRINCIPALS),
        **said,
    )


def run(events: Sequence[Joined]) -> tuple[JoinState, list[FeedbackExample | FeedbackForgotten]]:
    state, published = JoinState(), []
    for event in events:
        state, found = join(decode_state(encode_state(state)), event)
        if found is not None:
            published.append(found)
    return state, published


def expected(kept: Sequence[FeedbackReceived]) -> FeedbackExample:
    """Of each principal the newest word of a kind, of the nameless all; in order of arrival."""

    def standing(kind: str) -> list[Any]:
        found = []
        for one in kept:
            rivals = [
                other
                for other in kept
                if other.principal == one.principal is not None
                and getattr(other, kind) is not None
                and (other.created_at_ms, other.feedback_id) > (one.created_at_ms, one.feedback_id)
            ]
            if getattr(one, kind) is not None and not rivals:
                found.append(getattr(one, kind))
        return found

    scores = standing("score")
    return FeedbackExample(
        request_id="r",
        prompt="p",
        output="out",
        model="m",
        model_versions=("m@1", "m@2"),
        feedback_ids=tuple(one.feedback_id for one in kept),
        updated_at_ms=max(one.created_at_ms for one in kept),
        ups=standing("rating").count("up"),
        downs=standing("rating").count("down"),
        score=fmean(scores) if scores else None,
        edited_text=(standing("edited_text") or [None])[-1],
        pairs=tuple(one.pair for one in kept if one.pair is not None),
        comments=tuple(one.comment for one in kept if one.comment is not None),
        tenant="acme",
        principals=tuple(dict.fromkeys(one.principal for one in kept if one.principal)),
    )


@given(words=st.lists(word(), min_size=1, max_size=12), when=st.integers(0, 12))
def test_the_example_is_what_everybodys_newest_words_say(
    words: list[FeedbackReceived], when: int
) -> None:
    when = min(when, len(words))
    state, published = run([*words[:when], result(), *words[when:]])
    first: dict[str, FeedbackReceived] = {}
    for one in words:
        first.setdefault(one.feedback_id, one)
    kept = list(first.values())
    assert state.feedback == tuple(kept)
    # One example with the result if feedback was there already, and one with each word after it.
    assert len(published) == (when > 0) + len(words) - when
    assert published[-1] == expected(kept)


def said(number: int, principal: str | None, at: int, **more: Any) -> FeedbackReceived:
    return FeedbackReceived(
        feedback_id=f"f{number:04}",
        request_id="r",
        created_at_ms=at,
        principal=principal,
        **(more or {"rating": "up"}),
    )


@given(order=st.permutations(range(module.MOST_BY_ONE + 5)), principal=st.none() | st.just("ada"))
def test_of_one_principal_the_newest_stay_in_whatever_order_they_come(
    order: list[int], principal: str | None
) -> None:
    state, _ = run([said(0, "bob", 0), *(said(1 + at, principal, at) for at in order)])
    newest = {said(1 + at, principal, at) for at in order if at >= 5}
    assert set(state.feedback) == {said(0, "bob", 0), *newest}
    arrived = [said(1 + at, principal, at) for at in order]
    assert state.feedback == (said(0, "bob", 0), *(one for one in arrived if one in newest))


def test_exactly_so_many_of_one_principal_and_of_all_are_kept() -> None:
    state, _ = run([said(at, "ada", at) for at in range(module.MOST_BY_ONE)])
    assert len(state.feedback) == module.MOST_BY_ONE
    assert state.feedback[0].created_at_ms == 0
    full = JoinState(feedback=tuple(said(at, f"p{at}", at) for at in range(module.MOST)))
    # One more name is too many, a name that is in may speak again: its older word goes.
    assert join(full, said(9_999, "late", 9_999))[0] == full
    again, _ = join(full, said(9_999, "p7", 9_999))
    assert len(again.feedback) == module.MOST
    assert said(7, "p7", 7) not in again.feedback
    assert again.feedback[-1] == said(9_999, "p7", 9_999)
    one_less = JoinState(feedback=full.feedback[:-1])
    assert len(join(one_less, said(9_999, "late", 9_999))[0].feedback) == module.MOST
    more, _ = join(one_less, said(9_999, "p7", 9_999))
    assert said(7, "p7", 7) in more.feedback


def test_the_first_result_stands_with_the_trace_it_came_with() -> None:
    origin = [("traceparent", b"1")]
    early, nothing = join(JoinState(), said(1, "ada", 5))
    assert nothing is None
    state, found = join(early, result(), origin=origin)
    assert isinstance(found, FeedbackExample)
    assert (state.origin, state.feedback) == (tuple(origin), early.feedback)
    assert join(state, result(text="other"), origin=[("traceparent", b"2")]) == (state, None)
    failed, nothing = join(early, result("error"))
    assert (failed, nothing) == (early, None)
    assert decode_state(encode_state(state)) == state
    assert decode_state(None) == JoinState()


@given(st.lists(word(), max_size=4))
def test_after_it_is_forgotten_nothing_changes_it(words: list[FeedbackReceived]) -> None:
    forget = FeedbackForgotten(request_id="r", forgotten_at_ms=1)
    gone, found = join(run([*words, result()])[0], forget)
    assert (gone, found) == (JoinState(forgotten=True), forget)
    events: list[Joined] = [*words, result()]
    for event in events:
        assert join(gone, event) == (gone, None)


def test_each_kind_is_counted_with_the_arm_and_with_what_became_of_it() -> None:
    assignment = Assignment(experiment="e", arm="candidate", unit="u")
    both = {"rating": "up", "score": 0.5}
    events: list[Joined] = [
        said(1, None, 1, **both),
        said(1, None, 1, **both),
        result(assignment=assignment),
        said(1, None, 1, **both),
        said(2, None, 2, edited_text="e", comment="c"),
        said(3, None, 3, pair=PreferencePair(preferred="b", rejected="w")),
        FeedbackForgotten(request_id="r", forgotten_at_ms=1),
        said(2, None, 2, comment="c"),
        result(),
    ]
    with metered() as found:
        run(events)
        assert found.values("feedloom.worker.feedback") == {
            ("rating", "early"): 1,
            ("score", "early"): 1,
            ("rating", "repeated"): 1,
            ("score", "repeated"): 1,
            ("candidate", "rating", "joined"): 1,
            ("candidate", "score", "joined"): 1,
            ("candidate", "rating", "repeated"): 1,
            ("candidate", "score", "repeated"): 1,
            ("candidate", "edited_text", "joined"): 1,
            ("candidate", "comment", "joined"): 1,
            ("candidate", "pair", "joined"): 1,
            ("comment", "forgotten"): 1,
        }


def test_what_there_is_no_room_for_and_what_has_no_arm_is_counted_so() -> None:
    with metered() as found:
        full = JoinState(
            result=result(),
            feedback=tuple(said(at, f"p{at}", at) for at in range(module.MOST)),
        )
        join(full, said(9_999, "late", 9_999))
        join(full, result())
        join(JoinState(), result())
        assert found.values("feedloom.worker.feedback") == {("rating", "left out"): 1}


def test_words_that_never_met_their_answer_are_counted_when_they_are_dropped() -> None:
    alone, _ = run([said(1, None, 1, rating="up", comment="c"), said(2, None, 2, score=0.5)])
    with metered() as found:
        assert expire(alone) == 2
        assert found.values("feedloom.worker.feedback") == {
            ("rating", "unmatched"): 1,
            ("comment", "unmatched"): 1,
            ("score", "unmatched"): 1,
        }
    met, _ = run([said(1, None, 1), result()])
    with metered() as found:
        assert expire(met) == expire(JoinState()) == expire(JoinState(forgotten=True)) == 0
        assert found.values("feedloom.worker.feedback") == {}
