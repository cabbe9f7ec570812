"""Each rule of the conventions, on a span or metric that keeps it and on one that breaks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from observability.instruments import CATALOGUE
from tests.conventions import METRICS, TYPES, deprecated, problems, registered
from tests.telemetry import (
    Attributes,
    Event,
    Link,
    Metric,
    MetricKind,
    Point,
    Span,
    SpanKind,
    Value,
)

KAFKA = {"messaging.system": "kafka", "messaging.destination.name": "t"}


def made(name: str, kind: SpanKind, attributes: Mapping[str, Value]) -> Span:
    return Span(
        resource={"service.name": "shop", "telemetry.sdk.language": "python"},
        scope="shop",
        name=name,
        kind=kind,
        trace_id="1" * 32,
        span_id="2" * 16,
        parent_id=None,
        start_ns=1,
        end_ns=2,
        attributes=attributes,
    )


def messaging(operation: str, kind: SpanKind, name: str, **more: Value) -> Span:
    """Further attributes' names are given with two underscores for a dot."""
    attributes = {
        **KAFKA,
        "messaging.operation.type": operation,
        "messaging.operation.name": name,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return made(f"{name} t", kind, attributes)


SEND = messaging("send", "producer", "send")
POLL = messaging("receive", "client", "poll")
PROCESS = messaging(
    "process",
    "consumer",
    "process",
    messaging__destination__partition__id="3",
    messaging__kafka__offset=7,
    messaging__consumer__group__name="workers",
)
COMMIT = messaging("settle", "client", "commit", messaging__batch__message_count=2)
CHAT = made(
    "chat m",
    "client",
    {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "m",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 8,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 3,
    },
)
COMPLETION = replace(
    CHAT,
    name="text_completion m",
    kind="internal",
    attributes={**CHAT.attributes, "gen_ai.operation.name": "text_completion"},
)
CALL = made(
    "POST /v1/chat/completions",
    "server",
    {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
    },
)
ADMISSION = made("feedloom.admission", "internal", {"feedloom.request.class": "batch"})
FAILED = replace(
    CALL,
    status="error",
    attributes={**CALL.attributes, "http.response.status_code": 503, "error.type": "503"},
)


def given(span: Span, **changed: Value) -> Span:
    """With attributes changed or added, their dots as two underscores."""
    named = {key.replace("__", "."): value for key, value in changed.items()}
    return replace(span, attributes={**span.attributes, **named})


def without(span: Span, *keys: str) -> Span:
    kept = {key: value for key, value in span.attributes.items() if key not in keys}
    return replace(span, attributes=kept)


@pytest.mark.parametrize(
    "span",
    [SEND, POLL, PROCESS, COMMIT, CHAT, COMPLETION, CALL, FAILED, ADMISSION],
    ids=lambda span: span.name,
)
def test_what_keeps_the_conventions_has_no_problems(span: Span) -> None:
    assert problems(span) == []


@pytest.mark.parametrize(
    "span",
    [
        without(replace(COMMIT, name="commit"), "messaging.destination.name"),
        without(replace(CALL, name="POST"), "http.route"),
        given(replace(CALL, name="HTTP /x"), http__request__method="_OTHER", http__route="/x"),
        given(CALL, http__response__status_code=404),
        given(CALL, server__address="a", server__port=80),
        replace(
            ADMISSION, name="feedloom.engine.prefill", attributes={"gen_ai.usage.input_tokens": 1}
        ),
        replace(CHAT, name="llm_request", scope="vllm.tracing.otel", kind="server"),
        made("train default", "internal", {"feedloom.model": "default"}),
    ],
    ids=lambda span: span.name,
)
def test_what_only_looks_wrong_is_let_by(span: Span) -> None:
    assert problems(span) == []


@pytest.mark.parametrize(
    ("span", "said"),
    [
        # Names.
        (replace(SEND, name="t send"), "the name should be 'send t'"),
        (replace(SEND, name="publish t"), "the name should be 'send t'"),
        (replace(PROCESS, name="process t 3"), "the name should be 'process t'"),
        (replace(CHAT, name="generate m"), "the name should be 'chat m'"),
        (
            made("switch default@2", "internal", {"feedloom.model": "default"}),
            "the name should end with what feedloom.model says",
        ),
        (replace(CALL, name="POST"), "the name should be 'POST /v1/chat/completions'"),
        (replace(ADMISSION, name="feedloom.admission of r1"), "without anything that varies"),
        (replace(ADMISSION, name="look at m"), "of kind internal without a name of ours"),
        # Kinds.
        (replace(SEND, kind="client"), "is producer, not client"),
        (replace(POLL, kind="consumer"), "is client, not consumer"),
        (replace(PROCESS, kind="internal"), "is consumer, not internal"),
        (replace(COMMIT, kind="producer"), "is client, not producer"),
        (replace(CHAT, kind="server"), "is client or internal, not server"),
        (replace(SEND, attributes={}), "of kind producer without a name of ours"),
        # Required attributes.
        (without(SEND, "messaging.system"), "messaging.system is missing"),
        (without(SEND, "messaging.operation.name"), "messaging.operation.name is missing"),
        (without(SEND, "messaging.operation.type"), "messaging.operation.type is None"),
        (without(SEND, "messaging.destination.name"), "messaging.destination.name is missing"),
        (without(PROCESS, "messaging.kafka.offset"), "messaging.kafka.offset is missing"),
        (
            without(PROCESS, "messaging.destination.partition.id"),
            "messaging.destination.partition.id is missing",
        ),
        (without(CHAT, "gen_ai.operation.name"), "gen_ai.operation.name is missing"),
        (without(CHAT, "gen_ai.provider.name"), "gen_ai.provider.name is missing"),
        (without(CHAT, "gen_ai.request.model"), "gen_ai.request.model is missing"),
        (without(CALL, "http.request.method"), "http.request.method is missing"),
        (without(CALL, "url.scheme"), "url.scheme is missing"),
        (without(CALL, "url.path"), "url.path is missing"),
        (given(CALL, server__address="a"), "server.port is missing"),
        # Values.
        (given(SEND, messaging__system="Kafka"), "messaging.system is 'Kafka'"),
        (given(SEND, messaging__operation__type="publish"), "is 'publish', not one of"),
        (
            given(replace(SEND, name="publish t"), messaging__operation__name="publish"),
            "messaging.operation.name is 'publish'",
        ),
        (given(CHAT, gen_ai__operation__name="generate"), "is 'generate', not one of"),
        (given(CALL, http__request__method="post"), "http.request.method is 'post'"),
        # Types.
        (
            given(PROCESS, messaging__destination__partition__id=3),
            "messaging.destination.partition.id is a string, not int: 3",
        ),
        (given(PROCESS, messaging__kafka__offset="7"), "is a int, not string: '7'"),
        (given(PROCESS, messaging__kafka__message__tombstone=1), "is a boolean, not int: 1"),
        (given(CHAT, gen_ai__request__temperature=1), "is a double, not int: 1"),
        (given(CHAT, gen_ai__response__finish_reasons="stop"), "is a string[], not string"),
        (given(CHAT, gen_ai__request__max_tokens=True), "is a int, not boolean"),
        (given(CALL, http__response__status_code="200"), "is a int, not string: '200'"),
        # Deprecated and unknown keys, wherever they are.
        (given(CHAT, gen_ai__system="vllm"), "gen_ai.system is deprecated. Replaced by"),
        (given(CHAT, gen_ai__usage__prompt_tokens=3), "gen_ai.usage.prompt_tokens is deprecated"),
        (
            given(PROCESS, messaging__kafka__message__offset=7),
            "Replaced by `messaging.kafka.offset`",
        ),
        (given(PROCESS, messaging__operation="process"), "messaging.operation is deprecated"),
        (given(PROCESS, messaging__kafka__consumer__group="g"), "consumer.group is deprecated"),
        (given(CALL, http__method="POST"), "http.method is deprecated"),
        (given(CHAT, gen_ai__request__id="r"), "gen_ai.request.id is neither"),
        (given(ADMISSION, request_id="r"), "request_id is neither"),
        (replace(ADMISSION, resource={"worker": "w"}), "worker is neither"),
        (
            replace(ADMISSION, events=(Event(name="e", at_ns=1, attributes={"a": 1}),)),
            "event e: a is neither",
        ),
        (
            replace(COMMIT, links=(Link(trace_id="1", span_id="2", attributes={"a": 1}),)),
            "link: a is neither",
        ),
        # Errors.
        (replace(CHAT, status="error"), "error.type is missing"),
        (given(CHAT, error__type="EngineError"), "error.type is set, and the status is unset"),
        (
            replace(given(CHAT, error__type="no worker in 5 s"), status="error"),
            "is a class of errors, not 'no worker in 5 s'",
        ),
        (given(CALL, http__response__status_code=500), "an answer of 500, and the status is unset"),
        (
            replace(FAILED, attributes={**FAILED.attributes, "http.response.status_code": 404}),
            "an answer of 404 is no error of a server",
        ),
        (
            replace(CHAT, name="llm_request", scope="feedloom.stream_workers", kind="server"),
            "is client or internal, not server",
        ),
        (
            given(replace(CHAT, scope="vllm.tracing.otel"), gen_ai__usage__prompt_tokens=3),
            "gen_ai.usage.prompt_tokens is deprecated",
        ),
        (replace(ADMISSION, end_ns=0), "it ends before it starts"),
    ],
)
def test_what_breaks_a_rule_of_spans_is_told(span: Span, said: str) -> None:
    found = problems(span)
    assert any(said in one for one in found), found
    assert all(one.startswith(f"{span.name}: ") for one in found)


GENERATION = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "vllm",
    "gen_ai.request.model": "m",
}
SENT = {
    "messaging.operation.name": "send",
    "messaging.system": "kafka",
    "messaging.destination.name": "t",
}


