"""Every event of the platform, as a frozen, tagged struct.

A tag in the field ``type`` names the event on the wire. ``schema_version`` is ``MAJOR.MINOR``: a
new field comes with a default and raises MINOR; anything a reader could trip over raises MAJOR.
Times ending in ``_ms`` that name a moment are Unix epoch milliseconds; durations say so.

Validation here is of shape and range only. Whether a model exists or a prompt fits its context is
known by the worker, which answers with an error result.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

SCHEMA_VERSION = "1.8"

Identifier = Annotated[str, Meta(min_length=1, max_length=256)]
EpochMs = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]

FinishReason = Literal["stop", "length", "cancelled", "deadline_exceeded", "error"]
ModelKind = Literal["full", "lora"]
Arm = Literal["stable", "candidate"]
Unit = Literal["user", "tenant", "conversation"]
Verdict = Literal["promote", "hold", "rollback"]
Role = Literal["caller", "feedback", "operator", "trainer"]
BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all events; carries the contract's version."""

    schema_version: str = SCHEMA_VERSION


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
    metadata: dict[str, str] = {}
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
    metadata: dict[str, str] = {}
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


class ArtifactFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an artifact: ``path`` relative to its root, size in bytes, SHA-256 in hex."""

    path: str
    size: Count
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class OffsetRange(msgspec.Struct, frozen=True, kw_only=True):
    """Feedback consumed from one partition: ``start`` inclusive, ``end`` exclusive."""

    topic: str
    partition: Count
    start: Count
    end: Count


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version came from. ``feedback`` is also the trainer's durable position.

    ``objective``: what the feedback was trained on with, such as ``sft+dpo``. ``replay_sha256``
    has one entry for each of ``replay_shards``. ``adapter_rank``: of the LoRA adapter that was
    trained and merged; 0 where all weights were.
    """

    parent: str | None = None
    objective: str = "pretrain"
    feedback: tuple[OffsetRange, ...] = ()
    feedback_examples: Count = 0
    replay_shards: tuple[str, ...] = ()
    replay_fraction: float = 0.0
    seed: int = 0
    steps: Count = 0
    code_version: str = ""
    replay_sha256: tuple[str, ...] = ()
    adapter_rank: Count = 0


class GateCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of a version, most of them beside its parent.

    ``low`` to ``high`` is the confidence interval of ``value``, from ``samples``; ``limit`` is
    what it was held against, as ``reason`` says in words.
    """

    name: str
    passed: bool
    value: float
    low: float
    high: float
    limit: float
    samples: Count
    reason: str


class GateDecision(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a version may serve: it passed every check. ``confidence`` is of the intervals."""

    passed: bool
    confidence: float
    checks: tuple[GateCheck, ...] = ()


class ModelVersionPublished(Event, frozen=True, kw_only=True, tag="ModelVersionPublished"):
    """An immutable model version. Key ``model/version``; ``artifact_uri`` holds its files.

    One whose ``gate`` did not pass is rejected. Without a gate nobody has measured it. ``base``:
    the full version of the same model that a LoRA adapter goes on, and on no other.
    """

    model: Identifier
    version: Identifier
    kind: ModelKind
    artifact_uri: str
    manifest: tuple[ArtifactFile, ...]
    created_at_ms: EpochMs
    lineage: Lineage = Lineage()
    metrics: dict[str, float] = {}
    signature: str | None = None
    gate: GateDecision | None = None
    base: str | None = None

    @property
    def rejected(self) -> bool:
        """Whether the gate refused it."""
        return self.gate is not None and not self.gate.passed


