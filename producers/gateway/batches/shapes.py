"""Files and batches as OpenAI's API shows them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infra.contracts.events.gateway import BatchChanged, BatchError, FileChanged

Json = dict[str, Any]
WINDOW = "24h"
WINDOW_MS = 24 * 3_600_000


def file_object(event: FileChanged) -> Json:
    """A file. It is checked only when a batch reads it."""
    return {
        "id": event.file_id,
        "object": "file",
        "bytes": event.size,
        "created_at": event.created_at_ms // 1000,
        "filename": event.filename,
        "purpose": event.purpose,
        "status": "processed",
        "expires_at": None,
        "status_details": None,
    }


def batch_object(event: BatchChanged) -> Json:
    """A batch."""
    return {
        "id": event.batch_id,
        "object": "batch",
        "endpoint": event.endpoint,
        "errors": _errors(event.errors),
        "input_file_id": event.input_file_id,
        "completion_window": WINDOW,
        "status": event.status,
        "output_file_id": event.output_file_id,
        "error_file_id": event.error_file_id,
        "created_at": event.created_at_ms // 1000,
        "in_progress_at": _seconds(event.in_progress_at_ms),
        "expires_at": event.expires_at_ms // 1000,
        "finalizing_at": _seconds(event.finalizing_at_ms),
        "completed_at": _seconds(event.completed_at_ms),
        "failed_at": _seconds(event.failed_at_ms),
        "expired_at": _seconds(event.expired_at_ms),
        "cancelling_at": _seconds(event.cancelling_at_ms),
        "cancelled_at": _seconds(event.cancelled_at_ms),
        "request_counts": {
            "total": event.total,
            "completed": event.completed,
            "failed": event.failed,
        },
        "metadata": event.metadata or None,
    }


def page(objects: Sequence[Json], *, more: bool) -> Json:
    """Part of a list; ``last_id`` is the next call's ``after``."""
    return {
        "object": "list",
        "data": list(objects),
        "first_id": objects[0]["id"] if objects else None,
        "last_id": objects[-1]["id"] if objects else None,
        "has_more": more,
    }


def _errors(errors: Sequence[BatchError]) -> Json | None:
    if not errors:
        return None
    data = [
        {"code": one.code, "message": one.message, "param": one.param, "line": one.line}
        for one in errors
    ]
    return {"object": "list", "data": data}


def _seconds(moment_ms: int | None) -> int | None:
    return None if moment_ms is None else moment_ms // 1000