def measured(
    name: str,
    kind: MetricKind,
    unit: str,
    attributes: Attributes,
    bounds: tuple[float, ...] = (),
) -> Metric:
    point = Point(attributes=attributes, value=1, start_ns=1, at_ns=2, bounds=bounds)
    return Metric(
        resource={"service.name": "shop"},
        scope="feedloom",
        name=name,
        kind=kind,
        unit=unit,
        description="",
        points=(point,),
    )


USAGE = measured(
    "gen_ai.client.token.usage",
    "histogram",
    "{token}",
    {**GENERATION, "gen_ai.token.type": "input"},
    METRICS["gen_ai.client.token.usage"].buckets,
)
FIRST_TOKEN = measured(
    "gen_ai.server.time_to_first_token",
    "histogram",
    "s",
    {**GENERATION, "feedloom.arm": "stable"},
    METRICS["gen_ai.server.time_to_first_token"].buckets,
)
MESSAGES = measured("messaging.client.sent.messages", "counter", "{message}", SENT)
COMMITS = measured(
    "feedloom.worker.commit.size",
    "histogram",
    "{request}",
    {},
    CATALOGUE["feedloom.worker.commit.size"].buckets,
)
LAG = measured("feedloom.worker.lag", "gauge", "{record}", {"messaging.destination.name": "t"})


