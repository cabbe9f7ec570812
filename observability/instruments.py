"""The metric catalogue: every instrument, its unit, attributes and buckets, in one place.

Names of the GenAI, messaging and HTTP conventions are theirs, with their buckets; ours start with
``feedloom.``. Instruments made before the provider is set start to record when it is.
``python -m observability.instruments`` prints the catalogue as a page.

What a record carries beyond its metric's ``attributes`` is dropped by the provider
(``observability.metrics``), ``Bounded`` keeps what callers name (tenants) from growing without
limit, and beyond ``SERIES_LIMIT`` the provider counts together.

Sources: open-telemetry/semantic-conventions-genai ``docs/gen-ai/gen-ai-metrics.md``;
open-telemetry/semantic-conventions ``docs/messaging/messaging-metrics.md``, ``docs/http``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from opentelemetry.metrics import (
    CallbackOptions,
    Counter,
    Histogram,
    Observation,
    UpDownCounter,
    get_meter,
)
from opentelemetry.metrics import (
    _Gauge as Gauge,
)

_METER = get_meter("feedloom")

Kind = Literal["counter", "up_down_counter", "gauge", "histogram"]
Reading = Callable[[], Iterable[tuple[float, Mapping[str, str]]]]
"""Values of now, each with its attributes."""

SERIES_LIMIT = 1000
"""Series of one metric in one process; what comes beyond them is counted together."""
OTHER = "other"

TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
REQUEST_SECONDS = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
TOKEN_COUNTS = tuple(4**power for power in range(14))
CALL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Of the HTTP and the messaging conventions."""
PAUSE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ROUND_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 14400)
BATCH_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
TOKEN_TYPE = "gen_ai.token.type"  # nosec B105 # of text
ERROR_TYPE = "error.type"
SYSTEM = "messaging.system"
MESSAGING_OPERATION = "messaging.operation.name"
DESTINATION = "messaging.destination.name"
PARTITION = "messaging.destination.partition.id"
GROUP = "messaging.consumer.group.name"
ROUTE = "http.route"
STATUS = "http.response.status_code"
CLASS = "feedloom.request.class"
"""``interactive`` or ``batch``."""
TENANT = "feedloom.tenant"
OUTCOME = "feedloom.outcome"
REASON = "feedloom.reason"
ARM = "feedloom.arm"
"""``stable`` or ``candidate``."""
MODEL = "feedloom.model"
MODEL_KIND = "feedloom.model.kind"
"""``full`` or ``lora``."""
VERSION = "feedloom.version"
OBJECTIVE = "feedloom.objective"
ARCHITECTURE = "feedloom.architecture"
FEEDBACK_KIND = "feedloom.feedback.kind"
GATE = "feedloom.gate"
MOMENT = "feedloom.moment"
"""``before`` or ``after`` training."""
PILE_STEP = "feedloom.pile.step"
VERDICT = "feedloom.verdict"
ACTED = "feedloom.acted"
ALARM = "feedloom.alarm"
SETTING = "feedloom.setting"

_SERVER = (OPERATION, PROVIDER, REQUEST_MODEL, RESPONSE_MODEL, ARM)
_MESSAGING = (SYSTEM, MESSAGING_OPERATION, DESTINATION, GROUP, ERROR_TYPE)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a dashboard, an alert or a test needs to know of an instrument."""

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


CATALOGUE: dict[str, Metric] = {}


class ObservedGauge:
    """A gauge that is read when metrics are collected, from whoever watches something now."""

    def __init__(self, metric: Metric) -> None:
        self._readings: list[Reading] = []
        self._lock = threading.Lock()
        _METER.create_observable_gauge(
            metric.name, [self._observe], unit=metric.unit, description=metric.description
        )

    def watch(self, reading: Reading) -> Callable[[], None]:
        """Read ``reading`` at every collection, in the collecting thread; returns how to stop.

        It must not wait for anything, and not mind that the process goes on meanwhile. A series
        that it does not give any more is gone from the next collection on.
        """
        with self._lock:
            self._readings.append(reading)

        def stop() -> None:
            with self._lock:
                if reading in self._readings:
                    self._readings.remove(reading)

        return stop

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            readings = list(self._readings)
        return [
            Observation(value, dict(attributes))
            for reading in readings
            for value, attributes in reading()
        ]


class Bounded:
    """Lets the first values by as they are, and calls what comes after ``other``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if value not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(value)
        return value


