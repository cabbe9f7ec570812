"""What a worker says of itself and of experiments, beside its answers."""

from __future__ import annotations

import logging
import uuid
from concurrent.futures import Future

from infra.contracts.bus import Publisher, RecordPosition
from infra.contracts.catalogue import SHADOW, WORKERS
from infra.contracts.codec import encode, event_headers
from infra.contracts.events.base import Event
from infra.contracts.events.generation import ShadowCompared
from infra.contracts.events.platform import WorkerStatusReported

_LOG = logging.getLogger(__name__)


class EventPublisher:
    """Publishes what a lost record of does little harm, without waiting; a loss is logged."""

    def __init__(self, publisher: Publisher, worker_id: str) -> None:
        self._publisher = publisher
        self._source = f"worker/{worker_id}"

    def status(self, status: WorkerStatusReported) -> None:
        """Which versions this worker has; the next one replaces it."""
        self._publish(WORKERS.name, status.worker_id, status)

    def shadow(self, compared: ShadowCompared) -> None:
        """A candidate's answer to a copy."""
        self._publish(SHADOW.name, compared.request_id, compared)

    def _publish(self, topic: str, key: str, event: Event) -> None:
        headers = event_headers(event, event_id=str(uuid.uuid4()), source=self._source)
        future = self._publisher.publish(
            topic, key=key.encode(), value=encode(event), headers=headers
        )
        future.add_done_callback(_log_failure)


def _log_failure(future: Future[RecordPosition]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _LOG.warning("an event of this worker was not published: %s", error)
