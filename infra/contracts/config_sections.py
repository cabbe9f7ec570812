"""The sections of the catalogue of dynamic settings: each setting's type, range and default.

A struct a section, a field a setting, said once. Pure: knows nothing of keys, changes or Kafka
(``infra.contracts.config_keys``).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from infra.contracts.events.model import Unit

Limit = Annotated[int, Meta(ge=1, le=1_000_000_000)]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Participation = Literal["split", "stable", "candidate"]
Strategy = Literal["direct", "canary", "shadow"]
Metric = Literal["rating", "score", "edit"]
AtEnd = Literal["hold", "rollback", "promote"]


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``worker.*``: of each worker, in force from its next request on.

    ``workers.<worker-id>.*`` holds for one worker, before these.
    """

    chunk_interval_s: Annotated[
        float, Meta(ge=0.0, le=10.0, description="Seconds between two chunks of one answer.")
    ] = 0.05
    chunk_max_tokens: Annotated[
        int, Meta(ge=1, le=4096, description="Tokens that make a chunk go out before its time.")
    ] = 16
    max_inflight_tokens: Annotated[
        Limit, Meta(description="Sum of prompt + max_tokens over the requests in the engine.")
    ] = 65_536
    max_waiting: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="Requests that may queue inside the engine; the others are held before "
            "it, where priority and fairness count.",
        ),
    ] = 32
    log_level: Annotated[
        LogLevel, Meta(description="Least serious message of Feedloom's own code that is logged.")
    ] = "INFO"


class BatchConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``batch.*``: how much of the slack batch requests may take, in each worker."""

    enabled: Annotated[bool, Meta(description="Whether batch requests are admitted.")] = True
    ttft_factor: Annotated[
        float,
        Meta(
            ge=1.0,
            le=100.0,
            description="Batch gives way when it makes the interactive TTFT longer by this factor.",
        ),
    ] = 1.2
    ttft_slack_s: Annotated[
        float,
        Meta(
            ge=0.0,
            le=60.0,
            description="Seconds by which it may always be longer: a model step more or less.",
        ),
    ] = 0.008
    max_kv_usage: Annotated[
        float,
        Meta(
            ge=0.0,
            le=1.0,
            description="Used fraction of the KV cache above which no batch request is admitted.",
        ),
    ] = 0.9


class TenantConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``tenants.<name>.*``: one tenant's share and limits. ``None``: no limit.

    Limits are of each worker, save those that say otherwise.
    """

    weight: Annotated[
        float,
        Meta(ge=0.001, le=1000.0, description="Share of the tokens, relative to other tenants."),
    ] = 1.0
    max_inflight_requests: Annotated[
        Limit | None, Meta(description="Requests that the tenant may have in the engine.")
    ] = None
    max_inflight_tokens: Annotated[
        Limit | None, Meta(description="Sum of prompt + max_tokens over those requests.")
    ] = None
    max_tokens: Annotated[
        Limit | None, Meta(description="Most tokens that one request of the tenant may ask for.")
    ] = None
    requests_per_minute: Annotated[
        Limit | None,
        Meta(description="Requests that the tenant may make over HTTP, over all gateways."),
    ] = None
    tokens_per_minute: Annotated[
        Limit | None,
        Meta(description="Tokens of those, the prompt's included, over all gateways."),
    ] = None
    concurrent_requests: Annotated[
        Limit | None,
        Meta(description="Of those, how many may run at once, over all gateways."),
    ] = None
    rollout: Annotated[
        Participation,
        Meta(
            description="Whether its requests take part in a rollout's experiment, or always get "
            "the stable version, or always the candidate.",
        ),
    ] = "split"


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``gateway.*``: of every gateway."""

    max_lag: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000_000,
            description="Interactive requests that may wait for workers; callers are asked to come "
            "back later (429) when there are more.",
        ),
    ] = 10_000


class SamplingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``sampling.*``: what a request gets that leaves the field out."""

    max_tokens: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Tokens after which an answer ends, if its request does not say.",
        ),
    ] = 128
    temperature: Annotated[
        float,
        Meta(
            ge=0.0,
            le=2.0,
            description="If a request does not say: randomness of the choice of a token; 0: none.",
        ),
    ] = 0.7
    top_p: Annotated[
        float,
        Meta(
            ge=1e-6,
            le=1.0,
            description="If a request does not say: least probability that the tokens to choose "
            "from have together; 1: all.",
        ),
    ] = 1.0
    top_k: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="If a request does not say: most tokens to choose from; 0: no limit.",
        ),
    ] = 0
    repetition_penalty: Annotated[
        float,
        Meta(
            ge=0.01,
            le=100.0,
            description="If a request does not say: above 1, tokens that were there come less.",
        ),
    ] = 1.0


Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Weight = Annotated[float, Meta(ge=0.0, le=100.0)]


class TrainerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``trainer.*``: of the next round of training on feedback.

    Names that transformers' ``TrainingArguments`` has are its own.
    """

    min_examples: Annotated[
        int, Meta(ge=1, le=10_000_000, description="New feedback that starts a round: answers.")
    ] = 32
    max_wait_s: Annotated[
        float, Meta(ge=0.1, le=1e8, description="Age of new feedback that starts a round, seconds.")
    ] = 3600.0
    drift_drop: Annotated[
        Share,
        Meta(description="Fall of the share of answers people like that starts a round; 0: none."),
    ] = 0.1
    drift_window: Annotated[
        int, Meta(ge=10, le=100_000, description="Judged answers before the fall, and after.")
    ] = 100
    num_train_epochs: Annotated[
        int, Meta(ge=1, le=1000, description="How often a round sees its feedback.")
    ] = 3
    per_device_train_batch_size: Annotated[
        int, Meta(ge=1, le=4096, description="Sequences a step; as many pairs and ratings.")
    ] = 16
    gradient_accumulation_steps: Annotated[
        int, Meta(ge=1, le=4096, description="Batches whose gradients make one step.")
    ] = 1
    per_device_eval_batch_size: Annotated[
        int, Meta(ge=1, le=4096, description="Sequences at a time while a version is measured.")
    ] = 32
    max_train_seconds: Annotated[
        float,
        Meta(ge=0.0, le=1e8, description="A round trains no longer, its schedule within; 0: any."),
    ] = 1800.0
    learning_rate: Annotated[
        float, Meta(ge=1e-9, le=1.0, description="After warm-up, before decay.")
    ] = 3e-4
    warmup_steps: Annotated[
        int, Meta(ge=0, le=100_000, description="Steps of re-warming from zero.")
    ] = 20
    weight_decay: Annotated[Weight, Meta(description="Of AdamW.")] = 0.01
    max_grad_norm: Annotated[
        float, Meta(ge=1e-3, le=1e6, description="Gradients are clipped to it.")
    ] = 1.0
    bf16: Annotated[bool, Meta(description="bfloat16 where it does no harm.")] = True
    fp16: Annotated[bool, Meta(description="float16 in its stead, on a GPU only.")] = False
    save_total_limit: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Newest rounds whose run folders stay; 0: all.")
    ] = 20
    replay_fraction: Annotated[
        float, Meta(ge=0.0, le=0.99, description="Share of the tokens that is replayed Pile text.")
    ] = 0.5
    adapt_replay: Annotated[
        bool, Meta(description="More replay while rounds forget; replay_fraction is the least.")
    ] = True
    ptx_weight: Annotated[
        Weight, Meta(description="Of a replayed token in the loss; a completion's is 1.")
    ] = 1.0
    sft: Annotated[bool, Meta(description="Learn from accepted and edited completions.")] = True
    dpo_weight: Annotated[
        Weight, Meta(description="Of preference pairs in the loss; 0 leaves them out.")
    ] = 0.1
    kto_weight: Annotated[
        Weight, Meta(description="Of ratings in the loss; 0 leaves them out.")
    ] = 0.1
    beta: Annotated[
        float, Meta(ge=1e-4, le=100.0, description="Of DPO and KTO: the pull towards the parent.")
    ] = 0.1
    lora_rank: Annotated[
        int, Meta(ge=0, le=1024, description="Of the adapter that is trained; 0: all weights.")
    ] = 16
    max_principal_share: Annotated[
        Share, Meta(description="Of a round's feedback, that one principal may contribute.")
    ] = 0.1
    max_tenant_share: Annotated[
        Share, Meta(description="Likewise of a tenant, whatever users it names; 1: no limit.")
    ] = 1.0
    heldout_fraction: Annotated[
        Share, Meta(description="Of prompts, whose feedback only measures and never trains.")
    ] = 0.1
    max_forgetting: Annotated[
        float,
        Meta(ge=0.0, le=1e6, description="Gate: share by which held-out bits per byte may rise."),
    ] = 0.01
    min_preference_accuracy: Annotated[
        Share, Meta(description="Gate: held-out pairs told apart better than by the parent.")
    ] = 0.5
    min_win_rate: Annotated[
        Share, Meta(description="Gate: held-out prompts answered better than by the parent.")
    ] = 0.5
    max_violations: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="Gate: of the safety list, if more than the parent."),
    ] = 0


Rise = Annotated[float, Meta(ge=0.0, le=100.0)]


class RolloutConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``rollout.*``: how a version that passed its gate comes to serve, and what stops it."""

    strategy: Annotated[
        Strategy,
        Meta(
            description="What becomes of a version that passed its gate: it serves everybody at "
            "once (direct), a share of the requests (canary), or copies of them (shadow).",
        ),
    ] = "direct"
    weight: Annotated[Share, Meta(description="Of the requests, that a canary starts with.")] = 0.1
    unit: Annotated[
        Unit, Meta(description="Whose requests all get one version, stable or candidate.")
    ] = "user"
    auto: Annotated[
        bool, Meta(description="Promote and roll back by the figures, without a person.")
    ] = True
    metric: Annotated[
        Metric,
        Meta(
            description="Feedback that decides: the share of ratings that are up, the mean score, "
            "or the share of answers that were edited.",
        ),
    ] = "rating"
    confidence: Annotated[
        float,
        Meta(ge=0.5, le=0.999, description="Of the bounds that a rollout's decision rests on."),
    ] = 0.95
    min_samples: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000_000,
            description="Units on either side, stable and candidate, before any promotion.",
        ),
    ] = 100
    min_lift: Annotated[
        float,
        Meta(
            ge=-1.0,
            le=1.0,
            description="Promote when the lower bound of candidate minus stable is above it.",
        ),
    ] = 0.0
    effect: Annotated[
        float,
        Meta(ge=0.001, le=1.0, description="Lift that the sequential test is tuned to find."),
    ] = 0.05
    max_error_rise: Annotated[
        Share, Meta(description="By which the share of failed requests may rise.")
    ] = 0.02
    max_ttft_rise: Annotated[
        Rise,
        Meta(
            description="Share by which the geometric mean of the time to the first token may rise."
        ),
    ] = 0.25
    max_itl_rise: Annotated[
        Rise,
        Meta(description="Share by which the geometric mean of the time between tokens may rise."),
    ] = 0.25
    max_length_drift: Annotated[
        Rise, Meta(description="Share by which the mean answer length may drift, either way.")
    ] = 0.5
    max_edit_rise: Annotated[
        Share, Meta(description="By which the share of answers that people edit may rise.")
    ] = 0.1
    per_user: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Feedback that one user may contribute to a side."),
    ] = 5
    max_hours: Annotated[
        float, Meta(ge=0.001, le=1e6, description="A rollout lasts no longer, undecided.")
    ] = 336.0
    at_end: Annotated[
        AtEnd, Meta(description="What becomes of a rollout that is undecided after max_hours.")
    ] = "hold"
