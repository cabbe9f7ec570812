"""Joins feedback with the result it speaks of, until it is forgotten. A reducer that counts.

The agents around it are in ``join_agents``. Either side may come first. Whenever a result and new
feedback meet, the merged example of all feedback so far is given out; it replaces the older one
under the same key. Once somebody asked to forget a request, nothing is kept of it but that.

A principal has one rating, one score and one edit of an answer: the newest. What is kept of an
answer is bounded, so that nobody makes its state, which is written anew with each word, grow
without end. Whoever names no principal is taken for somebody else each time, within the bound.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from infra.contracts.codec import Headers
from infra.contracts.events.feedback import FeedbackExample, FeedbackForgotten, FeedbackReceived
from infra.contracts.events.generation import GenerationResult
from observability.instruments import ARM, FEEDBACK, FEEDBACK_KIND, OUTCOME

_KINDS = ("rating", "score", "edited_text", "pair", "comment")

MOST_BY_ONE = 32
"""Words on one answer that are kept of a principal, and of all who name none: the newest."""
MOST = 256
"""Words on one answer that are kept in all: of the principals who came first."""

Joined = GenerationResult | FeedbackReceived | FeedbackForgotten


class JoinState(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one request id. ``feedback`` in order of arrival, each id once.

    ``origin``: the trace context that the result came with.
    """

    result: GenerationResult | None = None
    feedback: tuple[FeedbackReceived, ...] = ()
    forgotten: bool = False
    origin: tuple[tuple[str, bytes], ...] = ()


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(JoinState)


def encode_state(state: JoinState) -> bytes:
    """For the table."""
    return _ENCODER.encode(state)


def decode_state(data: bytes | None) -> JoinState:
    """From the table; ``None`` is the empty state."""
    return JoinState() if data is None else _DECODER.decode(data)


def join(
    state: JoinState, event: Joined, *, origin: Headers = ()
) -> tuple[JoinState, FeedbackExample | FeedbackForgotten | None]:
    """The next state, and what to publish: the example, if this event completed or changed one,
    or that it is forgotten.

    A replayed event publishes again: the first publication may have been lost.
    """
    following, found = _joined(state, event, origin)
    if isinstance(event, FeedbackReceived):
        _count(event, following, _outcome(state, event, following))
    elif isinstance(event, GenerationResult) and state.result is None and found is not None:
        for early in following.feedback:
            _count(early, following, "joined")
    return following, found


def merged(earlier: JoinState, later: JoinState) -> JoinState:
    """Two states of one request id, either of which may lack what the other knows.

    A worker that lost its partitions without knowing may write a state after the new owner wrote a
    fuller one, so the last one written is not the whole.
    """
    if earlier.forgotten or later.forgotten:
        return JoinState(forgotten=True)
    known = earlier if earlier.result is not None else later
    feedback = earlier.feedback
    for event in later.feedback:
        if event.feedback_id not in {one.feedback_id for one in feedback}:
            feedback = _with(feedback, event)
    return JoinState(result=known.result, origin=known.origin, feedback=feedback)


def corrected(
    state: JoinState, request_id: str, example: FeedbackExample | None
) -> FeedbackExample | FeedbackForgotten | None:
    """What to publish in place of ``example`` (``None``: a tombstone) if it knows less.

    ``None``: it is right, or what it says beyond ``state`` is not known here.
    """
    if example is None:
        return None
    if state.forgotten:
        return FeedbackForgotten(request_id=request_id, forgotten_at_ms=example.updated_at_ms)
    if state.result is None or not state.feedback:
        return None
    if set(example.feedback_ids) < {event.feedback_id for event in state.feedback}:
        return _merge(state.result, state.feedback)
    return None


def expire(state: JoinState) -> int:
    """Words of feedback that go with ``state``, when it is dropped, and never met their answer."""
    if state.result is not None:
        return 0
    for event in state.feedback:
        _count(event, state, "unmatched")
    return len(state.feedback)


