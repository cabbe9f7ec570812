"""One request from record to outcome. Knows nothing of Faust, Kafka clients or partitions.

``prepare`` decodes and judges without waiting. ``run`` generates, publishes chunks, and returns
the record that ends the request: its result, or its dead letter. Whoever calls it writes that
record and the request's offset together. When ``run`` raises, the request has no outcome.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

from opentelemetry import trace
from opentelemetry.trace import Span

from infra.contracts.bus import Record
from infra.contracts.catalogue import REQUESTS_BATCH
from infra.contracts.codec import DEADLINE_HEADER, decode, header
from infra.contracts.errors import ContractError, MalformedRecord, RequestRefused
from infra.contracts.events.generation import (
    FinishReason,
    GenerationCancellation,
    GenerationChunk,
    GenerationError,
    GenerationRequest,
    GenerationResult,
)
from observability.generation import span_name
from observability.messaging import REQUEST_ID, processing
from observability.tracing import fail, is_recording, past, span
from stream_workers.coalescer import BATCH, ChunkDraft, Coalescer, crowding
from stream_workers.continuation import continuable
from stream_workers.engine import (
    Displaced,
    Emitted,
    EmittedMismatch,
    Engine,
    EngineGenerateError,
    EngineOutput,
)
from stream_workers.progress import Answer, Progress, asked, measure, note, result_of
from stream_workers.routing import Route
from stream_workers.running import Running, RunningRequests
from stream_workers.shadow import Shadow

MAX_MOVES = 100
"""How often the version under a request may be unloaded before that counts as a failure."""

_TRACER = trace.get_tracer("feedloom.stream_workers")
RequestKey = tuple[str, str]
T = TypeVar("T", covariant=True)
R = TypeVar("R")


class Sink(Protocol[T]):
    """Where answers go. ``T`` is a record that is ready to be written."""

    async def chunk(
        self, request: GenerationRequest, chunk: GenerationChunk, source: Record
    ) -> Awaitable[object]:
        """Enqueue; what is returned ends when the broker has it."""
        ...

    def result(self, result: GenerationResult, source: Record) -> T:
        """The result as a record."""
        ...

    def dead_letter(self, record: Record, error: BaseException) -> T:
        """The untouched record, for its dead-letter topic."""
        ...


@dataclass(frozen=True, kw_only=True)
class HandlerOptions:
    """``retries`` counts further attempts. ``cancellations``: how many are remembered."""

    worker_id: str
    model: str
    group: str | None = None
    chunk_interval_s: float = 0.05
    chunk_max_tokens: int = 16
    retries: int = 2
    cancellations: int = 50_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A record after judgement. ``cost`` in tokens; 0 when the engine will not be used."""

    record: Record
    received_s: float
    request: GenerationRequest | None = None
    problem: ContractError | RequestRefused | None = None
    cost: int = 0
    prompt_tokens: int = 0
    deadline_ms: int | None = None

    @property
    def key(self) -> RequestKey | None:
        """Tells a request from its re-use: ids of request and submit. ``None`` if unreadable."""
        if self.request is None:
            return None
        return self.request.request_id, self.request.submit_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended(Generic[R]):
    """How a request ended: the record to write, and the tokens it took, the prompt's included."""

    record: R
    tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumption:
    """What an earlier owner of the request has emitted, as readers have it."""

    emitted: Emitted
    versions: tuple[str, ...]


