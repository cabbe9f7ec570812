"""Events of ``feedback.*``: what people said of answers, and what the trainer reads of that."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from infra.contracts.events.base import Count, EpochMs, Event, Identifier


class PreferencePair(msgspec.Struct, frozen=True, kw_only=True):
    """Of two answers to one prompt, the one a person preferred and the one they did not."""

    preferred: str
    rejected: str


class FeedbackReceived(Event, frozen=True, kw_only=True, tag="FeedbackReceived"):
    """One principal's word on one answer. At least one of the five kinds must be given."""

    feedback_id: Identifier
    request_id: Identifier
    created_at_ms: EpochMs
    rating: Literal["up", "down"] | None = None
    score: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    edited_text: str | None = None
    pair: PreferencePair | None = None
    comment: str | None = None
    principal: str | None = None
    signature: str | None = None

    def __post_init__(self) -> None:
        given = (self.rating, self.score, self.edited_text, self.pair, self.comment)
        if all(kind is None for kind in given):
            raise ValueError(
                "feedback says nothing: give a rating, score, edited_text, pair or comment"
            )


class FeedbackForgotten(Event, frozen=True, kw_only=True, tag="FeedbackForgotten"):
    """Somebody asked that the feedback on one answer be forgotten, now and whatever still comes.

    The example is taken out of every later run; versions that learnt from it are flagged.
    ``principal``: who asked.
    """

    request_id: Identifier
    forgotten_at_ms: EpochMs
    reason: str | None = None
    principal: str | None = None


class FeedbackExample(Event, frozen=True, kw_only=True, tag="FeedbackExample"):
    """All feedback on one answer, joined with its prompt and output: what the trainer reads.

    The topic is compacted by request id, so the newest record holds the merged whole.
    ``feedback_ids`` lists the events merged so far, which makes a replayed event harmless.
    ``principals``: who gave them, each once; nobody for feedback that says no principal.
    """

    request_id: Identifier
    prompt: str
    output: str
    model: str
    model_versions: tuple[str, ...]
    feedback_ids: tuple[str, ...]
    updated_at_ms: EpochMs
    ups: Count = 0
    downs: Count = 0
    score: float | None = None
    edited_text: str | None = None
    pairs: tuple[PreferencePair, ...] = ()
    comments: tuple[str, ...] = ()
    tenant: str | None = None
    principals: tuple[str, ...] = ()
