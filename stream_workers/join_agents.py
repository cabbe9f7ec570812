"""Faust agents that join feedback with results, by the rules in ``feedback``, in a table."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from aiokafka.partitioner import murmur2
from opentelemetry import trace

from infra.contracts.bus import Record
from infra.contracts.catalogue import EXAMPLES, FEEDBACK, FORGOTTEN, RESULTS
from infra.contracts.codec import decode
from infra.contracts.errors import ContractError, MalformedRecord
from infra.contracts.events.feedback import FeedbackExample, FeedbackForgotten, FeedbackReceived
from infra.contracts.events.generation import GenerationResult
from observability.messaging import LINK, REQUEST_ID, links_to, processing
from observability.propagation import carried
from observability.tracing import fail
from stream_workers.feedback import (
    Joined,
    corrected,
    decode_state,
    encode_state,
    expire,
    join,
    merged,
)
from stream_workers.sink import KafkaSink, may_move

_LOG = logging.getLogger(__name__)
_TRACER = trace.get_tracer("feedloom.stream_workers")

Decoded = TypeVar("Decoded", bound=Joined | FeedbackExample)

_PUBLISHED = 10_000
_SWEPT_PER_EVENT = 4
_SWEPT_PER_INTERVAL = 10_000
_SWEEP_INTERVAL_S = 10.0


class FeedbackJoin:
    """Agents that join results with feedback in a table, publish examples, and forget them.

    What nothing was said of for ``window_s`` is dropped from the table.
    """

    def __init__(
        self, app: Any, *, prefix: str, sink: KafkaSink, partitions: int, window_s: float
    ) -> None:
        self._app = app
        self._partitions = partitions
        self._prefix = prefix
        self._sink = sink
        # By request id, of the partitions' newest: what is on its way, and the last one's offset.
        self._publishing: Counter[str] = Counter()
        self._published: dict[str, int] = {}
        self._crashing: asyncio.Task[None] | None = None
        # Raw bytes on the changelog: the application's default serializers.
        self._table = app.Table(
            "feedback-join", key_type=bytes, value_type=bytes, window_s=window_s, merge=_merge
        )
        for topic, name, agent in (
            (RESULTS.name, "join-results", self._join_results),
            (FEEDBACK.name, "join-feedback", self._join_feedback),
            (FORGOTTEN.name, "forget-feedback", self._forget),
            (EXAMPLES.name, "mind-examples", self._mind),
        ):
            app.agent(self._topic(topic), name=name)(agent)
        # While nothing comes in.
        app.timer(_SWEEP_INTERVAL_S)(self._sweep_at_rest)

    def _topic(self, name: str) -> Any:
        return self._app.topic(
            self._prefix + name,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )

    async def _join_results(self, stream: Any) -> None:
        await self._join_all(stream, GenerationResult)

    async def _join_feedback(self, stream: Any) -> None:
        await self._join_all(stream, FeedbackReceived)

    async def _forget(self, stream: Any) -> None:
        await self._join_all(stream, FeedbackForgotten)

    async def _join_all(self, stream: Any, kind: type[Joined]) -> None:
        async for event in stream.noack().events():
            written = await self._join(event, kind)
            if written is None:
                event.ack()
            else:
                written.add_done_callback(partial(self._written, event))
            self._sweep(_SWEPT_PER_EVENT)

    def _written(self, event: Any, written: asyncio.Future[Any]) -> None:
        """What came of the event is on the changelog; if it cannot be there, the worker ends."""
        if written.cancelled():
            return
        if (error := written.exception()) is None:
            event.ack()
        elif self._crashing is None:
            self._crashing = asyncio.create_task(self._app.crash(error))

    async def _mind(self, stream: Any) -> None:
        """Put right an example that came after a fuller one.

        So it does where another worker had these partitions, was cut off from the brokers, and
        what it had sent arrived late.
        """
        async for event in stream.noack().events():
            record = _record(event.message, self._prefix)
            example, problem = _decoded(record, FeedbackExample) if record.value else (None, None)
            # One that cannot be read is sent to the dead letters by the trainer.
            if problem is None and not self._is_followed(record):
                state = decode_state(self._table.get(record.key or b""))
                if (found := corrected(state, record.key_text, example)) is not None:
                    with processing(
                        _TRACER,
                        record,
                        group=self._app.conf.id,
                        attributes={REQUEST_ID: record.key_text},
                    ):
                        await self._publish(found, record)
            event.ack()

    def _is_followed(self, example: Record) -> bool:
        """Whether this worker has published another behind it, or is about to."""
        key = example.key_text
        return key in self._publishing or example.offset < self._published.get(key, -1)

    async def _publish(self, event: FeedbackExample | FeedbackForgotten, source: Record) -> None:
        key = event.request_id
        self._publishing[key] += 1
        try:
            if isinstance(event, FeedbackExample):
                offset = await self._sink.example(event, source)
            else:
                offset = await self._sink.forget(event, source)
        finally:
            self._publishing -= Counter([key])
        self._published[key] = max(offset, self._published.pop(key, -1))
        if len(self._published) > _PUBLISHED:
            del self._published[next(iter(self._published))]

    async def _join(self, event: Any, kind: type[Joined]) -> asyncio.Future[Any] | None:
        """What is returned ends when the state is written, if it changed."""
        record = _record(event.message, self._prefix)
        received, problem = _decoded(record, kind)
        key = b"" if received is None else received.request_id.encode()
        state = decode_state(self._table.get(key))
        # Feedback comes in a trace of its own; what it is about has another.
        about = links_to(state.origin, **{LINK: "request"}) if kind is not GenerationResult else []
        with processing(
            _TRACER,
            record,
            group=self._app.conf.id,
            attributes={REQUEST_ID: record.key_text},
            links=about,
        ) as joining:
            if received is None:
                assert problem is not None
                fail(joining, type(problem).__qualname__, str(problem))
                await self._sink.publish_dead_letter(record, problem)
                return None
            if kind is not GenerationResult and may_move(record, home := self._home(key)):
                # Another client's partitioner put it where its answer is not.
                await self._sink.move(record, home)
                return None
            following, found = join(state, received, origin=carried(record.headers))
            # Before anything is waited for: another agent may be at the same answer. If this ends
            # here, the event comes again, and publishes what it should have.
            written: asyncio.Future[Any] | None = None
            if following != state:
                written = self._table.write(key, encode_state(following))
            if found is not None:
                await self._publish(found, record)
            return written

    def _home(self, key: bytes) -> int:
        """The partition of results that the platform's own producers give a key."""
        return int((murmur2(key) & 0x7FFFFFFF) % self._partitions)

    async def _sweep_at_rest(self) -> None:
        self._sweep(_SWEPT_PER_INTERVAL)

    def _sweep(self, most: int) -> None:
        unmatched = sum(expire(decode_state(value)) for value in self._table.sweep(most))
        if unmatched:
            _LOG.warning(
                "%d words of feedback found no answer within %g s (worker.feedback_window_s)",
                unmatched,
                self._table.window_s,
            )


def _merge(earlier: bytes, later: bytes) -> bytes:
    return encode_state(merged(decode_state(earlier), decode_state(later)))


def _decoded(
    record: Record, kind: type[Decoded]
) -> tuple[Decoded, None] | tuple[None, ContractError]:
    try:
        if record.value is None:
            raise MalformedRecord("no value")
        return decode(record.value, kind), None
    except ContractError as error:
        return None, error


def _record(message: Any, prefix: str) -> Record:
    headers = message.headers or ()
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return Record(
        topic=message.topic.removeprefix(prefix),
        partition=message.partition,
        offset=message.offset,
        timestamp_ms=int(message.timestamp * 1000),
        key=message.key,
        value=message.value,
        headers=tuple((str(key), bytes(value or b"")) for key, value in pairs),
    )
