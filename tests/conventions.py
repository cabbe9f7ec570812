"""OpenTelemetry's semantic conventions as far as this platform follows them, and who breaks them.

What spans and metrics of Kafka, of generation and of HTTP servers must be called and carry is in
tables; names of our own start with ``feedloom.``. Registries of attribute names, and which of them
are deprecated, are read from the installed ``opentelemetry-semantic-conventions``.

Sources: open-telemetry/semantic-conventions ``docs/messaging/{kafka,messaging-spans,
messaging-metrics}.md``, ``docs/http/{http-spans,http-metrics}.md``,
``docs/general/recording-errors.md``; open-telemetry/semantic-conventions-genai
``docs/gen-ai/{gen-ai-spans,gen-ai-metrics}.md``. Of a convention's recommended attributes those are
required here that the platform always knows.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from opentelemetry.semconv import attributes as stable
from opentelemetry.semconv._incubating import attributes as incubating

from observability.instruments import CATALOGUE
from tests.telemetry import Attributes, Metric, MetricKind, Span, SpanKind, Value

Type = Literal["string", "int", "double", "boolean", "string[]"]

OURS = "feedloom."
WORK = frozenset({"train", "switch", "decide", "shadow"})
"""What is done with a model: such a span is named for both."""
FOREIGN = ("vllm.", "opentelemetry.instrumentation.")
"""Scopes of libraries that are told to record, and not what."""
BATCH = "messaging.batch.message_count"


@dataclass(frozen=True, kw_only=True)
class SpanConvention:
    """``name``: attributes whose values, with a space between, are the span's name.

    Of ``name``, those may be absent that are not required. ``single``: required unless the span is
    of a batch. ``values``: what an attribute may say.
    """

    what: str
    kinds: tuple[SpanKind, ...]
    name: tuple[str, ...]
    required: tuple[str, ...]
    single: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class MetricConvention:
    """Of one metric; ``buckets`` are upper bounds."""

    name: str
    kind: MetricKind
    unit: str
    required: tuple[str, ...]
    buckets: tuple[float, ...] = ()


_KAFKA = ("messaging.system", "messaging.operation.name", "messaging.operation.type")
_DESTINATION = "messaging.destination.name"


def _messaging(
    operation: str, kind: SpanKind, *, single: tuple[str, ...] = (), names: tuple[str, ...]
) -> SpanConvention:
    return SpanConvention(
        what=f"a span of messaging operation type {operation}",
        kinds=(kind,),
        name=("messaging.operation.name", _DESTINATION),
        required=_KAFKA,
        single=(_DESTINATION, *single),
        values={"messaging.system": ("kafka",), "messaging.operation.name": names},
    )


_RECORD = ("messaging.destination.partition.id", "messaging.kafka.offset")
MESSAGING = {
    "create": _messaging("create", "producer", names=("create",)),
    "send": _messaging("send", "producer", names=("send",)),
    "receive": _messaging("receive", "client", names=("poll",)),
    "process": _messaging("process", "consumer", single=_RECORD, names=("process",)),
    "settle": _messaging("settle", "client", names=("commit",)),
}
"""By ``messaging.operation.type``. The operations' names are those of Kafka's clients."""

INFERENCE = SpanConvention(
    what="an inference span",
    kinds=("client", "internal"),
    name=("gen_ai.operation.name", "gen_ai.request.model"),
    required=("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"),
    values={"gen_ai.operation.name": ("chat", "text_completion", "generate_content")},
)

_METHODS = (
    *("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "QUERY"),
    "_OTHER",
)
HTTP_SERVER = SpanConvention(
    what="an HTTP server span",
    kinds=("server",),
    name=("http.request.method", "http.route"),
    required=("http.request.method", "url.path", "url.scheme"),
    values={"http.request.method": _METHODS, "url.scheme": ("http", "https")},
)

_TYPES: Mapping[Type, str] = {
    "string": """
        error.type exception.type exception.message exception.stacktrace
        service.name service.instance.id service.version
        messaging.system messaging.operation.name messaging.operation.type
        messaging.destination.name messaging.destination.template
        messaging.destination.partition.id messaging.consumer.group.name messaging.client.id
        messaging.message.id messaging.message.conversation_id messaging.kafka.message.key
        gen_ai.operation.name gen_ai.provider.name gen_ai.request.model gen_ai.response.model
        gen_ai.response.id gen_ai.conversation.id gen_ai.output.type gen_ai.token.type
        gen_ai.input.messages gen_ai.output.messages gen_ai.system_instructions
        http.request.method http.request.method_original http.route
        url.path url.scheme url.query server.address client.address
        network.protocol.name network.protocol.version network.peer.address user_agent.original
    """,
    "int": """
        messaging.batch.message_count messaging.kafka.offset messaging.message.body.size
        messaging.message.envelope.size
        gen_ai.request.max_tokens gen_ai.request.choice.count gen_ai.request.seed
        gen_ai.usage.input_tokens gen_ai.usage.output_tokens
        gen_ai.usage.cache_read.input_tokens gen_ai.usage.cache_creation.input_tokens
        gen_ai.usage.reasoning.output_tokens
        http.response.status_code http.request.body.size http.response.body.size
        server.port client.port network.peer.port
    """,
    "double": """
        gen_ai.request.temperature gen_ai.request.top_p gen_ai.request.top_k
        gen_ai.request.frequency_penalty gen_ai.request.presence_penalty
        gen_ai.response.time_to_first_chunk
    """,
    "boolean": "messaging.kafka.message.tombstone gen_ai.request.stream",
    "string[]": "gen_ai.request.stop_sequences gen_ai.response.finish_reasons",
}
TYPES: Mapping[str, Type] = {key: kind for kind, keys in _TYPES.items() for key in keys.split()}
"""Of each attribute whose type is checked."""

_CALL = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_OPERATION = tuple(0.01 * 2**power for power in range(14))
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
_OUTPUT_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(4**power for power in range(14))
_GENERATION = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
_KAFKA_METRIC = ("messaging.operation.name", "messaging.system", _DESTINATION)


def _seconds(
    name: str, required: tuple[str, ...], buckets: tuple[float, ...]
) -> tuple[str, MetricConvention]:
    return name, MetricConvention(
        name=name, kind="histogram", unit="s", required=required, buckets=buckets
    )


def _messages(name: str) -> tuple[str, MetricConvention]:
    return name, MetricConvention(
        name=name, kind="counter", unit="{message}", required=_KAFKA_METRIC
    )


METRICS: Mapping[str, MetricConvention] = dict(
    [
        _seconds("gen_ai.client.operation.duration", _GENERATION, _OPERATION),
        _seconds("gen_ai.client.operation.time_to_first_chunk", _GENERATION, _OPERATION),
        _seconds("gen_ai.client.operation.time_per_output_chunk", _GENERATION, _OPERATION),
        (
            "gen_ai.client.token.usage",
            MetricConvention(
                name="gen_ai.client.token.usage",
                kind="histogram",
                unit="{token}",
                required=(*_GENERATION, "gen_ai.token.type"),
                buckets=_TOKENS,
            ),
        ),
        _seconds("gen_ai.server.request.duration", _GENERATION, _OPERATION),
        _seconds("gen_ai.server.time_to_first_token", _GENERATION, _FIRST_TOKEN),
        _seconds("gen_ai.server.time_per_output_token", _GENERATION, _OUTPUT_TOKEN),
        # A commit is of several topics: no destination there.
        _seconds("messaging.client.operation.duration", _KAFKA_METRIC[:2], _CALL),
        _messages("messaging.client.sent.messages"),
        _messages("messaging.client.consumed.messages"),
        _seconds("messaging.process.duration", _KAFKA_METRIC, _CALL),
        _seconds("http.server.request.duration", ("http.request.method", "url.scheme"), _CALL),
    ]
)
"""By name: those of the conventions' metrics that the platform has, or may come to have."""

