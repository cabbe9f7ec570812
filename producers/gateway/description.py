"""The API's OpenAPI 3.1 document.

Bodies are read by ``http.body_of`` and answers are built as plain objects, so FastAPI does not know
their schemas: they are put in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from producers.gateway.bodies import Body, ChatBody, CompletionBody, FeedbackBody

BODIES: tuple[type[Body], ...] = (ChatBody, CompletionBody, FeedbackBody)
Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_MAYBE: Schema = {"type": ["object", "null"]}


def _object(required: Mapping[str, Schema], **optional: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
    }


def _list_of(name: str) -> Schema:
    data = {"type": "array", "items": _ref(name)}
    return _object({"object": {"const": "list"}, "data": data})


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _choices(**content: Schema) -> Schema:
    finish = {"type": ["string", "null"], "enum": ["stop", "length", None]}
    choice = {"index": _COUNT, **content, "logprobs": _MAYBE, "finish_reason": finish}
    return {"type": "array", "items": _object(choice)}


def _completion(kind: str, choices: Schema) -> Schema:
    return _object(
        {
            "id": _TEXT,
            "object": {"const": kind},
            "created": _COUNT,
            "model": _TEXT,
            "choices": choices,
            "usage": _ref("Usage"),
        },
        system_fingerprint={
            "type": ["string", "null"],
            "description": "The version that answered; several, joined by +, if it was switched.",
        },
    )


_SCHEMAS: Mapping[str, Schema] = {
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                }
            )
        }
    ),
    "Usage": _object(
        {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}
    ),
    "ChatCompletion": _completion(
        "chat.completion",
        _choices(message=_object({"role": {"const": "assistant"}, "content": _TEXT})),
    ),
    "Completion": _completion("text_completion", _choices(text=_TEXT)),
    "Request": _object(
        {
            "id": _TEXT,
            "object": {"const": "request"},
            "created": _COUNT,
            "model": _TEXT,
            "status": {
                "enum": [
                    "queued",
                    "in_progress",
                    "cancelling",
                    "completed",
                    "cancelled",
                    "failed",
                ]
            },
            "output_text": _TEXT,
            "last_event": {"type": ["integer", "null"], "minimum": 0},
            "response": _MAYBE,
            "error": _MAYBE,
        }
    ),
    "Model": _object(
        {"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT},
        version=_TEXT,
        candidate={"type": ["string", "null"]},
    ),
    "Models": _list_of("Model"),
    "Feedback": _object({"id": _TEXT, "object": {"const": "feedback"}, "request_id": _TEXT}),
    "Health": _object({"status": _TEXT}, reason=_TEXT),
}

_STREAM: Schema = {"text/event-stream": {}}
_ANSWERS: Mapping[tuple[str, str], Mapping[str, tuple[str, bool]]] = {
    ("post", "/v1/chat/completions"): {"200": ("ChatCompletion", True), "202": ("Request", False)},
    ("post", "/v1/completions"): {"200": ("Completion", True), "202": ("Request", False)},
    ("get", "/v1/requests/{request_id}"): {"200": ("Request", True)},
    ("delete", "/v1/requests/{request_id}"): {"200": ("Request", False)},
    ("get", "/v1/models"): {"200": ("Models", False)},
    ("get", "/v1/models/{model}"): {"200": ("Model", False)},
    ("post", "/v1/feedback"): {"201": ("Feedback", False)},
    ("get", "/healthz"): {"200": ("Health", False)},
    ("get", "/readyz"): {"200": ("Health", False), "503": ("Health", False)},
}
"""Operation to status to its schema, and whether it may be streamed instead."""

ERRORS: Mapping[str, str] = {
    "400": "The request is at fault; `param` names the field.",
    "401": "No credential, or one that is not valid.",
    "403": "The credential is not for this.",
    "404": "Not there, or another tenant's.",
    "409": "Not in this state.",
    "413": "The body is too large.",
    "415": "The body is of another media type.",
    "422": "The Idempotency-Key was used with another body.",
    "429": "A quota is used up, or the platform is busy; `Retry-After` says when to come back.",
    "503": "The broker or every worker is gone; `Retry-After` says when to come back.",
    "504": "No answer by the deadline.",
}


def request_body(kind: type[Body]) -> dict[str, Any]:
    """What an operation says of its body, one of ``BODIES``."""
    schema = _ref(kind.__name__)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            openapi_version=app.openapi_version,
            routes=app.routes,
        )
        _, bodies = models_json_schema(
            [(kind, "validation") for kind in BODIES],
            ref_template="#/components/schemas/{model}",
        )
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update({**bodies["$defs"], **_SCHEMAS})
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                _complete(method, path, operation)
        app.openapi_schema = document
    return app.openapi_schema


def _complete(method: str, path: str, operation: dict[str, Any]) -> None:
    responses = operation.setdefault("responses", {})
    answers = _ANSWERS.get((method, path))
    if answers is not None:
        responses.clear()
        for status, (name, streams) in answers.items():
            content = {"application/json": {"schema": _ref(name)}}
            responses[status] = {
                "description": name,
                "content": {**content, **_STREAM} if streams else content,
            }
    if path.startswith("/v1"):
        operation["security"] = [{"bearer": []}]
        error = {"application/json": {"schema": _ref("Error")}}
        for status, what in ERRORS.items():
            responses.setdefault(status, {"description": what, "content": error})
