"""What the API's description says of files and batches: JSON Schema for OpenAPI 3.1."""

from __future__ import annotations

from typing import Any, get_args

from infra.contracts.events.gateway import BatchStatus
from producers.gateway.bodies import Body

Schema = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_MAYBE_TEXT: Schema = {"type": ["string", "null"]}
_MOMENT: Schema = {"type": ["integer", "null"], "description": "Seconds since the epoch."}


def _object(**fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(fields)}


def _list_of(item: Schema) -> Schema:
    return _object(
        object={"const": "list"},
        data={"type": "array", "items": item},
        first_id=_MAYBE_TEXT,
        last_id=_MAYBE_TEXT,
        has_more={"type": "boolean"},
    )


def _json(what: str, schema: Schema) -> Responses:
    return {200: {"description": what, "content": {"application/json": {"schema": schema}}}}


_FILE = _object(
    id=_TEXT,
    object={"const": "file"},
    bytes=_COUNT,
    created_at=_COUNT,
    filename=_TEXT,
    purpose={"enum": ["batch", "batch_output"]},
    status={"const": "processed"},
)
_BATCH = _object(
    id=_TEXT,
    object={"const": "batch"},
    endpoint=_TEXT,
    errors={"type": ["object", "null"]},
    input_file_id=_TEXT,
    completion_window=_TEXT,
    status={"enum": list(get_args(BatchStatus))},
    output_file_id=_MAYBE_TEXT,
    error_file_id=_MAYBE_TEXT,
    created_at=_COUNT,
    in_progress_at=_MOMENT,
    expires_at=_COUNT,
    finalizing_at=_MOMENT,
    completed_at=_MOMENT,
    failed_at=_MOMENT,
    expired_at=_MOMENT,
    cancelling_at=_MOMENT,
    cancelled_at=_MOMENT,
    request_counts=_object(total=_COUNT, completed=_COUNT, failed=_COUNT),
    metadata={"type": ["object", "null"]},
)

FILE = _json("A file", _FILE)
FILES = _json("Files", _list_of(_FILE))
DELETED = _json(
    "It is gone", _object(id=_TEXT, object={"const": "file"}, deleted={"type": "boolean"})
)
BATCH = _json("A batch", _BATCH)
BATCHES = _json("Batches", _list_of(_BATCH))
CONTENT: Responses = {
    200: {"description": "The bytes", "content": {"application/octet-stream": {"schema": _TEXT}}}
}
UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                    },
                }
            }
        },
    }
}


def _query(name: str, schema: Schema, what: str) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": what}


def list_of(most: int, *more: Schema) -> dict[str, Any]:
    """The parameters of a list. ``most``: the highest limit."""
    return {
        "parameters": [
            _query("after", _TEXT, "The last id of the page before."),
            _query("limit", {"type": "integer", "minimum": 1, "maximum": most}, "How many."),
            *more,
        ]
    }


PURPOSE = _query("purpose", _TEXT, "Only files of this purpose.")
ORDER = _query("order", {"enum": ["asc", "desc"]}, "By age; desc, the newest first, if not given.")


def body_of(kind: type[Body]) -> dict[str, Any]:
    """A request body, which ``producers.gateway.http.body_of`` reads."""
    schema = kind.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
