"""The join: either side first, replays harmless, everything merged, and forgotten for good."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.feedback import FeedbackExample, FeedbackForgotten, FeedbackReceived
from infra.contracts.events.generation import GenerationResult
from stream_workers.feedback import Joined, JoinState, decode_state, encode_state, join
from tests.joining import result


def feedback(number: int) -> FeedbackReceived:
    return FeedbackReceived(
        feedback_id=f"f{number}", request_id="r", created_at_ms=number, rating="up"
    )


FORGET = FeedbackForgotten(request_id="r", forgotten_at_ms=9, reason="asked")


def run(events: Sequence[Joined]) -> tuple[JoinState, list[FeedbackExample | FeedbackForgotten]]:
    """The last state, as the table keeps it, and everything that was published."""
    state, published = JoinState(), []
    for event in events:
        state, found = join(decode_state(encode_state(state)), event)
        if found is not None:
            published.append(found)
    return state, published


@given(st.permutations([result(), *(feedback(n) for n in range(4)), feedback(1), result()]))
def test_every_order_ends_in_the_same_counts(
    events: list[GenerationResult | FeedbackReceived],
) -> None:
    last = run(events)[1][-1]
    assert isinstance(last, FeedbackExample)
    assert last.ups == 4
    assert set(last.feedback_ids) == {"f0", "f1", "f2", "f3"}


@given(st.permutations([result(), FORGET, *(feedback(n) for n in range(3)), FORGET, result()]))
def test_nothing_of_a_forgotten_request_is_kept_or_given_out(events: list[Joined]) -> None:
    state, found = run(events)
    first = events.index(FORGET)
    assert all(isinstance(one, FeedbackExample) for one in run(events[:first])[1])
    assert found[len(run(events[:first])[1]) :] == [FORGET, FORGET]
    assert state == JoinState(forgotten=True)
    assert b"out" not in encode_state(state)


def test_error_results_make_no_example() -> None:
    state, _ = join(JoinState(), feedback(1))
    assert join(state, result("error"))[1] is None
