"""``/console``: the page, and its data for operators.

A credential is taken from ``Authorization`` alone, never from a cookie, so no other site's page can
act for an operator. What changes something is refused all the same when a browser says that it
comes from elsewhere, and when it is not JSON, which a form cannot send.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from infra.contracts.errors import ConfigurationError
from infra.identity.principal import Principal
from producers.gateway.bodies import Body
from producers.gateway.console import (
    assets,
    configuration,
    letters,
    overview,
    rollout,
    traces,
)
from producers.gateway.console.configuration import RevertBody, SettingBody
from producers.gateway.console.desk import Console
from producers.gateway.console.feed import STEP_S
from producers.gateway.console.letters import LettersBody
from producers.gateway.console.rollout import RolloutBody
from producers.gateway.errors import ApiError, not_found
from producers.gateway.http import body_of, json_response, principal_of

log = logging.getLogger(__name__)

# The page's own interface: no part of the API that is described to callers.
router = APIRouter(prefix="/console", include_in_schema=False)
B = TypeVar("B", bound=Body)
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def console_of(request: Request) -> Console:
    """This replica's console."""
    return cast(Console, request.app.state.console)


async def operator_of(request: Request) -> Principal:
    """The caller, who must be an operator. Raises Unauthenticated, Forbidden."""
    principal = await principal_of(request)
    principal.require("operator")
    return principal


Operator = Annotated[Principal, Depends(operator_of)]
Desk = Annotated[Console, Depends(console_of)]


async def _change(request: Request, kind: type[B]) -> B:
    """The body of a change. Raises ApiError: from another site, or no JSON."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise ApiError(403, "changes are taken from the console's own page", code="cross_site")
    if "content-type" not in request.headers:
        raise ApiError(415, "the body must be application/json", code="unsupported_media_type")
    return await body_of(request, kind)


def _actor(principal: Principal) -> str:
    return f"{principal.tenant}/{principal.subject}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@router.get("")
async def without_slash() -> Response:
    """The page's assets are named relative to it."""
    return RedirectResponse("console/", headers=assets.HEADERS)


@router.get("/")
async def page(request: Request) -> Response:
    """The page."""
    found = assets.assets()["index.html"]
    return assets.response(found, request.headers.get("if-none-match"))


@router.get("/assets/{path:path}")
async def asset(request: Request, path: str) -> Response:
    """A script or a style of the page."""
    found = assets.assets().get(path)
    if found is None:
        raise not_found(f"the console has no {path!r}")
    return assets.response(found, request.headers.get("if-none-match"))


@router.get("/api/me")
async def me(operator: Operator) -> Response:
    """Who is signed in."""
    return json_response(
        {
            "tenant": operator.tenant,
            "subject": operator.subject,
            "roles": sorted(operator.roles),
            "models": sorted(operator.models),
        },
        HEADERS,
    )


