"""Events of ``generation.*``: requests, the chunks of answers, results, and what shadows answer."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from infra.contracts.events.base import Count, EpochMs, Event, Identifier

FinishReason = Literal["stop", "length", "cancelled", "deadline_exceeded", "error"]
Arm = Literal["stable", "candidate"]


class StructuredOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer must match: exactly one of a JSON schema (its text), a regex, a choice."""

    json_schema: str | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None


class SamplingParameters(msgspec.Struct, frozen=True, kw_only=True):
    """How to sample. Ranges follow vLLM's; the worker refuses what lies outside them.

    ``n`` completions of one prompt; ``logprobs`` is how many alternatives to report per token.
    ``stop_token_ids`` and ``stop`` end a completion; ``include_stop`` keeps the stop string in its
    text. ``beam_width`` asks for beam search (``n`` best beams, temperature ignored), whose
    answer comes whole at the end.
    """

    max_tokens: int = 128
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    logprobs: int | None = None
    beam_width: int | None = None
    structured: StructuredOutput | None = None


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation. ``role`` is what the model's chat template knows."""

    role: Identifier
    content: str


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token that could have stood there, and the natural logarithm of its probability."""

    token_id: int
    token: str
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """One token of an answer with its log-probability; ``top`` are the likeliest, best first.

    ``token`` is its text; of a character cut over several tokens the last one has it, the others
    are empty. A probability of zero is reported as -9999.0, as JSON has no infinity.
    """

    token_id: int
    token: str
    logprob: float
    top: tuple[TopLogprob, ...] = ()


class ReplyAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the requester reads chunks. ``partition`` is chosen by the requester."""

    partition: Annotated[int, Meta(ge=0)]


class GenerationRequest(Event, frozen=True, kw_only=True, tag="GenerationRequest"):
    """Ask for a completion of ``prompt``, or of the conversation ``messages`` when there are any.

    ``submit_id`` is new on every submit: together with ``request_id`` it tells a redelivery from
    an honest re-use of the id. ``deadline_ms`` is absolute. ``affinity_key`` keeps one
    conversation, tenant or shared prefix on one worker, and is the record's key.
    """

    request_id: Identifier
    submit_id: Identifier
    prompt: str
    created_at_ms: EpochMs
    model: Identifier = "default"
    sampling: SamplingParameters = SamplingParameters()
    affinity_key: Identifier | None = None
    reply: ReplyAddress | None = None
    deadline_ms: EpochMs | None = None
    tenant: str | None = None
    user: str | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    messages: tuple[ChatMessage, ...] = ()


class GenerationCancellation(Event, frozen=True, kw_only=True, tag="GenerationCancellation"):
    """Stop one request, whether it is waiting or running."""

    request_id: Identifier
    created_at_ms: EpochMs
    reason: str | None = None


class GenerationChunk(Event, frozen=True, kw_only=True, tag="GenerationChunk"):
    """Consecutive tokens of one answer.

    ``seq`` counts chunks from 0 within a run; ``first_token`` is the index of this chunk's first
    token in completion ``index`` of the answer. Runs are ordered by ``(epoch, attempt)``:
    ``epoch`` rises with each owner of the request, ``attempt`` with each try of one owner. A
    higher run overrides the older one's tail from its own ``first_token`` on. ``text`` is the
    decoded delta; ``final`` marks the last chunk. ``logprobs``: one a token, if asked for.
    """

    request_id: Identifier
    submit_id: Identifier
    attempt: Count
    seq: Count
    first_token: Count
    token_ids: tuple[int, ...]
    text: str
    model_version: str
    emitted_at_ms: EpochMs
    final: bool = False
    epoch: Count = 0
    index: Count = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class GenerationError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request failed: a stable ``code`` for programs, a ``message`` for people."""

    code: str
    message: str


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in milliseconds, as the worker saw them.

    ``queue_ms``: from ``created_at_ms`` to the start of the engine's work (two clocks).
    ``ttft_ms``: from the worker's receipt to the first token. ``itl_ms``: mean gap between later
    tokens. ``total_ms``: from receipt to the last token.
    """

    queue_ms: float = 0.0
    ttft_ms: float | None = None
    itl_ms: float | None = None
    total_ms: float = 0.0


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """One of several answers to a request that asked for ``n`` above 1."""

    text: str
    finish_reason: FinishReason
    output_tokens: Count
    logprobs: tuple[TokenLogprob, ...] = ()


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Which arm of an experiment a request was drawn for, and the ``unit`` it was drawn by.

    All requests of one unit are drawn for one arm. ``experiment`` is the rollout's.
    """

    experiment: Identifier
    arm: Arm
    unit: Identifier


class GenerationResult(Event, frozen=True, kw_only=True, tag="GenerationResult"):
    """The one final answer to a request. Self-contained, so that feedback joins with it alone.

    ``model_versions`` lists the versions that produced tokens, in order: more than one when the
    answer spans a switch. ``text``, ``finish_reason`` and ``logprobs`` are of the first completion;
    ``alternatives`` holds the others when ``n`` was above 1. ``output_tokens`` counts them all.
    ``resumed_tokens`` were produced by an earlier owner of the request and not again.
    ``cached_tokens`` of the prompt were in the engine's prefix cache. ``assignment`` is there when
    the request took part in an experiment; one that a tenant's settings sent somewhere did not.
    """

    request_id: Identifier
    submit_id: Identifier
    model: str
    prompt: str
    text: str
    finish_reason: FinishReason
    prompt_tokens: Count
    output_tokens: Count
    model_versions: tuple[str, ...]
    created_at_ms: EpochMs
    finished_at_ms: EpochMs
    attempt: Count = 0
    epoch: Count = 0
    resumed_tokens: Count = 0
    cached_tokens: Count = 0
    alternatives: tuple[Completion, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    messages: tuple[ChatMessage, ...] = ()
    worker_id: str = ""
    tenant: str | None = None
    user: str | None = None
    error: GenerationError | None = None
    timings: Timings = Timings()
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    assignment: Assignment | None = None


class ShadowCompared(Event, frozen=True, kw_only=True, tag="ShadowCompared"):
    """What a candidate answered to a copy of a request, beside the answer that was given.

    Nobody but operators sees it. ``common_tokens``: how many tokens the two begin with alike.
    ``error`` is the candidate's; the requester never learns of it.
    """

    request_id: Identifier
    submit_id: Identifier
    model: Identifier
    experiment: Identifier
    stable: Identifier
    candidate: Identifier
    prompt: str
    stable_text: str
    candidate_text: str
    stable_tokens: Count
    candidate_tokens: Count
    common_tokens: Count
    stable_finish: FinishReason
    candidate_finish: FinishReason
    compared_at_ms: EpochMs
    stable_timings: Timings = Timings()
    candidate_timings: Timings = Timings()
    messages: tuple[ChatMessage, ...] = ()
    worker_id: str = ""
    tenant: str | None = None
    error: GenerationError | None = None
