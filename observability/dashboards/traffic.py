"""Traffic: are callers served, how fast, and how much of the error budget goes."""

from __future__ import annotations

from observability.alerts.objectives import (
    ERRORS,
    FIRST_TOKEN,
    FIRST_TOKEN_S,
    Objective,
    burn,
    failed_share,
)
from observability.alerts.requests import FAILED_SHARE
from observability.dashboards.panels import Dashboard, Row, Scope, graph, stat
from observability.dashboards.variables import MODEL_SERVED, VERSION_SERVED
from observability.instruments import (
    ERROR_TYPE,
    OUTCOME,
    REASON,
    REQUEST_MODEL,
    RESPONSE_MODEL,
    ROUTE,
    STATUS,
    TENANT,
    TOKEN_TYPE,
)
from observability.promql import (
    Query,
    chosen,
    equal,
    level,
    like,
    present,
    quantile,
    rate,
    rate_of_sum,
    share_above,
    share_where,
)

_VARIABLES = (MODEL_SERVED, VERSION_SERVED)
_on = Scope(_VARIABLES)

_REQUESTS = _on("gen_ai.server.request.duration")
_TTFT = _on("gen_ai.server.time_to_first_token")
_ITL = _on("gen_ai.server.time_per_output_token")
_HTTP = _on("http.server.request.duration")


def _burns(objective: Objective) -> tuple[tuple[str, Query], ...]:
    chosen_models = {REQUEST_MODEL: chosen("model")}
    return tuple((window, burn(objective, window, chosen_models)) for window in ("1h", "6h", "3d"))


DASHBOARD = Dashboard(
    uid="feedloom-traffic",
    title="Feedloom / Traffic",
    description="Are callers served, how fast, and how much of the error budget goes.",
    variables=_VARIABLES,
    rows=(
        Row(
            title="Now",
            height=4,
            panels=(
                stat("Requests", "Requests that workers ended, a second.", rate(_REQUESTS)),
                stat(
                    "Failed",
                    f"Share of requests that the platform failed; {ERRORS.budget:g} is allowed. "
                    "What callers got wrong (an unknown model, a prompt too long) is not counted.",
                    failed_share(_REQUESTS),
                    limit=ERRORS.budget,
                ),
                stat(
                    "First token p95",
                    "From a worker's receipt of a request to its first token.",
                    quantile(0.95, _TTFT),
                    limit=FIRST_TOKEN_S,
                ),
                stat(
                    "Slow first tokens",
                    f"Share of requests whose first token took more than {FIRST_TOKEN_S:g} s; "
                    f"{FIRST_TOKEN.budget:g} is allowed.",
                    share_above(FIRST_TOKEN_S, _TTFT),
                    limit=FIRST_TOKEN.budget,
                ),
                stat(
                    "Output tokens",
                    "Tokens generated a second.",
                    rate_of_sum(_on("gen_ai.client.token.usage", {TOKEN_TYPE: equal("output")})),
                ),
                stat(
                    "Streams",
                    "Answers that gateways are streaming.",
                    level(_on("feedloom.gateway.streams")),
                ),
            ),
        ),
        Row(
            title="Generation",
            panels=(
                graph(
                    "Requests by version",
                    "Requests ended a second. A new version's share grows as its canary does.",
                    rate(_REQUESTS, by=(REQUEST_MODEL, RESPONSE_MODEL)),
                ),
                graph(
                    "Failures by error",
                    "Requests ended with an error, a second, by its code.",
                    rate(_REQUESTS.where({ERROR_TYPE: present()}), by=(ERROR_TYPE,)),
                ),
                graph(
                    "Tokens",
                    "Prompt and output tokens of ended requests, a second.",
                    rate_of_sum(_on("gen_ai.client.token.usage"), by=(TOKEN_TYPE,)),
                ),
                graph(
                    "Time to first token",
                    "Rises first when work queues. A dot is a request: it opens its trace.",
                    ("p50", quantile(0.5, _TTFT)),
                    ("p95", quantile(0.95, _TTFT)),
                    ("p99", quantile(0.99, _TTFT)),
                    limit=FIRST_TOKEN_S,
                ),
                graph(
                    "Time per output token",
                    "Mean gap between tokens after the first: the engine's load, mostly.",
                    ("p50", quantile(0.5, _ITL)),
                    ("p95", quantile(0.95, _ITL)),
                ),
                graph(
                    "Request duration",
                    "From a worker's receipt to the final result. Long answers take long.",
                    ("p50", quantile(0.5, _REQUESTS)),
                    ("p95", quantile(0.95, _REQUESTS)),
                    ("p99", quantile(0.99, _REQUESTS)),
                ),
            ),
        ),
        Row(
            title="Error budgets",
            panels=(
                graph(
                    "Burn rate: failures",
                    "1 spends the budget of 30 days in 30 days. Pages at 14.4 over 1 h and at 6 "
                    "over 6 h, a ticket at 1 over 3 d.",
                    *_burns(ERRORS),
                    unit="none",
                    width=12,
                    limit=1,
                ),
                graph(
                    "Burn rate: slow first tokens",
                    "1 spends the budget of 30 days in 30 days. Pages at 14.4 over 1 h and at 6 "
                    "over 6 h, a ticket at 1 over 3 d.",
                    *_burns(FIRST_TOKEN),
                    unit="none",
                    width=12,
                    limit=1,
                ),
            ),
        ),
        Row(
            title="Gateway",
            panels=(
                graph(
                    "Calls by status",
                    "Calls ended a second. Probes and the console's polling are not counted.",
                    rate(_HTTP, by=(STATUS,)),
                ),
                graph(
                    "5xx share by route",
                    "Share of calls that the platform failed.",
                    share_where(_HTTP, {STATUS: like("5..")}, by=(ROUTE,)),
                    limit=FAILED_SHARE,
                ),
                graph(
                    "Call duration p95 by route",
                    "To the end of the answer: streams take as long as their last token.",
                    quantile(0.95, _HTTP, by=(ROUTE,)),
                ),
                graph(
                    "Admissions",
                    "Calls by what quota, lag and workers had to say: admitted, or the error.",
                    rate(_on("feedloom.gateway.admissions"), by=(OUTCOME,)),
                ),
                graph(
                    "Refused by tenant",
                    "Calls that were not admitted, a second: who runs into a limit.",
                    rate(
                        _on("feedloom.gateway.admissions").where(
                            {OUTCOME: like("rate_limit_exceeded|request_exceeds_quota")}
                        ),
                        by=(TENANT,),
                    ),
                ),
                graph(
                    "Credentials refused",
                    "A burst of one reason is a rotated key, or somebody guessing.",
                    rate(_on("feedloom.gateway.unauthenticated"), by=(REASON,)),
                ),
            ),
        ),
    ),
)
