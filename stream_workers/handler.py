"""One request from record to final result. Knows nothing of Faust or Kafka clients.

``prepare`` decodes and judges without waiting; ``run`` generates and publishes. When ``run``
returns, the outcome is written and the record may be acknowledged; when it raises, it must not be.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol, cast

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from infra.contracts.bus import Record
from infra.contracts.codec import decode
from infra.contracts.errors import ContractError, MalformedRecord, RequestRefused
from infra.contracts.events import (
    FinishReason,
    GenerationCancellation,
    GenerationChunk,
    GenerationError,
    GenerationRequest,
    GenerationResult,
    Timings,
)
from observability.propagation import extract
from stream_workers.coalescer import ChunkDraft, Coalescer
from stream_workers.engine import Engine, EngineGenerateError, EngineOutput

_TRACER = trace.get_tracer("feedloom.stream_workers")
RequestKey = tuple[str, str]


class Sink(Protocol):
    """Where answers go."""

    async def chunk(self, request: GenerationRequest, chunk: GenerationChunk) -> None:
        """Enqueue; returns before the broker has it."""
        ...

    async def result(self, result: GenerationResult) -> None:
        """Returns once the broker has it."""
        ...

    async def dead_letter(self, record: Record, error: BaseException) -> None:
        """Returns once the broker has the untouched record."""
        ...


@dataclass(frozen=True, kw_only=True)
class HandlerOptions:
    """``retries`` counts further attempts; ``recent`` is how many finished requests are known."""

    worker_id: str
    model: str
    chunk_interval_s: float = 0.05
    chunk_max_tokens: int = 16
    retries: int = 2
    recent: int = 50_000


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A record after judgement. ``cost`` in tokens; 0 when the engine will not be used."""

    record: Record
    received_s: float
    request: GenerationRequest | None = None
    problem: ContractError | RequestRefused | None = None
    cost: int = 0
    prompt_tokens: int = 0


@dataclass
class _Running:
    done: asyncio.Future[None]
    request: GenerationRequest
    cancelled: bool = False
    scope: asyncio.Timeout | None = None


@dataclass
class _Progress:
    attempt: int = 0
    text: list[str] = field(default_factory=list)
    tokens: int = 0
    versions: list[str] = field(default_factory=list)
    started_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None