_METRIC_VALUES = {"gen_ai.token.type": ("input", "output"), "messaging.system": ("kafka",)}
_UNBOUNDED = frozenset(
    {
        *("messaging.kafka.offset", "messaging.kafka.message.key", "messaging.message.id"),
        *("gen_ai.response.id", "gen_ai.conversation.id", "feedloom.request.id", "url.path"),
    }
)
"""Attributes with a value of its own for each request: they have no place on a metric."""


@cache
def deprecated() -> Mapping[str, str]:
    """What the installed registry says of each attribute that should not be used any more.

    Names that only moved, to the stable module or to the GenAI repository, are not among them.
    """
    moved = ("in favor of stable", "Moved to the [OpenTelemetry GenAI")
    return {
        key: said
        for key, said in _documented().items()
        if said.startswith("Deprecated") and not any(phrase in said for phrase in moved)
    }


@cache
def registered() -> frozenset[str]:
    """Every attribute of the conventions that may be used."""
    return frozenset(_documented()) - frozenset(deprecated()) | frozenset(TYPES)


@cache
def _documented() -> Mapping[str, str]:
    """First line of each attribute's documentation, which only the source has."""
    found: dict[str, str] = {}
    pattern = re.compile(r'^[A-Z0-9_]+: Final = "([^"]+)"\n"""\n(.*)$', re.MULTILINE)
    for package in (stable, incubating):
        for module in pkgutil.iter_modules(package.__path__):
            for folder in package.__path__:
                text = (Path(folder) / f"{module.name}.py").read_text("utf-8")
                for key, said in pattern.findall(text):
                    found.setdefault(key, said)
    return found