class RequestHandler(Generic[R]):
    """Many requests at once in one event loop.

    ``route`` chooses the version that answers a request, ``settle`` completes a request by the
    settings in force and may refuse it, ``shadow`` has copies answered.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        sink: Sink[R],
        options: HandlerOptions,
        route: Callable[[GenerationRequest], Route],
        settle: Callable[[GenerationRequest, bytes], GenerationRequest] | None = None,
        shadow: Shadow | None = None,
        now_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._sink = sink
        self._options = options
        self._route = route
        self._settle = settle
        self._shadow = shadow
        self._now_ms = now_ms
        self._monotonic_s = monotonic_s
        self._running = RunningRequests(options.cancellations)
        self.chunk_interval_s = options.chunk_interval_s
        self.chunk_max_tokens = options.chunk_max_tokens

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
        deadline = _deadline_ms(record, request)
        if deadline is not None and self._now_ms() >= deadline:
            return Prepared(record=record, received_s=now, request=request, deadline_ms=deadline)
        try:
            if request.model != self._options.model:
                raise RequestRefused(
                    "unknown_model",
                    f"model {request.model!r} is not served here; {self._options.model!r} is",
                )
            if self._settle is not None:
                request = self._settle(request, record.value)
            tokens = self._engine.check(request.messages or request.prompt, request.sampling)
        except RequestRefused as error:
            return Prepared(record=record, received_s=now, request=request, problem=error)
        return Prepared(
            record=record,
            received_s=now,
            request=request,
            cost=tokens + request.sampling.max_tokens * max(1, request.sampling.n),
            prompt_tokens=tokens,
            deadline_ms=deadline,
        )

    def cancel(self, event: GenerationCancellation) -> None:
        """Stop the request if it runs, or as soon as it comes, if it was created before."""
        self._running.cancel(event)

    async def run(
        self,
        prepared: Prepared,
        *,
        epoch: int = 0,
        resumption: Resumption | None = None,
        on_first_token: Callable[[float], None] | None = None,
    ) -> Ended[R]:
        """Bring the request to its end. Raises EngineDead; cancelling it leaves no outcome.

        ``on_first_token`` is told the seconds from the record's receipt to the first token.
        """
        waited_s = self._monotonic_s() - prepared.received_s
        received_ns = time.time_ns() - int(1e9 * waited_s)
        request = prepared.request
        attributes: dict[str, str | int] = {"feedloom.request.epoch": epoch}
        if request is not None:
            attributes[REQUEST_ID] = request.request_id
        with processing(
            _TRACER,
            prepared.record,
            group=self._options.group,
            attributes=attributes,
            start_ns=received_ns,
        ) as receiving:
            if request is None:
                assert prepared.problem is not None
                fail(receiving, type(prepared.problem).__qualname__, str(prepared.problem))
                return Ended(record=self._sink.dead_letter(prepared.record, prepared.problem))
            past(
                _TRACER,
                "feedloom.admission",
                received_ns,
                attributes={"feedloom.request.cost": prepared.cost},
            )
            return await self._run(prepared, request, receiving, epoch, resumption, on_first_token)

    async def _run(
        self,
        prepared: Prepared,
        request: GenerationRequest,
        receiving: Span,
        epoch: int,
        resumption: Resumption | None,
        on_first_token: Callable[[float], None] | None,
    ) -> Ended[R]:
        left_s = None
        if prepared.deadline_ms is not None:
            left_s = max(0.0, (prepared.deadline_ms - self._now_ms()) / 1000)
        gather = BATCH if prepared.record.topic == REQUESTS_BATCH.name else 1
        progress = Progress(epoch, gather, on_first_token=on_first_token)
        with self._running.enter(request, left_s) as running:
            return await self._answer(prepared, request, running, receiving, progress, resumption)

    def _expired(self, prepared: Prepared) -> bool:
        return prepared.deadline_ms is not None and self._now_ms() >= prepared.deadline_ms

    async def _answer(
        self,
        prepared: Prepared,
        request: GenerationRequest,
        running: Running,
        receiving: Span,
        progress: Progress,
        resumption: Resumption | None,
    ) -> Ended[R]:
        reason: FinishReason
        failure: GenerationError | None = None
        if isinstance(prepared.problem, RequestRefused):
            reason = "error"
            failure = GenerationError(code=prepared.problem.code, message=prepared.problem.message)
        else:
            reason, failure = await self._attempts(prepared, request, running, progress, resumption)
        await self._end_chunks(prepared, request, progress)
        now_s = self._monotonic_s()
        result = result_of(
            request,
            progress,
            reason,
            failure,
            prompt_tokens=prepared.prompt_tokens,
            worker_id=self._options.worker_id,
            received_s=prepared.received_s,
            now_s=now_s,
            now_ms=self._now_ms(),
        )
        # A reader that has the result must be able to have every chunk of it.
        if progress.delivery is not None:
            await progress.delivery
        measure(result, now_s - prepared.received_s)
        if result.error is not None:
            fail(receiving, result.error.code, result.error.message)
        if self._shadow is not None and progress.route is not None:
            self._shadow.offer(request, result, progress)
        return Ended(
            record=self._sink.result(result, prepared.record),
            tokens=prepared.prompt_tokens + progress.tokens,
        )

    async def _attempts(
        self,
        prepared: Prepared,
        request: GenerationRequest,
        running: Running,
        progress: Progress,
        resumption: Resumption | None,
    ) -> tuple[FinishReason, GenerationError | None]:
        self._restore(request, progress, resumption)
        last: EngineGenerateError
        failures, moves = 0, 0
        while failures <= self._options.retries:
            if failures or moves:
                self._begin_again(request, progress)
            if running.stop is None and self._expired(prepared):
                running.stop = "deadline_exceeded"
            if running.stop is not None:
                return running.stop, None
            try:
                return await self._generate(prepared, request, running, progress), None
            except Displaced as error:
                # The rollout's doing, not the request's: no failure, however often within reason.
                last = error
                moves += 1
                failures += moves > MAX_MOVES
            except EmittedMismatch as error:
                failures += 1
                # What is on the token log is of another model, say: this run begins anew.
                last = error
                progress.answers, progress.versions, progress.resumed = {}, [], 0
            except EngineGenerateError as error:
                failures += 1
                last = error
            except RequestRefused as error:
                return "error", GenerationError(code=error.code, message=error.message)
        progress.answers, progress.versions = {}, []
        progress.attempt += 1  # fences off the last attempt's chunks
        progress.seq = 0
        return "error", GenerationError(code="engine_error", message=str(last))

    def _restore(
        self, request: GenerationRequest, progress: Progress, resumption: Resumption | None
    ) -> None:
        """Start from what an earlier owner emitted, where an engine can go on from it."""
        if resumption is None or not _can_continue(request):
            return
        emitted = resumption.emitted
        progress.resumed = len(emitted.token_ids)
        progress.versions = list(resumption.versions)
        answer = self._answer_at(progress, 0, len(emitted.token_ids))
        answer.token_ids, answer.text = list(emitted.token_ids), [emitted.text]

    def _begin_again(self, request: GenerationRequest, progress: Progress) -> None:
        """The next attempt goes on from what this one has emitted, where that is possible."""
        progress.attempt += 1
        progress.seq = 0
        if not _can_continue(request):
            progress.answers, progress.versions = {}, []

    def _answer_at(self, progress: Progress, index: int, first_token: int = 0) -> Answer:
        answer = progress.answers[index] = Answer(
            Coalescer(
                interval_s=self.chunk_interval_s * crowding(self.in_flight) * progress.gather,
                max_tokens=self.chunk_max_tokens * progress.gather,
                first_token=first_token,
            )
        )
        return answer

    async def _generate(
        self,
        prepared: Prepared,
        request: GenerationRequest,
        running: Running,
        progress: Progress,
    ) -> FinishReason:
        route = progress.route = self._route(request)
        engine_id = f"{request.request_id}/{request.submit_id}/{progress.epoch}.{progress.attempt}"
        if progress.started_s is None:
            progress.started_s = self._monotonic_s()
        known = progress.answers.get(0)
        emitted = None
        if known is not None and known.token_ids:
            emitted = Emitted(token_ids=tuple(known.token_ids), text="".join(known.text))
        with span(
            _TRACER,
            span_name(request),
            attributes=asked(request, progress) if is_recording() else None,
        ) as generating:
            stream = cast(
                AsyncGenerator[EngineOutput, None],
                self._engine.generate(
                    engine_id,
                    request.messages or request.prompt,
                    request.sampling,
                    route.version,
                    emitted=emitted,
                ),
            )
            reason: FinishReason | None = None
            async with aclosing(stream):
                while True:
                    output = await running.next(stream)
                    if output is None:
                        break
                    if isinstance(output, str):
                        reason = output
                        await self._engine.abort(engine_id)
                        break
                    await self._take(prepared, request, progress, output)
            ends = [answer.reason for answer in progress.answers.values()]
            if reason is None and (None in ends or not ends):
                raise EngineGenerateError("the engine ended a request without a reason")
            if not progress.versions:
                progress.versions.append(route.version)
            reason = reason or progress.answers[min(progress.answers)].reason
            assert reason is not None
            if generating.is_recording():
                note(generating, request, progress, reason, prepared.prompt_tokens)
        return reason

    async def _take(
        self,
        prepared: Prepared,
        request: GenerationRequest,
        progress: Progress,
        output: EngineOutput,
    ) -> None:
        """One output of the engine into its answer, and out as chunks when they are due."""
        now = self._monotonic_s()
        answer = progress.answers.get(output.index)
        if answer is None:
            answer = self._answer_at(progress, output.index)
        answer.text.append(output.text)
        if output.token_ids:
            answer.token_ids += output.token_ids
            if output.version not in progress.versions:
                progress.versions.append(output.version)
            if progress.first_s is None:
                progress.first_s = now
                if progress.on_first_token is not None:
                    progress.on_first_token(now - prepared.received_s)
            progress.last_s = now
            progress.cached = output.cached_tokens
        if output.logprobs:
            answer.logprobs += output.logprobs
        answer.reason = output.finish_reason or answer.reason
        # The last delta of a completion goes out with the mark that ends the answer.
        due = answer.coalescer.add(
            output.token_ids,
            output.text,
            output.version,
            now,
            output.logprobs,
            last=output.finish_reason is not None,
        )
        for draft in due:
            await self._publish_chunk(prepared, request, progress, output.index, draft)

    async def _end_chunks(
        self, prepared: Prepared, request: GenerationRequest, progress: Progress
    ) -> None:
        """What the coalescers still hold, and the mark of the end on the last chunk."""
        now = self._monotonic_s()
        version = progress.versions[-1] if progress.versions else self._route(request).version
        if not progress.answers:
            # A request that never reached the engine still ends its chunk stream.
            self._answer_at(progress, 0)
        held = [index for index, one in progress.answers.items() if one.coalescer.pending]
        last = held[-1] if held else max(progress.answers)
        for index in held or [last]:
            draft = progress.answers[index].coalescer.finish(version, now)
            await self._publish_chunk(
                prepared, request, progress, index, draft, final=index == last
            )

    async def _publish_chunk(
        self,
        prepared: Prepared,
        request: GenerationRequest,
        progress: Progress,
        index: int,
        draft: ChunkDraft,
        *,
        final: bool = False,
    ) -> None:
        chunk = GenerationChunk(
            request_id=request.request_id,
            submit_id=request.submit_id,
            epoch=progress.epoch,
            attempt=progress.attempt,
            seq=progress.seq,
            index=index,
            first_token=draft.first_token,
            token_ids=draft.token_ids,
            text=draft.text,
            logprobs=draft.logprobs,
            model_version=draft.version,
            emitted_at_ms=self._now_ms(),
            final=final,
        )
        progress.seq += 1
        progress.delivery = await self._sink.chunk(request, chunk, prepared.record)


def _can_continue(request: GenerationRequest) -> bool:
    """Whether a run can go on from emitted tokens; their log-probabilities would be missing."""
    return continuable(request.sampling) and request.sampling.logprobs is None


def _deadline_ms(record: Record, request: GenerationRequest) -> int | None:
    """The earlier of the two deadlines, in the body and in the header; epoch milliseconds."""
    named = header(record.headers, DEADLINE_HEADER) if record.headers else None
    if named is None or not named.isdecimal():
        return request.deadline_ms
    deadline = int(named)
    return deadline if request.deadline_ms is None else min(deadline, request.deadline_ms)
