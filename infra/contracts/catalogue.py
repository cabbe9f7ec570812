"""The typed topic catalogue: one entry a topic, with what it carries and how long it is kept.

Results, feedback and what is to be forgotten are co-partitioned by request id (same key, same
count), so that the join needs no shuffle. Request topics are over-partitioned from the first day:
an autoscaler cannot run more workers than partitions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from infra.contracts.events.base import Event
from infra.contracts.events.feedback import FeedbackExample, FeedbackForgotten, FeedbackReceived
from infra.contracts.events.gateway import AdmissionAsked, AdmissionEnded, BatchChanged, FileChanged
from infra.contracts.events.generation import (
    GenerationCancellation,
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
    ShadowCompared,
)
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged, RolloutDecided
from infra.contracts.events.platform import (
    ApiKeyChanged,
    ConfigChanged,
    GatewayStatusReported,
    WorkerStatusReported,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
EVER = -1
"""As ``retention.ms``: kept for ever. A topic of policy ``delete`` without one has the broker's."""

CleanupPolicy = Literal["delete", "compact", "compact,delete"]


@dataclass(frozen=True, kw_only=True)
class TopicSpec:
    """One topic. ``partitions`` is the default; an operator may ask for more at creation.

    ``also``: events that it carries besides ``event``.
    """

    name: str
    event: type[Event] | None
    key: str
    purpose: str
    partitions: int
    cleanup_policy: CleanupPolicy = "delete"
    retention_ms: int | None = None
    dead_letter: bool = False
    extra_config: dict[str, str] = field(default_factory=dict)
    also: tuple[type[Event], ...] = ()

    @property
    def events(self) -> tuple[type[Event], ...]:
        """Every event that it carries; none for a dead-letter topic."""
        return () if self.event is None else (self.event, *self.also)

    @property
    def config(self) -> dict[str, str]:
        """Broker-side topic configuration, as Kafka spells it."""
        config = {"cleanup.policy": self.cleanup_policy, **self.extra_config}
        if self.retention_ms is not None:
            config["retention.ms"] = str(self.retention_ms)
        return config