bounded_tenant = Bounded(100)
bounded_version = Bounded(100)
bounded_model = Bounded(20)
"""Of models: a request may name one that is not there."""


def _listed(
    name: str,
    kind: Kind,
    unit: str,
    description: str,
    attributes: Sequence[str],
    buckets: Sequence[float] = (),
) -> Metric:
    metric = Metric(
        name=name,
        kind=kind,
        unit=unit,
        description=description,
        attributes=tuple(attributes),
        buckets=tuple(buckets),
    )
    assert name not in CATALOGUE, name
    CATALOGUE[name] = metric
    return metric


def _histogram(
    name: str, unit: str, description: str, buckets: Sequence[float], attributes: Sequence[str] = ()
) -> Histogram:
    _listed(name, "histogram", unit, description, attributes, buckets)
    return _METER.create_histogram(
        name,
        unit=unit,
        description=description,
        explicit_bucket_boundaries_advisory=list(buckets),
    )


def _counter(name: str, unit: str, description: str, attributes: Sequence[str] = ()) -> Counter:
    _listed(name, "counter", unit, description, attributes)
    return _METER.create_counter(name, unit=unit, description=description)


def _up_down(
    name: str, unit: str, description: str, attributes: Sequence[str] = ()
) -> UpDownCounter:
    _listed(name, "up_down_counter", unit, description, attributes)
    return _METER.create_up_down_counter(name, unit=unit, description=description)


def _gauge(name: str, unit: str, description: str, attributes: Sequence[str] = ()) -> Gauge:
    _listed(name, "gauge", unit, description, attributes)
    return _METER.create_gauge(name, unit=unit, description=description)


def _observed(
    name: str, unit: str, description: str, attributes: Sequence[str] = ()
) -> ObservedGauge:
    return ObservedGauge(_listed(name, "gauge", unit, description, attributes))


# Generation, as the GenAI conventions have it. The client's are the SDK's and the gateway's.
CLIENT_DURATION = _histogram(
    "gen_ai.client.operation.duration",
    "s",
    "From the submit of a request to its result, as its client sees it.",
    REQUEST_SECONDS,
    (OPERATION, PROVIDER, REQUEST_MODEL, RESPONSE_MODEL, ERROR_TYPE),
)
CLIENT_FIRST_CHUNK = _histogram(
    "gen_ai.client.operation.time_to_first_chunk",
    "s",
    "From the submit of a request to its first chunk, as its client sees it.",
    REQUEST_SECONDS,
    (OPERATION, PROVIDER, REQUEST_MODEL, RESPONSE_MODEL),
)
TOKEN_USAGE = _histogram(
    "gen_ai.client.token.usage",
    "{token}",
    "Tokens of one request, counted by the worker.",
    TOKEN_COUNTS,
    (*_SERVER, TOKEN_TYPE),
)
REQUEST_DURATION = _histogram(
    "gen_ai.server.request.duration",
    "s",
    "From the worker's receipt of a request to its final result.",
    REQUEST_SECONDS,
    (*_SERVER, ERROR_TYPE),
)
TIME_TO_FIRST_TOKEN = _histogram(
    "gen_ai.server.time_to_first_token",
    "s",
    "From the worker's receipt of a request to its first token.",
    FIRST_TOKEN_SECONDS,
    _SERVER,
)
TIME_PER_OUTPUT_TOKEN = _histogram(
    "gen_ai.server.time_per_output_token",
    "s",
    "Mean gap between the tokens after the first.",
    TOKEN_SECONDS,
    _SERVER,
)

