"""The contract for people and other languages: AsyncAPI 3, JSON Schema, a topic reference.

``python -m infra.contracts.schema`` rewrites the files under ``docs/``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from infra.contracts.catalogue import CATALOGUE, EVER, HOUR_MS, TopicSpec, all_topics
from infra.contracts.events.base import SCHEMA_VERSION
from infra.contracts.events.union import EVENT_TYPES

REF = "#/components/schemas/{name}"
BINDING_VERSION = "0.5.0"


def schemas() -> dict[str, Any]:
    """JSON Schema (2020-12) of every event and of what they are made of, by name."""
    _, components = msgspec.json.schema_components(EVENT_TYPES, ref_template=REF)
    return dict(sorted(components.items()))


def event_schema(name: str) -> dict[str, Any]:
    """One event as a JSON Schema document that stands alone."""
    (kind,) = (event for event in EVENT_TYPES if event.__name__ == name)
    schema = msgspec.json.schema(kind)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document of every topic with an event."""
    topics = [spec for spec in all_topics() if spec.event is not None]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Feedloom",
            "version": SCHEMA_VERSION,
            "description": "Topics and events of the streaming text-generation platform.",
        },
        "defaultContentType": "application/json",
        "channels": {_identifier(spec.name): _channel(spec) for spec in topics},
        "operations": {
            f"{action}.{_identifier(spec.name)}": {
                "action": action,
                "channel": {"$ref": f"#/channels/{_identifier(spec.name)}"},
            }
            for spec in topics
            for action in ("send", "receive")
        },
        "components": {
            "messages": {event.__name__: _message(event.__name__) for event in EVENT_TYPES},
            "schemas": schemas(),
        },
    }


def topic_reference() -> str:
    """The catalogue as a Markdown page."""
    lines = [
        "# Topics",
        "",
        "Generated from `infra/contracts/catalogue.py` by `python -m infra.contracts.schema`.",
        "Partitions are the defaults; names take the deployment's prefix. What a client of",
        "your own must do: [Kafka in any language](kafka-clients.md).",
        "",
        "| topic | key | event | partitions | policy | kept for | carries |",
        "|---|---|---|---|---|---|---|",
    ]
    for spec in all_topics():
        event = ", ".join(f"`{one.__name__}`" for one in spec.events) or "original bytes"
        lines.append(
            f"| `{spec.name}` | {spec.key} | {event} | {spec.partitions} | {spec.cleanup_policy} "
            f"| {_kept_for(spec)} | {spec.purpose} |"
        )
    return "\n".join(lines) + "\n"


def documents() -> dict[str, str]:
    """Every generated file, by its path under ``docs/``."""
    files = {"asyncapi.json": _dump(asyncapi()), "topics.md": topic_reference()}
    for event in EVENT_TYPES:
        files[f"schemas/{event.__name__}.json"] = _dump(event_schema(event.__name__))
    return files


def write(directory: Path) -> None:
    """Write the documents below ``directory``."""
    for name, text in documents().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def _dump(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _identifier(topic: str) -> str:
    return topic.replace(".", "_")


def _message(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "properties": {
                header: {"type": "string"}
                for header in ("ce_id", "ce_type", "ce_source", "ce_specversion", "traceparent")
            },
        },
        "payload": {"$ref": REF.format(name=name)},
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": _key_of(name)},
                "bindingVersion": BINDING_VERSION,
            }
        },
    }


def _key_of(name: str) -> str:
    """What a record of this event is keyed by; the same on every topic that carries it."""
    (key,) = {spec.key for spec in CATALOGUE for one in spec.events if one.__name__ == name}
    return key


def _channel(spec: TopicSpec) -> dict[str, Any]:
    names = [event.__name__ for event in spec.events]
    configuration: dict[str, Any] = {"cleanup.policy": spec.cleanup_policy.split(",")}
    if spec.retention_ms is not None:
        configuration["retention.ms"] = spec.retention_ms
    return {
        "address": spec.name,
        "description": f"{spec.purpose} Key: {spec.key}.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {
            "kafka": {
                "topic": spec.name,
                "partitions": spec.partitions,
                "topicConfiguration": configuration,
                "bindingVersion": BINDING_VERSION,
            }
        },
    }


def _kept_for(spec: TopicSpec) -> str:
    if spec.retention_ms is None or spec.retention_ms == EVER:
        return "ever"
    hours = spec.retention_ms // HOUR_MS
    return f"{hours // 24} d" if hours >= 24 else f"{hours} h"


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