def problems(found: Span | Metric) -> list[str]:
    """What is wrong with it, by the conventions; nothing if it keeps them.

    Of a foreign span only the attributes and times are judged, of a foreign metric nothing.
    """
    said = _of_span(found) if isinstance(found, Span) else _of_metric(found)
    return [f"{found.name}: {one}" for one in said]


def is_foreign(found: Span | Metric) -> bool:
    """Whether a library made it by itself, whose names are not the platform's to choose."""
    return found.scope.startswith(FOREIGN)


def _of_span(span: Span) -> Iterator[str]:
    yield from _of_keys(span.attributes)
    yield from _of_keys(span.resource)
    for event in span.events:
        yield from (f"event {event.name}: {one}" for one in _of_keys(event.attributes))
    for link in span.links:
        yield from (f"link: {one}" for one in _of_keys(link.attributes))
    if span.end_ns < span.start_ns:
        yield "it ends before it starts"
    if is_foreign(span):
        return
    yield from _of_error(span)
    if span.kind == "internal" and span.name.startswith(OURS):
        if not re.fullmatch(r"feedloom(\.[a-z][a-z0-9_]*)+", span.name):
            yield "a name of ours is feedloom.PART.PART, without anything that varies"
    elif span.kind == "internal" and span.name.partition(" ")[0] in WORK:
        if span.name.partition(" ")[2] != span.attributes.get("feedloom.model"):
            yield "the name should end with what feedloom.model says"
    elif any(key.startswith("messaging.") for key in span.attributes):
        operation = span.attributes.get("messaging.operation.type")
        convention = MESSAGING.get(str(operation))
        if convention is None:
            yield f"messaging.operation.type is {operation!r}, not one of {', '.join(MESSAGING)}"
        else:
            yield from _by(convention, span)
    elif any(key.startswith("gen_ai.") for key in span.attributes):
        yield from _by(INFERENCE, span)
    elif span.kind == "server":
        yield from _by(HTTP_SERVER, span)
        yield from _of_http_status(span)
    else:
        yield f"a span of kind {span.kind} without a name of ours, messaging or gen_ai attributes"


def _by(convention: SpanConvention, span: Span) -> Iterator[str]:
    if span.kind not in convention.kinds:
        yield f"{convention.what} is {' or '.join(convention.kinds)}, not {span.kind}"
    required = convention.required
    if BATCH not in span.attributes:
        required += convention.single
    yield from (f"{key} is missing" for key in required if key not in span.attributes)
    yield from _of_values(convention.values, span.attributes)
    parts = [str(span.attributes[key]) for key in convention.name if key in span.attributes]
    if parts[:1] == ["_OTHER"]:
        parts[0] = "HTTP"
    if span.name != " ".join(parts):
        yield f"the name should be {' '.join(parts)!r}, of {' and '.join(convention.name)}"