REQUESTS = TopicSpec(
    name="generation.requests",
    event=GenerationRequest,
    key="affinity key",
    purpose="Interactive generation requests.",
    partitions=12,
    retention_ms=DAY_MS,
    dead_letter=True,
)
REQUESTS_BATCH = TopicSpec(
    name="generation.requests.batch",
    event=GenerationRequest,
    key="affinity key",
    purpose="Requests that may wait; admitted only into slack.",
    partitions=12,
    retention_ms=7 * DAY_MS,
    dead_letter=True,
)
CANCELLATIONS = TopicSpec(
    name="generation.cancellations",
    event=GenerationCancellation,
    key="request id",
    purpose="Stop one request. Read by every worker.",
    partitions=1,
    retention_ms=DAY_MS,
    dead_letter=True,
)
CHUNKS = TopicSpec(
    name="generation.chunks",
    event=GenerationChunk,
    key="request id",
    purpose="Numbered token deltas, on the reply partition the request names.",
    partitions=12,
    retention_ms=6 * HOUR_MS,
)
RESULTS = TopicSpec(
    name="generation.results",
    event=GenerationResult,
    key="request id",
    purpose="One final result a request.",
    partitions=12,
    cleanup_policy="compact,delete",
    retention_ms=30 * DAY_MS,
    dead_letter=True,
)
FEEDBACK = TopicSpec(
    name="feedback.events",
    event=FeedbackReceived,
    key="request id",
    purpose="Ratings, scores, edits, preference pairs and comments on results.",
    partitions=12,
    retention_ms=90 * DAY_MS,
    dead_letter=True,
)
FORGOTTEN = TopicSpec(
    name="feedback.forgotten",
    event=FeedbackForgotten,
    key="request id",
    purpose="Answers whose feedback is to be forgotten: who asked, when and why.",
    partitions=12,
    cleanup_policy="compact",
    dead_letter=True,
)
EXAMPLES = TopicSpec(
    name="feedback.examples",
    event=FeedbackExample,
    key="request id",
    purpose="Feedback joined with its prompt and output: what the trainer reads.",
    partitions=12,
    cleanup_policy="compact,delete",
    retention_ms=365 * DAY_MS,
    dead_letter=True,
)
REGISTRY = TopicSpec(
    name="model.registry",
    event=ModelVersionPublished,
    key="model/version",
    purpose="Immutable model versions.",
    partitions=1,
    cleanup_policy="compact",
)
ROLLOUTS = TopicSpec(
    name="model.rollouts",
    event=RolloutChanged,
    key="model",
    purpose="Which version is stable, which is candidate, and at what weight.",
    partitions=1,
    cleanup_policy="compact",
)
DECISIONS = TopicSpec(
    name="model.decisions",
    event=RolloutDecided,
    key="model",
    purpose="What a canary's figures say of its candidate, each time that changes.",
    partitions=1,
    retention_ms=365 * DAY_MS,
)
SHADOW = TopicSpec(
    name="generation.shadow",
    event=ShadowCompared,
    key="request id",
    purpose="A candidate's answers to copies of requests, beside the answers that were given.",
    partitions=12,
    retention_ms=7 * DAY_MS,
)
CONFIG = TopicSpec(
    name="platform.config",
    event=ConfigChanged,
    key="config key",
    purpose="Dynamic configuration.",
    partitions=1,
    cleanup_policy="compact",
)
CONFIG_HISTORY = TopicSpec(
    name="platform.config.history",
    event=ConfigChanged,
    key="config key",
    purpose="Every change of dynamic configuration; compaction leaves the other topic the newest.",
    partitions=1,
    retention_ms=EVER,
)
WORKERS = TopicSpec(
    name="platform.workers",
    event=WorkerStatusReported,
    key="worker id",
    purpose="What each worker serves and how its last version switch went.",
    partitions=1,
    cleanup_policy="compact",
)
ADMISSIONS = TopicSpec(
    name="gateway.admissions",
    event=AdmissionAsked,
    also=(AdmissionEnded,),
    key="tenant",
    purpose="Which requests gateways may run: quotas and idempotency keys, by the log's order.",
    partitions=12,
    retention_ms=2 * DAY_MS,
    # The broker's clock, as all replicas must see one time.
    extra_config={"message.timestamp.type": "LogAppendTime"},
)
KEYS = TopicSpec(
    name="platform.keys",
    event=ApiKeyChanged,
    key="key id",
    purpose="API keys, hashed.",
    partitions=1,
    cleanup_policy="compact",
)
FILES = TopicSpec(
    name="gateway.files",
    event=FileChanged,
    key="file id",
    purpose="Files of batches; their bytes are in the file store.",
    partitions=1,
    cleanup_policy="compact",
)
BATCHES = TopicSpec(
    name="gateway.batches",
    event=BatchChanged,
    key="batch id",
    purpose="Batches of requests and how far they are.",
    partitions=12,
    cleanup_policy="compact",
)
BATCHES_GROUP = "feedloom-gateway-batches"
"""The consumer group whose members, the gateways, share out the batches that are to be run."""
GATEWAYS = TopicSpec(
    name="platform.gateways",
    event=GatewayStatusReported,
    key="gateway id",
    purpose="Gateway replicas and the partitions on which they read their answers.",
    partitions=1,
    cleanup_policy="compact",
)

CATALOGUE: tuple[TopicSpec, ...] = (
    REQUESTS,
    REQUESTS_BATCH,
    CANCELLATIONS,
    CHUNKS,
    RESULTS,
    FEEDBACK,
    FORGOTTEN,
    EXAMPLES,
    REGISTRY,
    ROLLOUTS,
    DECISIONS,
    SHADOW,
    CONFIG,
    CONFIG_HISTORY,
    WORKERS,
    ADMISSIONS,
    KEYS,
    FILES,
    BATCHES,
    GATEWAYS,
)


def dead_letter_topic(spec: TopicSpec) -> TopicSpec:
    """The topic that takes ``spec``'s unreadable records, with their original bytes."""
    return TopicSpec(
        name=f"{spec.name}.dlq",
        event=None,
        key="as source",
        purpose=f"Unprocessable records of {spec.name}, untouched, with error headers.",
        partitions=1,
        retention_ms=90 * DAY_MS,
    )


def all_topics() -> tuple[TopicSpec, ...]:
    """The catalogue with each dead-letter topic after its source."""
    specs: list[TopicSpec] = []
    for spec in CATALOGUE:
        specs.append(spec)
        if spec.dead_letter:
            specs.append(dead_letter_topic(spec))
    return tuple(specs)
