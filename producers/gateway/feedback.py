"""Feedback that came over HTTP, onto its topic."""

from __future__ import annotations

import time
from uuid import uuid4

from infra.contracts import catalogue
from infra.contracts.bus import Bus
from infra.contracts.events.feedback import FeedbackReceived, PreferencePair
from infra.identity.principal import Principal
from infra.registry.client import send
from producers.gateway.bodies import FeedbackBody
from producers.gateway.delivery import acknowledged


class GatewayFeedback:
    """One producer for all callers."""

    def __init__(self, bus: Bus, *, source: str) -> None:
        self._source = source
        self._publisher = bus.publisher(client_id=source)

    async def publish(self, caller: Principal, body: FeedbackBody) -> str:
        """The id of the feedback, once it is on the topic. Raises ApiError 503."""
        pair = body.pair
        event = FeedbackReceived(
            feedback_id=str(uuid4()),
            request_id=body.request_id,
            created_at_ms=time.time_ns() // 1_000_000,
            rating=body.rating,
            score=body.score,
            edited_text=body.edited_text,
            pair=None
            if pair is None
            else PreferencePair(preferred=pair.preferred, rejected=pair.rejected),
            comment=body.comment,
            # Caps are by principal: of the person behind a service, where it names one.
            principal=f"{caller.tenant}/{body.user or caller.subject}",
        )
        written = send(
            self._publisher,
            catalogue.FEEDBACK.name,
            body.request_id,
            event,
            source=self._source,
            event_id=event.feedback_id,
        )
        await acknowledged(written)
        return event.feedback_id

    def close(self) -> None:
        """Flush and disconnect."""
        self._publisher.close()