# Kafka, as the messaging conventions have it.
MESSAGING_OPERATION_DURATION = _histogram(
    "messaging.client.operation.duration",
    "s",
    "How long a send, a poll that found something, or a commit took.",
    CALL_SECONDS,
    _MESSAGING,
)
MESSAGES_SENT = _counter(
    "messaging.client.sent.messages", "{message}", "Records handed to a producer.", _MESSAGING
)
MESSAGES_CONSUMED = _counter(
    "messaging.client.consumed.messages", "{message}", "Records taken from a consumer.", _MESSAGING
)
MESSAGING_PROCESS_DURATION = _histogram(
    "messaging.process.duration",
    "s",
    "How long a record was worked on, from its receipt to what it led to.",
    CALL_SECONDS,
    _MESSAGING,
)

# HTTP.
HTTP_REQUEST_DURATION = _histogram(
    "http.server.request.duration",
    "s",
    "From a gateway's receipt of a call to the end of its answer.",
    CALL_SECONDS,
    ("http.request.method", ROUTE, STATUS, "url.scheme", ERROR_TYPE),
)
GATEWAY_ADMISSIONS = _counter(
    "feedloom.gateway.admissions",
    "{request}",
    "Calls by what quota, lag and workers had to say: admitted, replayed, or the error's code.",
    (OUTCOME, TENANT),
)
GATEWAY_UNAUTHENTICATED = _counter(
    "feedloom.gateway.unauthenticated",
    "{request}",
    "Calls whose credential was refused, by the reason: none, malformed, unknown, revoked, "
    "expired, token.",
    (REASON,),
)
GATEWAY_STREAMS = _up_down(
    "feedloom.gateway.streams", "{stream}", "Answers that are being streamed.", ()
)

# Workers.
REQUESTS_IN_FLIGHT = _up_down(
    "feedloom.worker.requests.in_flight",
    "{request}",
    "Requests taken from Kafka and not answered yet.",
    (CLASS,),
)
REQUESTS_QUEUED = _up_down(
    "feedloom.worker.requests.queued",
    "{request}",
    "Requests taken from Kafka that wait for admission.",
    (CLASS,),
)
TOKENS_IN_FLIGHT = _observed(
    "feedloom.worker.tokens.in_flight",
    "{token}",
    "Tokens that admitted requests may come to, prompts included.",
    (),
)
ADMISSION_WAIT = _histogram(
    "feedloom.worker.admission.wait",
    "s",
    "From a request's receipt to its admission.",
    REQUEST_SECONDS,
    (CLASS, TENANT),
)
DUPLICATES = _counter(
    "feedloom.worker.duplicates",
    "{request}",
    "Requests that were not answered again, by the reason: answered, running.",
    (REASON,),
)
CONSUMER_LAG = _observed(
    "feedloom.worker.lag",
    "{record}",
    "Records after the committed offset, by partition that this worker owns.",
    (DESTINATION, PARTITION),
)
PARTITION_STALL = _observed(
    "feedloom.worker.partition.stalled",
    "s",
    "How long a partition with lag has not seen its committed offset move.",
    (DESTINATION, PARTITION),
)
REBALANCES = _counter(
    "feedloom.worker.rebalances",
    "{rebalance}",
    "Times that partitions were assigned or revoked, by which.",
    (OUTCOME,),
)
COMMIT_DURATION = _histogram(
    "feedloom.worker.commit.duration",
    "s",
    "How long a transaction of results and offsets took.",
    PAUSE_SECONDS,
    (ERROR_TYPE,),
)
COMMIT_SIZE = _histogram(
    "feedloom.worker.commit.size",
    "{request}",
    "How many requests one transaction ended.",
    BATCH_COUNTS,
    (),
)
DEAD_LETTERS = _counter(
    "feedloom.dead_letters",
    "{record}",
    "Records put on a dead-letter topic, by source topic and kind of error.",
    (DESTINATION, ERROR_TYPE),
)
FEEDBACK = _counter(
    "feedloom.worker.feedback",
    "{event}",
    "Feedback by kind, by the arm that answered, and by outcome: joined, early, repeated, "
    "left out, forgotten, unmatched (its answer is not known, or was too long ago).",
    (FEEDBACK_KIND, ARM, OUTCOME),
)
SHADOWED = _counter(
    "feedloom.worker.shadowed",
    "{request}",
    "Copies that a candidate was to answer, by outcome: answered, failed, left out.",
    (OUTCOME,),
)

