"""What becomes of one request while it runs, the result that it adds up to, and what metrics and
spans are told of both. No I/O.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from infra.contracts.events.generation import (
    Completion,
    FinishReason,
    GenerationError,
    GenerationRequest,
    GenerationResult,
    Timings,
    TokenLogprob,
)
from observability.generation import PROVIDER as ENGINE
from observability.generation import captures_content, content_attributes, request_attributes
from observability.instruments import (
    ARM,
    ERROR_TYPE,
    OPERATION,
    PROVIDER,
    REQUEST_DURATION,
    REQUEST_MODEL,
    RESPONSE_MODEL,
    TIME_PER_OUTPUT_TOKEN,
    TIME_TO_FIRST_TOKEN,
    TOKEN_TYPE,
    TOKEN_USAGE,
    bounded_model,
    bounded_version,
)
from stream_workers.coalescer import Coalescer
from stream_workers.routing import Route


@dataclass
class Answer:
    """One completion of a request."""

    coalescer: Coalescer
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: FinishReason | None = None


@dataclass
class Progress:
    """All completions of a request, over its attempts. Moments are of the monotonic clock.

    ``resumed`` tokens came from an earlier owner; ``cached`` ones of the prompt from the prefix
    cache, most recently. ``route``: where the last attempt went. Chunks are gathered ``gather``
    times longer. ``delivery`` ends when the broker has the last chunk sent, and so, in order, every
    one before it.
    """

    epoch: int
    gather: int = 1
    attempt: int = 0
    seq: int = 0
    resumed: int = 0
    cached: int = 0
    answers: dict[int, Answer] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    started_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    delivery: Awaitable[object] | None = None
    on_first_token: Callable[[float], None] | None = None
    route: Route | None = None

    @property
    def tokens(self) -> int:
        """Of all completions, the resumed ones included."""
        return sum(len(answer.token_ids) for answer in self.answers.values())


def result_of(
    request: GenerationRequest,
    progress: Progress,
    reason: FinishReason,
    failure: GenerationError | None,
    *,
    prompt_tokens: int,
    worker_id: str,
    received_s: float,
    now_s: float,
    now_ms: int,
) -> GenerationResult:
    """The final result. ``received_s`` and ``now_s`` are of one monotonic clock."""
    started = now_s if progress.started_s is None else progress.started_s
    end = now_s if progress.last_s is None else progress.last_s
    ttft = itl = None
    if progress.first_s is not None:
        ttft = (progress.first_s - received_s) * 1000
        produced = progress.tokens - progress.resumed
        if produced > 1:
            itl = (end - progress.first_s) * 1000 / (produced - 1)
    indices = sorted(progress.answers)
    first = progress.answers[indices[0]]
    return GenerationResult(
        request_id=request.request_id,
        submit_id=request.submit_id,
        model=request.model,
        prompt=request.prompt,
        messages=request.messages,
        text="".join(first.text),
        finish_reason=reason,
        prompt_tokens=prompt_tokens,
        output_tokens=progress.tokens,
        model_versions=tuple(progress.versions),
        created_at_ms=request.created_at_ms,
        finished_at_ms=now_ms,
        epoch=progress.epoch,
        attempt=progress.attempt,
        resumed_tokens=progress.resumed,
        cached_tokens=progress.cached,
        logprobs=tuple(first.logprobs),
        alternatives=tuple(
            Completion(
                text="".join(answer.text),
                finish_reason=answer.reason or reason,
                output_tokens=len(answer.token_ids),
                logprobs=tuple(answer.logprobs),
            )
            for answer in (progress.answers[index] for index in indices[1:])
        ),
        worker_id=worker_id,
        tenant=request.tenant,
        user=request.user,
        error=failure,
        timings=Timings(
            queue_ms=max(0.0, now_ms - (now_s - started) * 1000 - request.created_at_ms),
            ttft_ms=ttft,
            itl_ms=itl,
            total_ms=(end - received_s) * 1000,
        ),
        metadata=request.metadata,
        assignment=None if progress.route is None else progress.route.assignment,
    )


def measure(result: GenerationResult, duration_s: float) -> None:
    """Record what operators watch, with the current span as exemplar where one is sampled."""
    attributes = {
        OPERATION: "chat" if result.messages else "text_completion",
        PROVIDER: ENGINE,
        REQUEST_MODEL: bounded_model(result.model),
    }
    if result.model_versions:
        attributes[RESPONSE_MODEL] = bounded_version(result.model_versions[-1])
    if result.assignment is not None:
        attributes[ARM] = result.assignment.arm
    timings = result.timings
    if timings.ttft_ms is not None:
        TIME_TO_FIRST_TOKEN.record(timings.ttft_ms / 1000, attributes)
    if timings.itl_ms is not None:
        TIME_PER_OUTPUT_TOKEN.record(timings.itl_ms / 1000, attributes)
    for kind, count in (("input", result.prompt_tokens), ("output", result.output_tokens)):
        TOKEN_USAGE.record(count, {**attributes, TOKEN_TYPE: kind})
    if result.error is not None:
        attributes[ERROR_TYPE] = result.error.code
    REQUEST_DURATION.record(duration_s, attributes)


def asked(request: GenerationRequest, progress: Progress) -> Mapping[str, AttributeValue]:
    """What an attempt begins with, for its span."""
    return {
        **request_attributes(request),
        "feedloom.attempt": progress.attempt,
        "feedloom.resumed_tokens": progress.resumed,
    }


def note(
    generating: Span,
    request: GenerationRequest,
    progress: Progress,
    reason: FinishReason,
    prompt_tokens: int,
) -> None:
    """What an attempt came to, on its span."""
    answers = [progress.answers[index] for index in sorted(progress.answers)]
    generating.set_attributes(
        {
            "gen_ai.response.id": request.request_id,
            "gen_ai.response.model": progress.versions[-1],
            "gen_ai.response.finish_reasons": [one.reason or reason for one in answers] or [reason],
            "gen_ai.usage.input_tokens": prompt_tokens,
            "gen_ai.usage.output_tokens": progress.tokens,
            "gen_ai.usage.cache_read.input_tokens": progress.cached,
        }
    )
    if captures_content():
        answer = "".join(answers[0].text) if answers else ""
        generating.set_attributes(content_attributes(request, answer))
