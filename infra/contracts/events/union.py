"""All events there are: the type of any, and the list of their types."""

from __future__ import annotations

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