PROCESS_TIME = replace(
    LAG, name="process.cpu.time", scope="opentelemetry.instrumentation.system_metrics"
)


def recorded(metric: Metric, attributes: Attributes) -> Metric:
    return replace(metric, points=(replace(metric.points[0], attributes=attributes),))


@pytest.mark.parametrize(
    "metric",
    [USAGE, FIRST_TOKEN, MESSAGES, COMMITS, LAG, PROCESS_TIME],
    ids=lambda metric: metric.name,
)
def test_a_metric_that_keeps_the_conventions_has_no_problems(metric: Metric) -> None:
    assert problems(metric) == []


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (replace(USAGE, name="gen_ai.client.tokens"), "neither a metric of the conventions nor"),
        (replace(LAG, name="feedloom.worker.lags"), "neither a metric of the conventions nor"),
        (replace(PROCESS_TIME, scope="feedloom"), "neither a metric of the conventions nor"),
        (replace(MESSAGES, kind="up_down_counter"), "it is a counter, not a up_down_counter"),
        (replace(LAG, kind="counter"), "it is a gauge, not a counter"),
        (replace(MESSAGES, unit="1"), "its unit is '{message}', not '1'"),
        (replace(FIRST_TOKEN, unit="ms"), "its unit is 's', not 'ms'"),
        (replace(LAG, unit=""), "its unit is '{record}', not ''"),
        (recorded(USAGE, GENERATION), "gen_ai.token.type is missing"),
        (recorded(USAGE, {"gen_ai.token.type": "input"}), "gen_ai.provider.name is missing"),
        (
            recorded(USAGE, {**GENERATION, "gen_ai.token.type": "completion"}),
            "gen_ai.token.type is 'completion'",
        ),
        (recorded(MESSAGES, {**SENT, "messaging.system": "Kafka"}), "messaging.system is 'Kafka'"),
        (recorded(MESSAGES, {**SENT, "error.type": "gone, it is"}), "is a class of errors"),
        (recorded(MESSAGES, {**SENT, "tenant": "a"}), "tenant is neither"),
        (recorded(MESSAGES, {**SENT, "messaging.operation": "x"}), "is deprecated"),
        (
            recorded(FIRST_TOKEN, {**GENERATION, "feedloom.request.id": "r"}),
            "feedloom.request.id is different for each request",
        ),
        (
            recorded(LAG, {"messaging.destination.partition.id": 3}),
            "messaging.destination.partition.id is a string, not int",
        ),
        (recorded(LAG, {"feedloom.tenant": "a"}), "feedloom.tenant is not in the catalogue"),
        (
            replace(FIRST_TOKEN, points=(replace(FIRST_TOKEN.points[0], bounds=(1.0, 2.0)),)),
            "not (1.0, 2.0)",
        ),
        (
            replace(COMMITS, points=(replace(COMMITS.points[0], bounds=(1.0, 2.0)),)),
            "not (1.0, 2.0)",
        ),
        (replace(LAG, resource={"worker": "w"}), "worker is neither"),
    ],
)
def test_what_breaks_a_rule_of_metrics_is_told(metric: Metric, said: str) -> None:
    found = problems(metric)
    assert any(said in one for one in found), found
    assert len(found) == len(set(found))


def test_a_problem_of_many_points_is_told_once() -> None:
    points = tuple(replace(LAG.points[0], attributes={"place": str(n)}) for n in range(3))
    found = problems(replace(LAG, points=points))
    assert len([one for one in found if "place is neither" in one]) == 1


def test_names_that_only_moved_are_not_deprecated() -> None:
    for key in ("gen_ai.provider.name", "error.type", "http.request.method", "url.path"):
        assert key in registered()
        assert key not in deprecated()
    assert not set(TYPES) & set(deprecated())


@pytest.mark.parametrize("name", sorted(METRICS.keys() & CATALOGUE.keys()))
def test_the_catalogue_keeps_the_conventions(name: str) -> None:
    convention, listed = METRICS[name], CATALOGUE[name]
    assert (listed.kind, listed.unit) == (convention.kind, convention.unit)
    assert listed.buckets == convention.buckets
    assert set(convention.required) <= set(listed.attributes)


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_a_name_in_the_catalogue_is_the_conventions_or_ours(name: str) -> None:
    assert name in METRICS or name.startswith("feedloom.")
    for key in CATALOGUE[name].attributes:
        assert key in registered() or key.startswith("feedloom."), key
    assert CATALOGUE[name].unit
