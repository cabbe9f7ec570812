"""The metric instruments, in one place: names and units of OpenTelemetry's conventions.

GenAI and messaging names are theirs; ours start with ``feedloom.``. Instruments made before the
provider is set start to record when it is.
"""

from __future__ import annotations

from opentelemetry.metrics import Counter, Histogram, UpDownCounter, get_meter

_METER = get_meter("feedloom")

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
TOKEN_COUNTS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
REQUEST_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
ROUND_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 14400)

TIME_TO_FIRST_TOKEN: Histogram = _METER.create_histogram(
    "gen_ai.server.time_to_first_token",
    unit="s",
    description="From the worker's receipt of a request to its first token.",
    explicit_bucket_boundaries_advisory=REQUEST_SECONDS,
)
TIME_PER_OUTPUT_TOKEN: Histogram = _METER.create_histogram(
    "gen_ai.server.time_per_output_token",
    unit="s",
    description="Mean gap between the tokens after the first.",
    explicit_bucket_boundaries_advisory=TOKEN_SECONDS,
)
REQUEST_DURATION: Histogram = _METER.create_histogram(
    "gen_ai.server.request.duration",
    unit="s",
    description="From the worker's receipt of a request to its final result.",
    explicit_bucket_boundaries_advisory=REQUEST_SECONDS,
)
TOKEN_USAGE: Histogram = _METER.create_histogram(
    "gen_ai.client.token.usage",
    unit="{token}",
    description="Tokens of one request, by gen_ai.token.type.",
    explicit_bucket_boundaries_advisory=TOKEN_COUNTS,
)
HTTP_REQUEST_DURATION: Histogram = _METER.create_histogram(
    "http.server.request.duration",
    unit="s",
    description="From a gateway's receipt of a call to the end of its answer, by route and status.",
    explicit_bucket_boundaries_advisory=REQUEST_SECONDS,
)
REQUESTS_IN_FLIGHT: UpDownCounter = _METER.create_up_down_counter(
    "feedloom.worker.requests.in_flight",
    unit="{request}",
    description="Requests taken from Kafka and not answered yet.",
)
REQUESTS_QUEUED: UpDownCounter = _METER.create_up_down_counter(
    "feedloom.worker.requests.queued",
    unit="{request}",
    description="Requests taken from Kafka that wait for admission.",
)
DEAD_LETTERS: Counter = _METER.create_counter(
    "feedloom.dead_letters",
    unit="{record}",
    description="Records put on a dead-letter topic, by source topic.",
)
CONFIG_REFUSED: Counter = _METER.create_counter(
    "feedloom.config.refused",
    unit="{record}",
    description="Changes of dynamic settings that were read and not applied, by setting and "
    "reason: invalid, unreadable.",
)
COMMIT_DURATION: Histogram = _METER.create_histogram(
    "feedloom.worker.commit.duration",
    unit="s",
    description="How long a transaction of results and offsets took.",
    explicit_bucket_boundaries_advisory=TOKEN_SECONDS,
)
COMMIT_SIZE: Histogram = _METER.create_histogram(
    "feedloom.worker.commit.size",
    unit="{request}",
    description="How many requests one transaction ended.",
    explicit_bucket_boundaries_advisory=TOKEN_COUNTS,
)
SWITCH_PAUSE: Histogram = _METER.create_histogram(
    "feedloom.worker.switch.pause",
    unit="s",
    description="How long no token could be produced while a version was switched.",
    explicit_bucket_boundaries_advisory=TOKEN_SECONDS,
)
SHADOWED: Counter = _METER.create_counter(
    "feedloom.worker.shadowed",
    unit="{request}",
    description="Copies that a candidate was to answer, by outcome: answered, failed, left out.",
)
FEEDBACK_EXAMPLES: Counter = _METER.create_counter(
    "feedloom.trainer.examples",
    unit="{example}",
    description="Feedback examples trained on, by objective.",
)
DROPPED_EXAMPLES: Counter = _METER.create_counter(
    "feedloom.trainer.dropped_examples",
    unit="{example}",
    description="Feedback examples, or parts of them, left out of training, by reason.",
)
TRAINING_STEPS: Counter = _METER.create_counter(
    "feedloom.trainer.steps", unit="{step}", description="Updates of the weights."
)
TRAINED_TOKENS: Counter = _METER.create_counter(
    "feedloom.trainer.tokens", unit="{token}", description="Tokens trained on, replay included."
)
STEP_LOSS = _METER.create_gauge(
    "feedloom.trainer.step.loss",
    unit="{nat}",
    description="Loss of the last step: the whole, and its parts by objective, unweighed.",
)
LEARNING_RATE = _METER.create_gauge(
    "feedloom.trainer.learning_rate", unit="1", description="Of the last step."
)
GRADIENT_NORM = _METER.create_gauge(
    "feedloom.trainer.gradient_norm", unit="1", description="Of the last step, before clipping."
)
TRAINING_SPEED = _METER.create_gauge(
    "feedloom.trainer.throughput", unit="{token}/s", description="Mean of the round so far."
)
ROUNDS: Counter = _METER.create_counter(
    "feedloom.trainer.rounds",
    unit="{round}",
    description="Rounds ended, by outcome: passed, rejected, empty, stopped, failed.",
)
ROUND_DURATION: Histogram = _METER.create_histogram(
    "feedloom.trainer.round.duration",
    unit="s",
    description="From curated feedback to a measured version, by outcome.",
    explicit_bucket_boundaries_advisory=ROUND_SECONDS,
)
HELDOUT_LOSS = _METER.create_gauge(
    "feedloom.trainer.heldout.loss",
    unit="{nat}",
    description="Mean loss of a token of held-out text, by version, before and after training.",
)
WIN_RATE = _METER.create_gauge(
    "feedloom.trainer.win_rate",
    unit="1",
    description="Share of held-out prompts answered better than by the parent, by version.",
)
ROLLOUT_REQUESTS = _METER.create_gauge(
    "feedloom.rollout.requests",
    unit="{request}",
    description="Requests of a canary so far, by arm.",
)
ROLLOUT_ERRORS = _METER.create_gauge(
    "feedloom.rollout.errors", unit="{request}", description="Those of them that failed."
)
ROLLOUT_LABELS = _METER.create_gauge(
    "feedloom.rollout.labels",
    unit="{answer}",
    description="Answers of a canary so far whose feedback counts, by arm.",
)
ROLLOUT_OUTCOME = _METER.create_gauge(
    "feedloom.rollout.outcome",
    unit="1",
    description="Mean of the metric that decides a canary, 0 to 1, by arm.",
)
ROLLOUT_TTFT = _METER.create_gauge(
    "feedloom.rollout.time_to_first_token",
    unit="s",
    description="Geometric mean over a canary so far, by arm.",
)
ROLLOUT_ITL = _METER.create_gauge(
    "feedloom.rollout.time_per_output_token",
    unit="s",
    description="Geometric mean over a canary so far, by arm.",
)
ROLLOUT_TOKENS = _METER.create_gauge(
    "feedloom.rollout.output_tokens",
    unit="{token}",
    description="Mean of an answer over a canary so far, by arm.",
)
ROLLOUT_DECISIONS: Counter = _METER.create_counter(
    "feedloom.rollout.decisions",
    unit="{decision}",
    description="Published decisions on canaries, by verdict and whether it was carried out.",
)
ROLLOUT_ALARMS: Counter = _METER.create_counter(
    "feedloom.rollout.alarms",
    unit="{alarm}",
    description="Signs that a candidate pleases without being better, by alarm: edits, length.",
)
