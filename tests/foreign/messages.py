"""Events as a client writes them that knows only docs/kafka-clients.md: JSON, and headers."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

PROMPT = "the quick brown fox jumps over the lazy dog"


def request(**fields: Any) -> dict[str, Any]:
    """What must be there, and what a test adds."""
    return {
        "type": "GenerationRequest",
        "request_id": str(uuid.uuid4()),
        "submit_id": str(uuid.uuid4()),
        "created_at_ms": time.time_ns() // 1_000_000,
        "prompt": PROMPT,
        **fields,
    }


def headers(event: dict[str, Any]) -> dict[str, str]:
    """CloudEvents 1.0, Kafka binary content mode."""
    return {
        "ce_specversion": "1.0",
        "ce_id": str(uuid.uuid4()),
        "ce_type": f"feedloom.{event['type']}",
        "ce_source": "foreign-client",
        "content-type": "application/json",
    }


def encode(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()
