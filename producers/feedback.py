"""Say what you think of a result: rating, score, edit, preferred and rejected pair, comment."""

from __future__ import annotations

import time
from concurrent.futures import Future
from types import TracebackType
from typing import Literal, Self
from uuid import uuid4

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus, RecordPosition
from infra.contracts.events import FeedbackReceived, PreferencePair
from observability.propagation import inject
from producers.errors import InvalidFeedback

tracer = trace.get_tracer("feedloom.producers")

MAXIMUM_ID = 256


class FeedbackClient:
    """A context manager; leaving it waits until all feedback is written, and raises if it is not.

    Every method returns the new feedback's id.
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

    def close(self) -> None:
        """Wait until everything is written; raises the first delivery error. Safe to call twice."""
        self._publisher.close()
        pending, self._pending = self._pending, []
        for future in pending:
            future.result(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
        if not 1 <= len(request_id) <= MAXIMUM_ID:
            raise InvalidFeedback(f"a request id has 1 to {MAXIMUM_ID} characters")
        return FeedbackReceived(
            feedback_id=str(uuid4()),
            request_id=request_id,
            created_at_ms=time.time_ns() // 1_000_000,
            rating=rating,
            score=score,
            edited_text=edited_text,
            pair=pair,
            comment=comment,
            principal=self._principal,
        )

    def _publish(self, event: FeedbackReceived) -> str:
        topic = catalogue.FEEDBACK.name
        with tracer.start_as_current_span(
            f"send {topic}",
            kind=SpanKind.PRODUCER,
            attributes={"feedloom.request.id": event.request_id},
        ):
            headers = codec.event_headers(event, event_id=event.feedback_id, source=self._source)
            self._pending.append(
                self._publisher.publish(
                    topic,
                    key=event.request_id.encode(),
                    value=codec.encode(event),
                    headers=inject(headers),
                )
            )
        return event.feedback_id