# Switching versions.
SWITCH_PAUSE = _histogram(
    "feedloom.worker.switch.pause",
    "s",
    "How long no token could be produced while a version was switched.",
    PAUSE_SECONDS,
    (MODEL_KIND,),
)
SWITCHES = _counter(
    "feedloom.worker.switches",
    "{switch}",
    "Versions loaded or refused, by kind and outcome: loaded, failed, refused.",
    (MODEL_KIND, OUTCOME),
)
WORKER_FAILURES = _counter(
    "feedloom.worker.failures",
    "{failure}",
    "Workers that an error ended, by its kind. Sent as the process ends.",
    (ERROR_TYPE,),
)

# The engine.
ENGINE_ALIVE = _observed(
    "feedloom.engine.alive", "1", "1 while the engine answers, 0 when it has died.", ()
)
ENGINE_RUNNING = _observed(
    "feedloom.engine.requests.running", "{request}", "Requests in the engine's batch.", ()
)
KV_CACHE_USAGE = _observed(
    "feedloom.engine.kv_cache.usage", "1", "Share of the KV cache in use.", ()
)
PREFIX_CACHE_QUERIES = _counter(
    "feedloom.engine.prefix_cache.queries",
    "{token}",
    "Prompt tokens looked up in the prefix cache.",
    (),
)
PREFIX_CACHE_HITS = _counter(
    "feedloom.engine.prefix_cache.hits", "{token}", "Prompt tokens found in the prefix cache.", ()
)

