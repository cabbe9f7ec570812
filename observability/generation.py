"""Attributes of generation spans, as the GenAI conventions name them.

Source: open-telemetry/semantic-conventions-genai ``docs/gen-ai/gen-ai-spans.md``. Texts are left
out unless ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true``, and redacted then.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

from opentelemetry.util.types import AttributeValue

from infra.contracts.events.generation import GenerationRequest, GenerationResult

PROVIDER = "vllm"
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CONTENT_LIMIT = 4_000
"""Characters of one text in a span."""

_REDACTED = (
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+"), "[email]"),
    (re.compile(r"\b(?:\d[ -]?){13,19}\b"), "[card number]"),
    (re.compile(r"(?i)\bbearer\s+[\w.~+/-]+=*"), "[token]"),
    (re.compile(r"\b(?:sk|fl|pk|ghp|xox[a-z])[-_][\w-]{12,}"), "[key]"),
    (re.compile(r"\+?\d[\d ()-]{8,}\d"), "[phone number]"),
)


def operation(request: GenerationRequest) -> str:
    """``gen_ai.operation.name``."""
    return "chat" if request.messages else "text_completion"


def span_name(request: GenerationRequest) -> str:
    """``{operation} {model}``."""
    return f"{operation(request)} {request.model}"


def request_attributes(
    request: GenerationRequest, *, names: frozenset[str] | None = None
) -> dict[str, AttributeValue]:
    """What is known before an answer. ``names``: sampling fields that were asked for; all, if
    not given.
    """
    sampling = request.sampling
    asked: dict[str, AttributeValue | None] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        # A double, by the conventions.
        "top_k": float(sampling.top_k),
        "seed": sampling.seed,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "stop": tuple(sampling.stop) or None,
        "n": sampling.n if sampling.n > 1 else None,
    }
    renamed = {"stop": "stop_sequences", "n": "choice.count"}
    attributes: dict[str, AttributeValue] = {
        f"gen_ai.request.{renamed.get(name, name)}": value
        for name, value in asked.items()
        if value is not None and (names is None or name in names)
    }
    return attributes | {
        "gen_ai.operation.name": operation(request),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": request.model,
        "gen_ai.output.type": "text",
        "feedloom.request.id": request.request_id,
    }


def response_attributes(result: GenerationResult) -> dict[str, AttributeValue]:
    """What an answer adds."""
    attributes: dict[str, AttributeValue] = {
        "gen_ai.response.id": result.request_id,
        "gen_ai.response.finish_reasons": [
            result.finish_reason,
            *(one.finish_reason for one in result.alternatives),
        ],
        "gen_ai.usage.input_tokens": result.prompt_tokens,
        "gen_ai.usage.output_tokens": result.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": result.cached_tokens,
    }
    if result.model_versions:
        attributes["gen_ai.response.model"] = result.model_versions[-1]
    if result.error is not None:
        attributes["error.type"] = result.error.code
    return attributes


def metric_attributes(request: GenerationRequest, version: str | None = None) -> dict[str, str]:
    """Of the ``gen_ai.*`` metrics."""
    attributes = {
        "gen_ai.operation.name": operation(request),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": request.model,
    }
    return attributes if version is None else attributes | {"gen_ai.response.model": version}


def captures_content() -> bool:
    """Whether the operator wants prompts and answers in spans."""
    return os.environ.get(CAPTURE, "").strip().lower() in ("true", "1", "span_only")


def content_attributes(request: GenerationRequest, answer: str) -> Mapping[str, AttributeValue]:
    """Prompt and answer in the conventions' JSON, redacted and cut; nothing unless captured."""
    if not captures_content():
        return {}
    asked = [(one.role, one.content) for one in request.messages] or [("user", request.prompt)]
    return {
        "gen_ai.input.messages": json.dumps([_message(role, text) for role, text in asked]),
        "gen_ai.output.messages": json.dumps([_message("assistant", answer)]),
    }


def _message(role: str, text: str) -> dict[str, object]:
    return {"role": role, "parts": [{"type": "text", "content": redacted(text)[:CONTENT_LIMIT]}]}


def redacted(text: str) -> str:
    """Without mail addresses, card and phone numbers, keys and tokens, as far as patterns tell."""
    for pattern, replacement in _REDACTED:
        text = pattern.sub(replacement, text)
    return text