@router.get("/api/status")
async def status(operator: Operator, desk: Desk) -> Response:
    """The line at the top of the page."""
    views, now_ms = desk.service.views, _now_ms()
    rate, failed = desk.feed.recent(now_ms // 1000)
    reports = overview.workers(list(views.workers.reports.values()), now_ms=now_ms)
    return json_response(
        {
            "now_ms": now_ms,
            "fault": desk.service.fault() or desk.feed.fault,
            "lag": views.lag,
            "open_requests": desk.service.open_requests,
            "requests_per_s": rate,
            "failed_share": failed,
            "workers_ready": sum(w["state"] == "ready" and not w["silent"] for w in reports),
            "workers_silent": sum(w["silent"] for w in reports),
            "workers_failed": sum(w["state"] == "failed" for w in reports),
            "models": [
                {"model": name, "stable": one.stable, "candidate": one.candidate}
                for name in overview.models(views.registry, operator.models)
                if (one := views.registry.rollout(name)) is not None
            ],
        },
        HEADERS,
    )


@router.get("/api/live")
async def live(operator: Operator, desk: Desk) -> Response:
    """The last quarter of an hour, and the workers."""
    now_ms = _now_ms()
    reports = list(desk.service.views.workers.reports.values())
    return json_response(
        {
            "now_ms": now_ms,
            "since_ms": desk.feed.since_ms,
            "step_s": STEP_S,
            "fault": desk.feed.fault,
            "series": desk.feed.series(now_ms // 1000),
            "workers": overview.workers(reports, now_ms=now_ms),
        },
        HEADERS,
    )


@router.get("/api/versions")
async def versions(operator: Operator, desk: Desk) -> Response:
    """Every version of every model."""
    registry = desk.service.views.registry
    names = overview.models(registry, operator.models)
    return json_response({"versions": overview.versions(registry, names)}, HEADERS)


@router.get("/api/rollouts")
async def rollouts(operator: Operator, desk: Desk) -> Response:
    """Every model's rollout, with its figures and the last decisions."""
    registry = desk.service.views.registry
    shown = [
        {"model": name, **overview.rollout(registry.rollout(name), desk.feed.decisions(name))}
        for name in overview.models(registry, operator.models)
    ]
    defaults = desk.service.views.config.rollout
    return json_response(
        {"models": shown, "weight": defaults.weight, "unit": defaults.unit}, HEADERS
    )


@router.post("/api/rollouts/{model}")
async def change_rollout(request: Request, model: str, operator: Operator, desk: Desk) -> Response:
    """Change which versions serve; 409 if the rollout is not the one that was seen."""
    asked = await _change(request, RolloutBody)
    operator.require_model(model)
    changed = await desk.run(
        lambda: rollout.change(
            desk.bus,
            model,
            asked,
            actor=_actor(operator),
            now_ms=_now_ms(),
            source=desk.source,
        )
    )
    shown = overview.rollout(changed, desk.feed.decisions(model))
    return json_response({"model": model, **shown}, HEADERS)


@router.get("/api/settings")
async def settings(operator: Operator, desk: Desk) -> Response:
    """Every dynamic setting."""
    return json_response({"settings": configuration.listed(desk.service.views.config)}, HEADERS)


@router.get("/api/settings/{key}")
async def one_setting(key: str, operator: Operator, desk: Desk) -> Response:
    """One setting, also of a tenant or a worker that has none of its own yet."""
    state = desk.service.views.config
    return json_response(await desk.run(lambda: configuration.entry(state, key)), HEADERS)


@router.get("/api/settings/{key}/history")
async def setting_history(key: str, operator: Operator, desk: Desk) -> Response:
    """What the setting was, who changed it and why."""
    found = await desk.run(lambda: configuration.history(desk.bus, key))
    return json_response({"changes": found}, HEADERS)


@router.post("/api/settings/{key}")
async def change_setting(request: Request, key: str, operator: Operator, desk: Desk) -> Response:
    """Change one setting; 409 if it is not the one that was seen."""
    asked = await _change(request, SettingBody)
    by, now_ms = _actor(operator), _now_ms()
    entry = await desk.run(
        lambda: configuration.put(desk.bus, key, asked, actor=by, now_ms=now_ms, source=desk.source)
    )
    return json_response(entry, HEADERS)


@router.post("/api/settings/{key}/revert")
async def revert_setting(request: Request, key: str, operator: Operator, desk: Desk) -> Response:
    """Bring an older value back."""
    asked = await _change(request, RevertBody)
    by, now_ms = _actor(operator), _now_ms()
    entry = await desk.run(
        lambda: configuration.revert(
            desk.bus, key, asked, actor=by, now_ms=now_ms, source=desk.source
        )
    )
    return json_response(entry, HEADERS)


@router.get("/api/dead-letters")
async def dead_letters(operator: Operator, desk: Desk) -> Response:
    """Counts and the newest letters, without their content."""
    return json_response(await desk.run(lambda: letters.listed(desk.dead_letters)), HEADERS)


@router.get("/api/dead-letters/letter")
async def dead_letter(id: str, operator: Operator, desk: Desk) -> Response:
    """One letter with its content."""
    found = await desk.run(lambda: letters.shown(desk.dead_letters, id))
    log.info("dead letter %s shown to %s", found["id"], _actor(operator))
    return json_response(found, HEADERS)


@router.post("/api/dead-letters/replay")
async def replay_letters(request: Request, operator: Operator, desk: Desk) -> Response:
    """Publish letters to their source topics again."""
    asked, by = await _change(request, LettersBody), _actor(operator)
    done = await desk.run(lambda: letters.replay(desk.dead_letters, asked, by=by))
    return json_response({"replayed": done}, HEADERS)


@router.post("/api/dead-letters/drop")
async def drop_letters(request: Request, operator: Operator, desk: Desk) -> Response:
    """Mark letters as not worth replaying."""
    asked, by = await _change(request, LettersBody), _actor(operator)
    done = await desk.run(lambda: letters.drop(desk.dead_letters, asked, by=by))
    return json_response({"dropped": done}, HEADERS)


@router.get("/api/traces")
async def list_traces(operator: Operator, desk: Desk) -> Response:
    """The newest traces; ``directory`` is null where no spans are kept."""
    if desk.span_directory is None:
        return json_response({"directory": None, "traces": []}, HEADERS)
    found = await desk.run(lambda: traces.summaries(_spans(desk.span_directory)))
    return json_response({"directory": str(desk.span_directory), "traces": found}, HEADERS)


@router.get("/api/traces/{trace_id}")
async def one_trace(trace_id: str, operator: Operator, desk: Desk) -> Response:
    """The spans of one trace."""
    found = await desk.run(lambda: traces.waterfall(_spans(desk.span_directory), trace_id))
    if not found:
        raise not_found(f"trace {trace_id} is not among the newest in the span folder")
    return json_response({"trace_id": trace_id, "spans": found}, HEADERS)


def _spans(directory: Path | None) -> list[Any]:
    if directory is None:
        raise ConfigurationError("no spans are kept: set FEEDLOOM_TELEMETRY__SPAN_DIRECTORY")
    try:
        return traces.recent_spans(directory)
    except OSError as error:
        raise ConfigurationError(
            f"the span folder {directory} cannot be read ({error.strerror}): set "
            "FEEDLOOM_TELEMETRY__SPAN_DIRECTORY to one that the platform's processes write to"
        ) from error