class RolloutChanged(Event, frozen=True, kw_only=True, tag="RolloutChanged"):
    """Which versions of a model serve. ``candidate_weight`` is a fraction of traffic, 0 to 1.

    In a ``canary`` the candidate answers that fraction; in a ``shadow`` it answers a copy of it,
    which nobody is shown. ``experiment`` names the comparison and salts the draw of its requests,
    which is by ``unit``; it began at ``started_at_ms``. ``switch_policy``: ``keep`` continues
    requests in flight over a switch of full weights, ``drain`` lets them finish first.
    ``revision`` rises by one with each change; readers ignore older ones. ``retired``: versions
    that were stable before, the newest last; ``rolled_back``: those that were taken out of service.
    ``pinned``: nothing is promoted until somebody takes the pin off.
    """

    model: Identifier
    revision: Count
    stable: Identifier
    changed_at_ms: EpochMs
    candidate: str | None = None
    candidate_weight: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    state: Literal["steady", "canary", "shadow", "rolled_back"] = "steady"
    switch_policy: Literal["keep", "drain"] = "keep"
    actor: str = ""
    reason: str = ""
    retired: tuple[str, ...] = ()
    rolled_back: tuple[str, ...] = ()
    pinned: bool = False
    experiment: str = ""
    unit: Unit = "user"
    started_at_ms: EpochMs = 0


class ArmFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What one arm of an experiment has shown so far.

    ``outcome`` is the mean of the deciding metric over ``units`` that gave ``labels`` labels. Times
    are geometric means, in milliseconds; ``edit_share`` is the mean share of an answer that people
    changed when they edited it; ``output_tokens`` a mean over answers.
    """

    version: Identifier
    requests: Count = 0
    errors: Count = 0
    units: Count = 0
    labels: Count = 0
    ups: Count = 0
    downs: Count = 0
    edits: Count = 0
    outcome: float | None = None
    edit_share: float | None = None
    output_tokens: float | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None


class RolloutDecided(Event, frozen=True, kw_only=True, tag="RolloutDecided"):
    """What the figures of a canary say should become of its candidate, and why.

    ``revision``: of the rollout that was looked at. ``look`` counts the looks of one experiment.
    Of ``checks``, each beside its limit, those that did not pass stand against a promotion.
    ``acted``: whether a change of the rollout follows; without it people decide.
    """

    model: Identifier
    experiment: Identifier
    revision: Count
    verdict: Verdict
    reason: str
    decided_at_ms: EpochMs
    look: Count
    confidence: float
    stable: ArmFigures
    candidate: ArmFigures
    checks: tuple[GateCheck, ...] = ()
    alarms: tuple[str, ...] = ()
    acted: bool = False


class ConfigChanged(Event, frozen=True, kw_only=True, tag="ConfigChanged"):
    """One dynamic setting. ``value`` is its JSON text."""

    key: Identifier
    value: str
    revision: Count
    changed_at_ms: EpochMs
    actor: str = ""
    reason: str = ""


class VersionSwitch(msgspec.Struct, frozen=True, kw_only=True):
    """One change of weights in a worker. ``pause_ms``: how long no token could be produced."""

    model: str
    from_version: str
    to_version: str
    switched_at_ms: EpochMs
    pause_ms: float
    in_flight: Count


class WorkerStatusReported(Event, frozen=True, kw_only=True, tag="WorkerStatusReported"):
    """What a worker serves now. Key: worker id. ``versions`` maps model to the serving version.

    ``loaded`` maps model to all that can serve there, an experiment's candidate among them.
    ``failure`` is the reason the last switch was refused, when it was. ``in_flight`` requests are
    being answered and ``queued`` ones were taken and wait for room in the engine; ``None`` from a
    worker older than these fields.
    """

    worker_id: Identifier
    state: Literal["starting", "ready", "draining", "stopped", "failed"]
    versions: dict[str, str]
    reported_at_ms: EpochMs
    last_switch: VersionSwitch | None = None
    failure: str | None = None
    loaded: dict[str, tuple[str, ...]] = {}
    in_flight: Count | None = None
    queued: Count | None = None


class AdmissionAsked(Event, frozen=True, kw_only=True, tag="AdmissionAsked"):
    """A gateway wants to run a request of a tenant. The order of these decides which may.

    ``tokens`` are reserved until the request ends; it counts as running for ``lease_ms`` at most.
    The limits are the tenant's as the gateway knows them; ``None``: none. ``idempotency_key`` and
    ``fingerprint`` are digests, of the caller's key and of what it asked.
    """

    tenant: Identifier
    request_id: Identifier
    tokens: Count
    lease_ms: Count
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None


class AdmissionEnded(Event, frozen=True, kw_only=True, tag="AdmissionEnded"):
    """An admitted request is over. ``tokens``: what it used; ``None``: what was reserved."""

    tenant: Identifier
    request_id: Identifier
    tokens: Count | None = None


class ApiKeyChanged(Event, frozen=True, kw_only=True, tag="ApiKeyChanged"):
    """An API key as it stands. Key: ``key_id``, which is the public beginning of the key itself.

    ``secret_hash``: scrypt of the secret part, with its parameters and salt; the key itself is
    nowhere. ``models``: those that it may use; empty: all. ``replaced_by``: the key that a rotation
    made; both are good until this one expires.
    """

    key_id: Identifier
    tenant: Identifier
    name: str
    roles: tuple[Role, ...]
    secret_hash: str
    created_at_ms: EpochMs
    expires_at_ms: EpochMs | None = None
    revoked_at_ms: EpochMs | None = None
    models: tuple[str, ...] = ()
    replaced_by: str | None = None
    actor: str = ""
    reason: str = ""


class FileChanged(Event, frozen=True, kw_only=True, tag="FileChanged"):
    """A file that a tenant uploaded, or that a batch wrote. Its bytes are in the file store."""

    file_id: Identifier
    tenant: Identifier
    filename: str
    purpose: str
    size: Count
    created_at_ms: EpochMs
    deleted_at_ms: EpochMs | None = None


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a line of a batch's input; ``line`` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchChanged(Event, frozen=True, kw_only=True, tag="BatchChanged"):
    """A batch as it stands; the fields are those of OpenAI's batch object. Key: batch id.

    ``revision`` rises with each change. Moments that were not reached are ``None``.
    """

    batch_id: Identifier
    tenant: Identifier
    revision: Count
    status: BatchStatus
    endpoint: str
    input_file_id: Identifier
    created_at_ms: EpochMs
    expires_at_ms: EpochMs
    subject: str = ""
    models: tuple[str, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    total: Count = 0
    completed: Count = 0
    failed: Count = 0
    in_progress_at_ms: EpochMs | None = None
    finalizing_at_ms: EpochMs | None = None
    completed_at_ms: EpochMs | None = None
    failed_at_ms: EpochMs | None = None
    expired_at_ms: EpochMs | None = None
    cancelling_at_ms: EpochMs | None = None
    cancelled_at_ms: EpochMs | None = None
    errors: tuple[BatchError, ...] = ()
    metadata: dict[str, str] = {}


class GatewayStatusReported(Event, frozen=True, kw_only=True, tag="GatewayStatusReported"):
    """A gateway replica is there, and where it reads its answers. Key: gateway id."""

    gateway_id: Identifier
    state: Literal["ready", "stopped"]
    reply_partition: Count
    reported_at_ms: EpochMs
    url: str = ""


AnyEvent = (
    GenerationRequest
    | GenerationCancellation
    | GenerationChunk
    | GenerationResult
    | FeedbackReceived
    | FeedbackForgotten
    | FeedbackExample
    | ShadowCompared
    | ModelVersionPublished
    | RolloutChanged
    | RolloutDecided
    | ConfigChanged
    | WorkerStatusReported
    | AdmissionAsked
    | AdmissionEnded
    | ApiKeyChanged
    | FileChanged
    | BatchChanged
    | GatewayStatusReported
)

EVENT_TYPES: tuple[type[Event], ...] = (
    GenerationRequest,
    GenerationCancellation,
    GenerationChunk,
    GenerationResult,
    FeedbackReceived,
    FeedbackForgotten,
    FeedbackExample,
    ShadowCompared,
    ModelVersionPublished,
    RolloutChanged,
    RolloutDecided,
    ConfigChanged,
    WorkerStatusReported,
    AdmissionAsked,
    AdmissionEnded,
    ApiKeyChanged,
    FileChanged,
    BatchChanged,
    GatewayStatusReported,
)