def _joined(
    state: JoinState, event: Joined, origin: Headers
) -> tuple[JoinState, FeedbackExample | FeedbackForgotten | None]:
    if isinstance(event, FeedbackForgotten):
        return JoinState(forgotten=True), event
    if state.forgotten:
        return state, None
    if isinstance(event, GenerationResult):
        # The first result stands. An error has no answer that feedback could be about.
        if event.finish_reason == "error" or state.result not in (None, event):
            return state, None
        if state.result is None:
            state = JoinState(result=event, feedback=state.feedback, origin=tuple(origin))
    elif event.feedback_id not in {known.feedback_id for known in state.feedback}:
        state = msgspec.structs.replace(state, feedback=_with(state.feedback, event))
    if state.result is None or not state.feedback:
        return state, None
    return state, _merge(state.result, state.feedback)


def _with(
    feedback: tuple[FeedbackReceived, ...], event: FeedbackReceived
) -> tuple[FeedbackReceived, ...]:
    """What is kept once ``event`` came: the same, in whatever order one principal's words come."""
    own = sorted((one for one in (*feedback, event) if one.principal == event.principal), key=_age)
    full = len(feedback) >= MOST
    if len(own) > MOST_BY_ONE or (full and len(own) > 1):
        return tuple(one for one in (*feedback, event) if one != own[0])
    return feedback if full else (*feedback, event)


def _age(event: FeedbackReceived) -> tuple[int, str]:
    return event.created_at_ms, event.feedback_id


def _standing(feedback: Iterable[FeedbackReceived], kind: str) -> list[FeedbackReceived]:
    """Those that count for one kind, in order of arrival: the newest of each principal."""
    newest: dict[str, FeedbackReceived] = {}
    for item in sorted(feedback, key=_age):
        if item.principal is not None and getattr(item, kind) is not None:
            newest[item.principal] = item
    return [
        item
        for item in feedback
        if getattr(item, kind) is not None
        and (item.principal is None or newest[item.principal] is item)
    ]


def _outcome(state: JoinState, event: FeedbackReceived, following: JoinState) -> str:
    if state.forgotten:
        return "forgotten"
    if event.feedback_id in {known.feedback_id for known in state.feedback}:
        return "repeated"
    if event not in following.feedback:
        return "left out"
    return "early" if state.result is None else "joined"


def _count(event: FeedbackReceived, state: JoinState, outcome: str) -> None:
    """Once by each kind that was given."""
    attributes = {OUTCOME: outcome}
    if state.result is not None and state.result.assignment is not None:
        attributes[ARM] = state.result.assignment.arm
    for kind in _KINDS:
        if getattr(event, kind) is not None:
            FEEDBACK.add(1, {**attributes, FEEDBACK_KIND: kind})


def _merge(result: GenerationResult, feedback: tuple[FeedbackReceived, ...]) -> FeedbackExample:
    ratings = [item.rating for item in _standing(feedback, "rating")]
    scores = [item.score for item in _standing(feedback, "score") if item.score is not None]
    edits = [item.edited_text for item in _standing(feedback, "edited_text")]
    return FeedbackExample(
        request_id=result.request_id,
        prompt=result.prompt,
        output=result.text,
        model=result.model,
        model_versions=result.model_versions,
        feedback_ids=tuple(item.feedback_id for item in feedback),
        updated_at_ms=max(item.created_at_ms for item in feedback),
        ups=ratings.count("up"),
        downs=ratings.count("down"),
        score=sum(scores) / len(scores) if scores else None,
        edited_text=edits[-1] if edits else None,
        pairs=tuple(item.pair for item in feedback if item.pair is not None),
        comments=tuple(item.comment for item in feedback if item.comment is not None),
        tenant=result.tenant,
        principals=tuple(dict.fromkeys(item.principal for item in feedback if item.principal)),
    )
