"""``/v1/chat/completions``, ``/v1/completions`` and ``/v1/requests``."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, cast

from fastapi import APIRouter, Request
from starlette.responses import Response

from infra.identity.principal import Principal
from producers.gateway import answers
from producers.gateway.answers import StreamedAnswer
from producers.gateway.bodies import ChatBody, CompletionBody
from producers.gateway.description import request_body
from producers.gateway.errors import ApiError, invalid
from producers.gateway.http import (
    GONE,
    Caller,
    Configured,
    Service,
    body_of,
    event_ids,
    event_stream,
    json_response,
    starting_after,
    unless_gone,
)
from producers.gateway.identifiers import Kind, RequestId
from producers.gateway.questions import question
from producers.gateway.service import IDEMPOTENCY_KEY_LIMIT, Call, GatewayService, whole_answer
from producers.gateway.token_log import Found

router = APIRouter(prefix="/v1", tags=["generation"])


@router.post("/chat/completions", openapi_extra=request_body(ChatBody))
async def create_chat_completion(request: Request, caller: Caller, service: Service) -> Response:
    """Answer a conversation, whole or as a stream of server-sent events."""
    caller.require("caller")
    return await _generate(request, caller, service, await body_of(request, ChatBody), "chatcmpl")


@router.post("/completions", openapi_extra=request_body(CompletionBody))
async def create_completion(request: Request, caller: Caller, service: Service) -> Response:
    """Continue a prompt, whole or as a stream of server-sent events."""
    caller.require("caller")
    return await _generate(request, caller, service, await body_of(request, CompletionBody), "cmpl")


async def _generate(
    request: Request,
    caller: Principal,
    service: GatewayService,
    body: ChatBody | CompletionBody,
    kind: Kind,
) -> Response:
    asked = question(body)
    after = starting_after(request)
    # Looked at before anything is asked: a call that is refused must leave nothing behind.
    numbered = asked.stream and not asked.background and event_ids(request)
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= IDEMPOTENCY_KEY_LIMIT:
        raise invalid(f"an Idempotency-Key has 1 to {IDEMPOTENCY_KEY_LIMIT} characters")
    call = await service.ask(caller, kind, asked, idempotency_key=key)
    headers = _headers(call)
    if asked.background:
        return json_response(_state(call.request, asked.model, Found()), headers, 202)
    if asked.stream:
        answer = StreamedAnswer(call.request, asked.model, include_usage=asked.include_usage)
        return await event_stream(
            request,
            call.items,
            answer,
            after=after,
            numbered=numbered,
            patience_s=service.settings.patience_s,
            headers=headers,
        )
    async with aclosing(cast(Any, call.items)):
        result = await unless_gone(request, whole_answer(call.items))
    if result is None:
        return GONE
    problem = answers.failure(result)
    if problem is not None:
        problem.headers |= headers
        raise problem
    return json_response(answers.whole(result, call.request), headers)


def _headers(call: Call) -> dict[str, str]:
    headers = {"X-Request-Id": call.request.text}
    return headers | {"Idempotent-Replayed": "true"} if call.replayed else headers


@router.get("/requests/{request_id}")
async def get_request(
    request: Request, request_id: str, caller: Caller, service: Service, settings: Configured
) -> Response:
    """The state of a request; with ``stream=true`` its events, from the first or a later one on.

    Any replica answers, whichever one was asked first.
    """
    caller.require("caller", "operator")
    found = service.find(caller, request_id)
    model = service.model_of(found)
    headers = {"X-Request-Id": found.text}
    if not _flag(request, "stream"):
        held = await service.token_log.look(found)
        return json_response(_state(found, model, held), headers)
    answer = StreamedAnswer(found, model, include_usage=_flag(request, "include_usage"))
    return await event_stream(
        request,
        service.follow(found, timeout_s=settings.request_timeout_s),
        answer,
        after=starting_after(request),
        numbered=event_ids(request),
        patience_s=settings.patience_s,
        headers=headers,
    )


@router.delete("/requests/{request_id}")
async def cancel_request(request_id: str, caller: Caller, service: Service) -> Response:
    """Stop a request; one that has ended stays as it is."""
    caller.require("caller", "operator")
    found = service.find(caller, request_id)
    held = await service.token_log.look(found)
    state = _state(found, service.model_of(found), held)
    if held.result is None:
        await service.cancel(found, "the caller asked for it")
        state["status"] = "cancelling"
    return json_response(state, {"X-Request-Id": found.text})


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false")
    if value not in ("true", "false"):
        raise invalid(f"{name} is true or false", param=name)
    return value == "true"


_STATUS = {"stop": "completed", "length": "completed", "cancelled": "cancelled"}


def _state(request: RequestId, model: str, found: Found) -> dict[str, Any]:
    """What ``/v1/requests/{id}`` shows. ``last_event``: the number of the newest chunk's event."""
    result = found.result
    status = "in_progress" if found.chunks else "queued"
    problem: ApiError | None = None
    if result is not None:
        status = _STATUS.get(result.finish_reason, "failed")
        problem = answers.failure(result) if status == "failed" else None
    return {
        "id": request.text,
        "object": "request",
        "created": request.created_at_ms // 1000,
        "model": model,
        "status": status,
        "output_text": result.text if result is not None else _text(found),
        "last_event": found.last_event,
        "response": answers.whole(result, request) if result and problem is None else None,
        "error": None if problem is None else problem.body["error"],
    }


def _text(found: Found) -> str:
    return "".join(chunk.text for chunk in found.chunks if chunk.index == 0)
