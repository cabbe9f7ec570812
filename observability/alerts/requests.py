"""Requests that fail, or whose first token is late: the objectives, and gateways."""

from __future__ import annotations

from observability.alerts.model import Alert, Case, Fired, given
from observability.alerts.objectives import (
    ERRORS,
    FIRST_TOKEN,
    FIRST_TOKEN_S,
    PAGE,
    TICKET,
    burning,
)
from observability.alerts.shared import GATEWAY, WORKER
from observability.instruments import ERROR_TYPE, REQUEST_MODEL, ROUTE, STATUS
from observability.promql import both, increase, like, select, share_where, where_value

_REQUESTS = "gen_ai.server.request.duration"
_TTFT = "gen_ai.server.time_to_first_token"
_HTTP = "http.server.request.duration"
FAILED_SHARE = 0.05
LEAST_CALLS = 10


def _requests(error: str, values: str, model: str = "default") -> tuple[str, str]:
    attributes = {**WORKER, REQUEST_MODEL: model} | ({ERROR_TYPE: error} if error else {})
    return given(_REQUESTS, attributes, values, "count")


def _first_tokens(quick: str, every: str) -> tuple[tuple[str, str], ...]:
    attributes = {**WORKER, REQUEST_MODEL: "default"}
    return (
        given(_TTFT, {**attributes, "le": "1"}, quick, "bucket"),
        given(_TTFT, {**attributes, "le": "+Inf"}, every, "bucket"),
        given(_TTFT, attributes, every, "count"),
        given(_REQUESTS, attributes, every, "count"),
    )


_FAILING = (
    "Requests for {{ $labels.gen_ai_request_model }} fail: the error budget of 30 days goes "
    '{{ printf "%.1f" $value }} times as fast as it may.'
)
_SLOW = (
    f"First tokens of {{{{ $labels.gen_ai_request_model }}}} take more than {FIRST_TOKEN_S:g} s: "
    'the budget of 30 days for that goes {{ printf "%.1f" $value }} times as fast as it may.'
)


def _burns(sentence: str, value: str) -> str:
    return sentence.replace("{{ $labels.gen_ai_request_model }}", "default").replace(
        '{{ printf "%.1f" $value }}', value
    )


_OF_DEFAULT = {REQUEST_MODEL: "default"}

_OBJECTIVES: tuple[Alert, ...] = (
    Alert(
        name="FeedloomErrorBudgetBurn",
        runbook="error-budget-burn",
        query=burning(ERRORS, PAGE),
        severity="page",
        summary="Requests fail so often that the error budget will not last",
        description=_FAILING,
        lasting="2m",
        cases=(
            Case(
                name="one in fifty fails",
                given=[_requests("", "0+49x60"), _requests("engine_error", "0+1x60")],
                at="40m",
                fires=[
                    Fired(labels=_OF_DEFAULT, says=_burns(_FAILING, "20.0")),
                    Fired(labels=_OF_DEFAULT, says=_burns(_FAILING, "20.0"), severity="ticket"),
                ],
            ),
            Case(
                name="one in five hundred fails, for hours",
                given=[_requests("", "0+499x60"), _requests("engine_error", "0+1x60")],
                at="50m",
                fires=[Fired(labels=_OF_DEFAULT, says=_burns(_FAILING, "2.0"), severity="ticket")],
            ),
            Case(
                name="failures that ended, of which only the ticket is left",
                given=[
                    _requests("", "0+45x20 900+50x60"),
                    _requests("engine_error", "0+5x20 100x60"),
                ],
                at="65m",
                fires=[Fired(labels=_OF_DEFAULT, says=_burns(_FAILING, "31.2"), severity="ticket")],
            ),
            Case(
                name="callers ask for a model that is not there",
                given=[_requests("", "0+10x60"), _requests("unknown_model", "0+10x60")],
                at="40m",
            ),
            Case(
                name="one of five requests a day",
                given=[_requests("", "0x10 1x10 4x30"), _requests("engine_error", "0x30 1x20")],
                at="40m",
            ),
            Case(name="nothing fails", given=[_requests("", "0+10x60")], at="40m"),
        ),
    ),
    Alert(
        name="FeedloomErrorBudgetBurn",
        runbook="error-budget-burn",
        query=burning(ERRORS, TICKET),
        severity="ticket",
        summary="Requests fail more often than the error budget allows",
        description=_FAILING,
        lasting="15m",
    ),
    Alert(
        name="FeedloomFirstTokenBudgetBurn",
        runbook="first-token-budget-burn",
        query=burning(FIRST_TOKEN, PAGE),
        severity="page",
        summary="First tokens are so late that the latency budget will not last",
        description=_SLOW,
        lasting="2m",
        cases=(
            Case(
                name="a fifth is late",
                given=_first_tokens("0+8x120", "0+10x60"),
                at="40m",
                fires=[
                    Fired(labels=_OF_DEFAULT, says=_burns(_SLOW, "20.0")),
                    Fired(labels=_OF_DEFAULT, says=_burns(_SLOW, "20.0"), severity="ticket"),
                ],
            ),
            Case(
                name="one in two hundred is late",
                given=_first_tokens("0+199x120", "0+200x60"),
                at="40m",
            ),
        ),
    ),
    Alert(
        name="FeedloomFirstTokenBudgetBurn",
        runbook="first-token-budget-burn",
        query=burning(FIRST_TOKEN, TICKET),
        severity="ticket",
        summary="First tokens are late more often than the latency budget allows",
        description=_SLOW,
        lasting="15m",
    ),
)


def _calls(status: str, values: str) -> tuple[str, str]:
    attributes = {**GATEWAY, ROUTE: "/v1/completions", STATUS: status}
    return given(_HTTP, attributes, values, "count")


_CALLS = select(_HTTP)

_GATEWAYS: tuple[Alert, ...] = (
    Alert(
        name="FeedloomGatewayErrors",
        runbook="gateway-errors",
        query=both(
            where_value(
                share_where(_CALLS, {STATUS: like("5..")}, by=(ROUTE,), window="5m"),
                ">",
                FAILED_SHARE,
            ),
            where_value(increase(_CALLS, by=(ROUTE,), window="5m"), ">=", LEAST_CALLS),
        ),
        severity="page",
        summary="Gateways answer with 5xx",
        description="{{ $value | humanizePercentage }} of the calls of {{ $labels.http_route }} "
        "are answered with 5xx.",
        lasting="3m",
        cases=(
            Case(
                name="a fifth",
                given=[_calls("200", "0+8x20"), _calls("503", "0+2x20")],
                at="15m",
                fires=[
                    Fired(
                        labels={ROUTE: "/v1/completions"},
                        says="20% of the calls of /v1/completions are answered with 5xx.",
                    )
                ],
            ),
            Case(
                name="callers are refused",
                given=[_calls("200", "0+8x20"), _calls("429", "0+2x20")],
                at="15m",
            ),
        ),
    ),
)

ALERTS: tuple[Alert, ...] = (*_OBJECTIVES, *_GATEWAYS)
