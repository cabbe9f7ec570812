"""``/v1/models``, ``/v1/feedback`` and the health checks."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from infra.contracts.events.model import RolloutChanged
from producers.gateway.bodies import FeedbackBody
from producers.gateway.description import request_body
from producers.gateway.errors import invalid, not_found
from producers.gateway.feedback import GatewayFeedback
from producers.gateway.http import Caller, Service, body_of, json_response, service_of
from producers.gateway.identifiers import parse

router = APIRouter()


@router.get("/v1/models", tags=["models"])
async def list_models(caller: Caller, service: Service) -> Response:
    """The models that serve, each with its version."""
    caller.require("caller", "operator", "trainer")
    state = service.views.registry
    shown = [
        _model(rollout)
        for name in state.models()
        if (rollout := state.rollout(name)) is not None
        and (not caller.models or name in caller.models)
    ]
    return json_response({"object": "list", "data": shown}, {})


@router.get("/v1/models/{model}", tags=["models"])
async def get_model(model: str, caller: Caller, service: Service) -> Response:
    """One model."""
    caller.require("caller", "operator", "trainer")
    rollout = service.views.registry.rollout(model)
    if rollout is None or (caller.models and model not in caller.models):
        raise not_found(f"there is no model {model!r}", code="model_not_found")
    return json_response(_model(rollout), {})


def _model(rollout: RolloutChanged) -> dict[str, Any]:
    return {
        "id": rollout.model,
        "object": "model",
        "created": rollout.changed_at_ms // 1000,
        "owned_by": "feedloom",
        "version": rollout.stable,
        "candidate": rollout.candidate,
    }


@router.post("/v1/feedback", tags=["feedback"], openapi_extra=request_body(FeedbackBody))
async def give_feedback(request: Request, caller: Caller, service: Service) -> Response:
    """Say what somebody thinks of an answer; it is on the topic when this returns."""
    caller.require("feedback")
    body = await body_of(request, FeedbackBody)
    given = (body.rating, body.score, body.edited_text, body.pair, body.comment)
    if all(kind is None for kind in given):
        raise invalid("give a rating, score, edited_text, pair or comment")
    about = parse(body.request_id)
    if about is None or not about.belongs_to(caller.tenant):
        raise not_found(f"there is no request {body.request_id!r}")
    feedback: GatewayFeedback = request.app.state.feedback
    feedback_id = await feedback.publish(caller, body)
    return json_response(
        {"id": feedback_id, "object": "feedback", "request_id": body.request_id}, {}, 201
    )


@router.get("/healthz", tags=["health"])
async def healthz() -> Response:
    """Whether the process runs."""
    return json_response({"status": "ok"}, {})


@router.get("/readyz", tags=["health"])
async def readyz(request: Request) -> Response:
    """Whether calls can be answered; says why not."""
    batches = request.app.state.batches
    fault = service_of(request).fault() or (None if batches is None else batches.fault())
    document = {"status": "ready"} if fault is None else {"status": "not ready", "reason": fault}
    return json_response(document, {}, 200 if fault is None else 503)
