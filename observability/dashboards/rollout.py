"""Rollout: how a candidate does beside the stable version, and what was decided."""

from __future__ import annotations

from observability.dashboards.panels import Dashboard, Row, Scope, graph, stat
from observability.dashboards.variables import MODEL_SERVED, VERSION_CANARY
from observability.instruments import (
    ACTED,
    ALARM,
    ARM,
    ERROR_TYPE,
    MODEL,
    OUTCOME,
    REQUEST_MODEL,
    RESPONSE_MODEL,
    VERDICT,
    VERSION,
)
from observability.promql import equal, level, present, quantile, rate, ratio, share_where

_VARIABLES = (MODEL_SERVED, VERSION_CANARY)
_on = Scope(_VARIABLES)

_BY = (MODEL, VERSION, ARM)
_SERVED = _on("gen_ai.server.request.duration")
_CANDIDATE = {ARM: equal("candidate")}

DASHBOARD = Dashboard(
    uid="feedloom-rollout",
    title="Feedloom / Rollout",
    description="How a candidate does beside the stable version, and what was decided.",
    variables=_VARIABLES,
    rows=(
        Row(
            title="Canary so far",
            height=4,
            panels=(
                stat(
                    "Candidate's requests",
                    "Requests that the canary's candidate answered so far.",
                    level(_on("feedloom.rollout.requests", _CANDIDATE)),
                    width=6,
                ),
                stat(
                    "Candidate's failures",
                    "Share of them that failed.",
                    ratio(
                        level(_on("feedloom.rollout.errors", _CANDIDATE)),
                        level(_on("feedloom.rollout.requests", _CANDIDATE)),
                    ),
                    width=6,
                    limit=0.02,
                ),
                stat(
                    "Candidate's outcome",
                    "Mean of the metric that decides, 0 to 1.",
                    level(_on("feedloom.rollout.outcome", _CANDIDATE), how="avg"),
                    width=6,
                ),
                stat(
                    "Candidate's labels",
                    "Answers whose feedback counts: what the decision has to go on.",
                    level(_on("feedloom.rollout.labels", _CANDIDATE)),
                    width=6,
                ),
            ),
        ),
        Row(
            title="Candidate beside stable",
            panels=(
                graph(
                    "Failures by arm",
                    "Share of the canary's requests that failed, so far.",
                    ratio(
                        level(_on("feedloom.rollout.errors"), by=_BY),
                        level(_on("feedloom.rollout.requests"), by=_BY),
                    ),
                ),
                graph(
                    "Outcome by arm",
                    "Mean of the metric that decides, 0 to 1, so far.",
                    level(_on("feedloom.rollout.outcome"), by=_BY, how="avg"),
                    most=1,
                ),
                graph(
                    "Labels by arm",
                    "Answers whose feedback counts, so far.",
                    level(_on("feedloom.rollout.labels"), by=_BY),
                ),
                graph(
                    "Time to first token by arm",
                    "Geometric mean over the canary so far.",
                    level(_on("feedloom.rollout.time_to_first_token"), by=_BY, how="avg"),
                ),
                graph(
                    "Time per output token by arm",
                    "Geometric mean over the canary so far.",
                    level(_on("feedloom.rollout.time_per_output_token"), by=_BY, how="avg"),
                ),
                graph(
                    "Tokens of an answer by arm",
                    "Mean over the canary so far. A candidate that pleases by length shows here.",
                    level(_on("feedloom.rollout.output_tokens"), by=_BY, how="avg"),
                ),
            ),
        ),
        Row(
            title="Traffic by arm, now",
            panels=(
                graph(
                    "Requests by version",
                    "Requests ended a second.",
                    rate(_SERVED, by=(REQUEST_MODEL, RESPONSE_MODEL, ARM)),
                ),
                graph(
                    "Failures by arm, now",
                    "Share of requests that ended with an error.",
                    share_where(_SERVED, {ERROR_TYPE: present()}, by=(ARM,)),
                ),
                graph(
                    "First token p95 by arm, now",
                    "A dot is a request: it opens its trace.",
                    quantile(0.95, _on("gen_ai.server.time_to_first_token"), by=(ARM,)),
                ),
            ),
        ),
        Row(
            title="Decisions",
            panels=(
                graph(
                    "Decisions",
                    "Published decisions a second, by verdict and whether they were carried out.",
                    rate(
                        _on("feedloom.rollout.decisions"),
                        by=(MODEL, VERDICT, ACTED),
                    ),
                ),
                graph(
                    "Alarms",
                    "Signs that a candidate pleases without being better: edits, length.",
                    rate(_on("feedloom.rollout.alarms"), by=(MODEL, ALARM)),
                ),
                graph(
                    "Copies for a candidate",
                    "Shadowed requests by outcome: answered, failed, left out.",
                    rate(_on("feedloom.worker.shadowed"), by=(OUTCOME,)),
                ),
            ),
        ),
    ),
)