# Training.
FEEDBACK_EXAMPLES = _counter(
    "feedloom.trainer.examples",
    "{example}",
    "Feedback examples trained on, by objective.",
    (MODEL, OBJECTIVE),
)
DROPPED_EXAMPLES = _counter(
    "feedloom.trainer.dropped_examples",
    "{example}",
    "Feedback examples, or parts of them, left out of training, by reason.",
    (MODEL, REASON),
)
TRAINING_STEPS = _counter(
    "feedloom.trainer.steps",
    "{step}",
    "Updates of the weights.",
    (MODEL, ARCHITECTURE),
)
TRAINED_TOKENS = _counter(
    "feedloom.trainer.tokens",
    "{token}",
    "Tokens trained on, replay included.",
    (MODEL, ARCHITECTURE),
)
STEP_LOSS = _gauge(
    "feedloom.trainer.step.loss",
    "{nat}",
    "Loss of the last step: the whole, and its parts by objective, unweighed.",
    (MODEL, ARCHITECTURE, OBJECTIVE),
)
LEARNING_RATE = _gauge(
    "feedloom.trainer.learning_rate",
    "1",
    "Of the last step.",
    (MODEL, ARCHITECTURE),
)
GRADIENT_NORM = _gauge(
    "feedloom.trainer.gradient_norm",
    "1",
    "Of the last step, before clipping.",
    (MODEL, ARCHITECTURE),
)
TRAINING_SPEED = _gauge(
    "feedloom.trainer.throughput",
    "{token}/s",
    "Mean of the round so far.",
    (MODEL,),
)
ROUNDS_OPEN = _up_down(
    "feedloom.trainer.rounds.open",
    "{round}",
    "1 while a round runs.",
    (MODEL,),
)
ROUNDS = _counter(
    "feedloom.trainer.rounds",
    "{round}",
    "Rounds ended, by outcome: passed, rejected, empty, stopped, failed.",
    (MODEL, OUTCOME, ERROR_TYPE),
)
ROUND_DURATION = _histogram(
    "feedloom.trainer.round.duration",
    "s",
    "From curated feedback to a measured version, by outcome.",
    ROUND_SECONDS,
    (MODEL, OUTCOME),
)
GATES = _counter(
    "feedloom.trainer.gates",
    "{verdict}",
    "Verdicts of the gates on new versions, by gate and outcome: passed, failed.",
    (MODEL, GATE, OUTCOME),
)
HELDOUT_LOSS = _gauge(
    "feedloom.trainer.heldout.loss",
    "{nat}",
    "Mean loss of a token of held-out text, by version, before and after training.",
    (MODEL, VERSION, MOMENT),
)
FORGETTING = _gauge(
    "feedloom.trainer.forgetting",
    "1",
    "Rise of the held-out loss over the parent's, as a share of it, of the last round.",
    (MODEL,),
)
WIN_RATE = _gauge(
    "feedloom.trainer.win_rate",
    "1",
    "Share of held-out prompts answered better than by the parent, by version.",
    (MODEL, VERSION),
)
PILE_DOCUMENTS = _counter(
    "feedloom.pile.documents",
    "{document}",
    "Documents of Pile preparation by step and outcome: in, out, dropped.",
    (PILE_STEP, OUTCOME),
)

# Rollouts. Those of canaries that are watched now, as of the last look.
_ROLLOUT = (MODEL, ARM, VERSION)
ROLLOUT_REQUESTS = _observed(
    "feedloom.rollout.requests", "{request}", "Requests of a canary so far, by arm.", _ROLLOUT
)
ROLLOUT_ERRORS = _observed(
    "feedloom.rollout.errors", "{request}", "Those of them that failed.", _ROLLOUT
)
ROLLOUT_LABELS = _observed(
    "feedloom.rollout.labels",
    "{answer}",
    "Answers of a canary so far whose feedback counts, by arm.",
    _ROLLOUT,
)
ROLLOUT_OUTCOME = _observed(
    "feedloom.rollout.outcome",
    "1",
    "Mean of the metric that decides a canary, 0 to 1, by arm.",
    _ROLLOUT,
)
ROLLOUT_TTFT = _observed(
    "feedloom.rollout.time_to_first_token",
    "s",
    "Geometric mean over a canary so far, by arm.",
    _ROLLOUT,
)
ROLLOUT_ITL = _observed(
    "feedloom.rollout.time_per_output_token",
    "s",
    "Geometric mean over a canary so far, by arm.",
    _ROLLOUT,
)
ROLLOUT_TOKENS = _observed(
    "feedloom.rollout.output_tokens",
    "{token}",
    "Mean of an answer over a canary so far, by arm.",
    _ROLLOUT,
)
ROLLOUT_DECISIONS = _counter(
    "feedloom.rollout.decisions",
    "{decision}",
    "Published decisions on canaries, by verdict and whether it was carried out.",
    (MODEL, VERDICT, ACTED),
)
ROLLOUT_ALARMS = _counter(
    "feedloom.rollout.alarms",
    "{alarm}",
    "Signs that a candidate pleases without being better, by alarm: edits, length.",
    (MODEL, ALARM),
)

# Configuration.
CONFIG_REFUSED = _counter(
    "feedloom.config.refused",
    "{record}",
    "Changes of dynamic settings that were read and not applied, by setting and reason: "
    "invalid, unreadable.",
    (SETTING, REASON),
)

if __name__ == "__main__":
    from observability.metrics_page import main

    main()
