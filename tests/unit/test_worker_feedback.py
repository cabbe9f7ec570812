"""The join: either side first, replays harmless, everything merged."""

from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events import FeedbackReceived, GenerationResult
from stream_workers.feedback import JoinState, decode_state, encode_state, join


def result(reason: str = "length") -> GenerationResult:
    return GenerationResult(
        request_id="r", submit_id="s", model="default", prompt="p", text="out",
        finish_reason=reason, prompt_tokens=1, output_tokens=1,  # type: ignore[arg-type]
        model_versions=("default@1",), created_at_ms=1, finished_at_ms=2,
    )  # fmt: skip


def feedback(number: int) -> FeedbackReceived:
    return FeedbackReceived(
        feedback_id=f"f{number}", request_id="r", created_at_ms=number, rating="up"
    )


@given(st.permutations([result(), *(feedback(n) for n in range(4)), feedback(1), result()]))
def test_every_order_ends_in_the_same_counts(
    events: list[GenerationResult | FeedbackReceived],
) -> None:
    state, last = JoinState(), None
    for event in events:
        state, example = join(decode_state(encode_state(state)), event)
        last = example or last
    assert last is not None
    assert last.ups == 4
    assert set(last.feedback_ids) == {"f0", "f1", "f2", "f3"}


def test_error_results_make_no_example() -> None:
    state, _ = join(JoinState(), feedback(1))
    assert join(state, result("error"))[1] is None
