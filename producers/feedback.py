"""Say what you think of a result: rating, score, edit, preferred and rejected pair, comment.

Or ask that what was said of it be forgotten.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Literal, Self
from uuid import uuid4

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from infra.contracts import catalogue
from infra.contracts.bus import Bus, RecordPosition
from infra.contracts.events.base import Event
from infra.contracts.events.feedback import FeedbackForgotten, FeedbackReceived, PreferencePair
from infra.registry.client import send
from observability.messaging import REQUEST_ID, send_attributes
from producers.errors import InvalidFeedback

tracer = trace.get_tracer("feedloom.producers")

MAXIMUM_ID = 256


class FeedbackClient:
    """A context manager; leaving it waits until all feedback is written, and raises if it is not.

    Every method that gives feedback returns its id.
    """

    def __init__(self, bus: Bus, *, source: str, principal: str | None = None) -> None:
        self._source = source
        self._principal = principal
        self._publisher = bus.publisher(client_id=source)
        self._pending: list[Future[RecordPosition]] = []

    def rate(self, request_id: str, rating: Literal["up", "down"]) -> str:
        """A thumb. Raises InvalidFeedback, as every method here."""
        if rating not in ("up", "down"):
            raise InvalidFeedback(f"a rating is up or down, not {rating!r}")
        return self._publish(self._event(request_id, rating=rating))

    def grade(self, request_id: str, score: float) -> str:
        """A score from 0 to 1."""
        if not 0 <= score <= 1:
            raise InvalidFeedback(f"a score lies between 0 and 1, not at {score}")
        return self._publish(self._event(request_id, score=score))

    def edit(self, request_id: str, text: str) -> str:
        """The text as it should have been."""
        if not text.strip():
            raise InvalidFeedback("an edit without text teaches nothing; rate it down instead")
        return self._publish(self._event(request_id, edited_text=text))

    def prefer(self, request_id: str, preferred: str, rejected: str) -> str:
        """Of two answers, the better one."""
        if preferred == rejected:
            raise InvalidFeedback("the preferred and the rejected text are the same")
        pair = PreferencePair(preferred=preferred, rejected=rejected)
        return self._publish(self._event(request_id, pair=pair))

    def comment(self, request_id: str, comment: str) -> str:
        """Free text, for people."""
        if not comment.strip():
            raise InvalidFeedback("the comment is empty")
        return self._publish(self._event(request_id, comment=comment))

    def forget(self, request_id: str, *, reason: str | None = None) -> None:
        """Take all feedback on this answer, past and future, out of every later training run.

        The workers that join feedback do it as they read this; versions that learnt from it are
        flagged (``feedloom feedback lineage``).
        """
        self._check(request_id)
        event = FeedbackForgotten(
            request_id=request_id,
            forgotten_at_ms=_now_ms(),
            reason=reason,
            principal=self._principal,
        )
        self._send(catalogue.FORGOTTEN.name, event, request_id, event_id=str(uuid4()))

    def close(self) -> None:
        """Wait until everything is written; raises the first delivery error. Safe to call twice."""
        self._publisher.close()
        pending, self._pending = self._pending, []
        for future in pending:
            future.result(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _event(
        self,
        request_id: str,
        *,
        rating: Literal["up", "down"] | None = None,
        score: float | None = None,
        edited_text: str | None = None,
        pair: PreferencePair | None = None,
        comment: str | None = None,
    ) -> FeedbackReceived:
        self._check(request_id)
        return FeedbackReceived(
            feedback_id=str(uuid4()),
            request_id=request_id,
            created_at_ms=_now_ms(),
            rating=rating,
            score=score,
            edited_text=edited_text,
            pair=pair,
            comment=comment,
            principal=self._principal,
        )

    @staticmethod
    def _check(request_id: str) -> None:
        if not 1 <= len(request_id) <= MAXIMUM_ID:
            raise InvalidFeedback(f"a request id has 1 to {MAXIMUM_ID} characters")

    def _publish(self, event: FeedbackReceived) -> str:
        self._send(catalogue.FEEDBACK.name, event, event.request_id, event_id=event.feedback_id)
        return event.feedback_id

    def _send(self, topic: str, event: Event, request_id: str, *, event_id: str) -> None:
        with tracer.start_as_current_span(
            f"send {topic}",
            kind=SpanKind.PRODUCER,
            attributes=send_attributes(topic, key=request_id) | {REQUEST_ID: request_id},
        ):
            self._pending.append(
                send(
                    self._publisher,
                    topic,
                    request_id,
                    event,
                    source=self._source,
                    event_id=event_id,
                )
            )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