def _of_error(span: Span) -> Iterator[str]:
    given = span.attributes.get("error.type")
    if span.status == "error" and given is None:
        yield "the status is an error, and error.type is missing"
    if span.status != "error" and given is not None:
        yield f"error.type is set, and the status is {span.status}"
    yield from _of_error_type(given)


def _of_error_type(given: Value) -> Iterator[str]:
    if isinstance(given, str) and not re.fullmatch(r"[\w.:-]+", given):
        yield f"error.type is a class of errors, not {given!r}"


def _of_http_status(span: Span) -> Iterator[str]:
    code = span.attributes.get("http.response.status_code")
    if not isinstance(code, int):
        return
    if code >= 500 and span.status != "error":
        yield f"an answer of {code}, and the status is {span.status}"
    if 400 <= code < 500 and span.status != "unset":
        yield f"an answer of {code} is no error of a server, and the status is {span.status}"


def _of_keys(attributes: Attributes) -> Iterator[str]:
    for key, value in attributes.items():
        if key in deprecated():
            yield f"{key} is deprecated. {deprecated()[key].removeprefix('Deprecated: ')}"
        elif key not in registered() and not key.startswith(OURS):
            yield f"{key} is neither in the conventions nor ours"
        expected = TYPES.get(key)
        if expected is not None and (actual := _type(value)) != expected:
            yield f"{key} is a {expected}, not {actual}: {value!r}"
    if "server.address" in attributes and "server.port" not in attributes:
        yield "server.port is missing beside server.address"


def _type(value: Value) -> str:
    match value:
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "int"
        case float():
            return "double"
        case tuple() if all(isinstance(one, str) for one in value):
            return "string[]"
        case _:
            return type(value).__name__


def _of_values(allowed: Mapping[str, tuple[str, ...]], attributes: Attributes) -> Iterator[str]:
    for key, values in allowed.items():
        if key in attributes and attributes[key] not in values:
            yield f"{key} is {attributes[key]!r}, not one of {', '.join(values)}"


def _of_metric(metric: Metric) -> Iterator[str]:
    if is_foreign(metric):
        return
    convention = METRICS.get(metric.name)
    if convention is None and metric.name in CATALOGUE and metric.name.startswith(OURS):
        listed = CATALOGUE[metric.name]
        convention = MetricConvention(
            name=listed.name,
            kind=listed.kind,
            unit=listed.unit,
            required=(),
            buckets=listed.buckets,
        )
    yield from _of_keys(metric.resource)
    if convention is None:
        yield "neither a metric of the conventions nor of the catalogue"
        return
    if metric.kind != convention.kind:
        yield f"it is a {convention.kind}, not a {metric.kind}"
    if metric.unit != convention.unit:
        yield f"its unit is {convention.unit!r}, not {metric.unit!r}"
    yield from _unique(
        one for point in metric.points for one in _of_point(convention, point.attributes)
    )
    buckets = {point.bounds for point in metric.points} if convention.buckets else set()
    for found in sorted(buckets - {convention.buckets}):
        yield f"its buckets are {convention.buckets}, not {found}"


def _of_point(convention: MetricConvention, attributes: Attributes) -> Iterator[str]:
    yield from _of_keys(attributes)
    yield from (f"{key} is missing" for key in convention.required if key not in attributes)
    yield from (f"{key} is different for each request" for key in _UNBOUNDED & set(attributes))
    yield from _of_values(_METRIC_VALUES, attributes)
    yield from _of_error_type(attributes.get("error.type"))
    listed = CATALOGUE.get(convention.name)
    if listed is not None and listed.name.startswith(OURS):
        for key in attributes:
            if key not in listed.attributes:
                yield f"{key} is not in the catalogue"


def _unique(said: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(said))