class RequestHandler:
    """Many requests at once in one event loop; a request and submit id runs once."""

    def __init__(
        self,
        *,
        engine: Engine,
        sink: Sink,
        options: HandlerOptions,
        serving: Callable[[], str],
        now_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._sink = sink
        self._options = options
        self._serving = serving
        self._now_ms = now_ms
        self._monotonic_s = monotonic_s
        self._running: dict[RequestKey, _Running] = {}
        self._recent: OrderedDict[RequestKey, None] = OrderedDict()
        self._cancellations: OrderedDict[str, int] = OrderedDict()

    @property
    def in_flight(self) -> int:
        """Requests being worked on."""
        return len(self._running)

    def prepare(self, record: Record) -> Prepared:
        """Decode and validate; never raises for bad input, the problem is kept for ``run``."""
        now = self._monotonic_s()
        try:
            if record.value is None:
                raise MalformedRecord("a request without a value")
            request = decode(record.value, GenerationRequest)
        except ContractError as error:
            return Prepared(record=record, received_s=now, problem=error)
        try:
            if request.model != self._options.model:
                raise RequestRefused(
                    "unknown_model",
                    f"model {request.model!r} is not served here; {self._options.model!r} is",
                )
            tokens = self._engine.check(request.prompt, request.sampling)
        except RequestRefused as error:
            return Prepared(record=record, received_s=now, request=request, problem=error)
        return Prepared(
            record=record,
            received_s=now,
            request=request,
            cost=tokens + request.sampling.max_tokens,
            prompt_tokens=tokens,
        )

    def cancel(self, event: GenerationCancellation) -> None:
        """Stop the request if it runs, or as soon as it comes, if it was created before."""
        self._cancellations[event.request_id] = event.created_at_ms
        self._cancellations.move_to_end(event.request_id)
        if len(self._cancellations) > self._options.recent:
            self._cancellations.popitem(last=False)
        for running in self._running.values():
            if running.request.request_id == event.request_id and self._is_cancelled(
                running.request
            ):
                running.cancelled = True
                if running.scope is not None:
                    running.scope.reschedule(0)

    async def run(self, prepared: Prepared) -> None:
        """Bring the request to its end. Raises EngineDead; cancelling it leaves no result."""
        request = prepared.request
        if request is None:
            assert prepared.problem is not None
            await self._sink.dead_letter(prepared.record, prepared.problem)
            return
        key = (request.request_id, request.submit_id)
        if key in self._recent:
            return
        twin = self._running.get(key)
        if twin is not None:
            # Acknowledging this copy early would lose the request if the first one is lost.
            await asyncio.shield(twin.done)
            return
        done = asyncio.get_running_loop().create_future()
        running = self._running[key] = _Running(done, request, self._is_cancelled(request))
        try:
            with _TRACER.start_as_current_span(
                f"process {prepared.record.topic}",
                context=extract(prepared.record.headers),
                kind=SpanKind.CONSUMER,
                attributes={
                    "messaging.system": "kafka",
                    "messaging.operation.type": "process",
                    "messaging.destination.name": prepared.record.topic,
                    "messaging.destination.partition.id": str(prepared.record.partition),
                    "messaging.kafka.offset": prepared.record.offset,
                    "feedloom.request.id": request.request_id,
                },
            ):
                await self._answer(prepared, request, running)
            self._recent[key] = None
            if len(self._recent) > self._options.recent:
                self._recent.popitem(last=False)
            done.set_result(None)
        finally:
            del self._running[key]
            done.cancel()

    def _is_cancelled(self, request: GenerationRequest) -> bool:
        at = self._cancellations.get(request.request_id)
        return at is not None and at >= request.created_at_ms

    def _expired(self, request: GenerationRequest) -> bool:
        return request.deadline_ms is not None and self._now_ms() >= request.deadline_ms

    async def _answer(
        self, prepared: Prepared, request: GenerationRequest, running: _Running
    ) -> None:
        progress = _Progress()
        reason: FinishReason
        failure: GenerationError | None = None
        if isinstance(prepared.problem, RequestRefused):
            reason = "error"
            failure = GenerationError(code=prepared.problem.code, message=prepared.problem.message)
        else:
            reason, failure = await self._attempts(request, running, progress)
        if failure is not None or not progress.versions:
            # A request that never reached the engine still ends its chunk stream.
            await self._publish_chunk(
                request, progress, self._coalescer().finish(self._serving(), self._monotonic_s())
            )
        await self._sink.result(self._result(prepared, request, progress, reason, failure))

    async def _attempts(
        self, request: GenerationRequest, running: _Running, progress: _Progress
    ) -> tuple[FinishReason, GenerationError | None]:
        for attempt in range(self._options.retries + 1):
            progress.attempt = attempt
            progress.text, progress.versions, progress.tokens = [], [], 0
            if running.cancelled:
                return "cancelled", None
            if self._expired(request):
                return "deadline_exceeded", None
            try:
                return await self._generate(request, running, progress), None
            except EngineGenerateError as error:
                last = error
        progress.attempt += 1  # fences off the last attempt's chunks
        progress.text, progress.versions, progress.tokens = [], [], 0
        return "error", GenerationError(code="engine_error", message=str(last))

    def _coalescer(self) -> Coalescer:
        return Coalescer(
            interval_s=self._options.chunk_interval_s, max_tokens=self._options.chunk_max_tokens
        )

    async def _generate(
        self, request: GenerationRequest, running: _Running, progress: _Progress
    ) -> FinishReason:
        coalescer = self._coalescer()
        serving = self._serving()
        engine_id = f"{request.request_id}/{request.submit_id}/{progress.attempt}"
        if progress.started_s is None:
            progress.started_s = self._monotonic_s()
        with _TRACER.start_as_current_span(
            f"generate {request.model}",
            attributes={
                "gen_ai.operation.name": "text_completion",
                "gen_ai.provider.name": "vllm",
                "gen_ai.request.model": request.model,
                "gen_ai.request.max_tokens": request.sampling.max_tokens,
            },
        ) as span:
            stream = cast(
                AsyncGenerator[EngineOutput, None],
                self._engine.generate(engine_id, request.prompt, request.sampling, serving),
            )
            reason: FinishReason | None = None
            async with aclosing(stream):
                while reason is None:
                    output = await self._next(stream, request, running)
                    if isinstance(output, str):
                        reason = output
                        await self._engine.abort(engine_id)
                        break
                    now = self._monotonic_s()
                    self._note(progress, output, now)
                    for draft in coalescer.add(output.token_ids, output.text, output.version, now):
                        await self._publish_chunk(request, progress, draft)
                    reason = output.finish_reason
                    span.set_attribute("gen_ai.usage.input_tokens", output.prompt_tokens)
            final = coalescer.finish(
                progress.versions[-1] if progress.versions else serving, self._monotonic_s()
            )
            if not progress.versions:
                progress.versions.append(serving)
            await self._publish_chunk(request, progress, final)
            span.set_attribute("gen_ai.usage.output_tokens", progress.tokens)
            span.set_attribute("gen_ai.response.model", progress.versions[-1])
            span.set_attribute("gen_ai.response.finish_reasons", [reason])
        return reason

    async def _next(
        self,
        stream: AsyncGenerator[EngineOutput, None],
        request: GenerationRequest,
        running: _Running,
    ) -> EngineOutput | FinishReason:
        """The next delta, or why there is none. Only the wait for it can be interrupted."""
        left_s = None
        if request.deadline_ms is not None:
            left_s = max(0.0, (request.deadline_ms - self._now_ms()) / 1000)
        if running.cancelled:
            return "cancelled"
        try:
            async with asyncio.timeout(left_s) as scope:
                running.scope = scope
                return await anext(stream)
        except TimeoutError:
            return "cancelled" if running.cancelled else "deadline_exceeded"
        except StopAsyncIteration:
            raise EngineGenerateError("the engine ended a request without a reason") from None
        finally:
            running.scope = None

    @staticmethod
    def _note(progress: _Progress, output: EngineOutput, now_s: float) -> None:
        progress.text.append(output.text)
        progress.tokens += len(output.token_ids)
        if output.token_ids:
            if output.version not in progress.versions:
                progress.versions.append(output.version)
            progress.first_s = now_s if progress.first_s is None else progress.first_s
            progress.last_s = now_s

    async def _publish_chunk(
        self, request: GenerationRequest, progress: _Progress, draft: ChunkDraft
    ) -> None:
        await self._sink.chunk(
            request,
            GenerationChunk(
                request_id=request.request_id,
                submit_id=request.submit_id,
                attempt=progress.attempt,
                seq=draft.seq,
                first_token=draft.first_token,
                token_ids=draft.token_ids,
                text=draft.text,
                model_version=draft.version,
                emitted_at_ms=self._now_ms(),
                final=draft.final,
            ),
        )

    def _result(
        self,
        prepared: Prepared,
        request: GenerationRequest,
        progress: _Progress,
        reason: FinishReason,
        failure: GenerationError | None,
    ) -> GenerationResult:
        now_s, now_ms = self._monotonic_s(), self._now_ms()
        received = prepared.received_s
        started = now_s if progress.started_s is None else progress.started_s
        end = now_s if progress.last_s is None else progress.last_s
        ttft = itl = None
        if progress.first_s is not None:
            ttft = (progress.first_s - received) * 1000
            if progress.tokens > 1:
                itl = (end - progress.first_s) * 1000 / (progress.tokens - 1)
        return GenerationResult(
            request_id=request.request_id,
            submit_id=request.submit_id,
            model=request.model,
            prompt=request.prompt,
            text="".join(progress.text),
            finish_reason=reason,
            prompt_tokens=prepared.prompt_tokens,
            output_tokens=progress.tokens,
            model_versions=tuple(progress.versions),
            created_at_ms=request.created_at_ms,
            finished_at_ms=now_ms,
            attempt=progress.attempt,
            worker_id=self._options.worker_id,
            tenant=request.tenant,
            user=request.user,
            error=failure,
            timings=Timings(
                queue_ms=max(0.0, now_ms - (now_s - started) * 1000 - request.created_at_ms),
                ttft_ms=ttft,
                itl_ms=itl,
                total_ms=(end - received) * 1000,
            ),
            metadata=request.metadata,
        )
