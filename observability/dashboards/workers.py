"""Workers: which are alive, what they hold, and what a request waits for in them."""

from __future__ import annotations

from observability.dashboards.panels import Dashboard, Row, Scope, graph, stat
from observability.dashboards.variables import WORKER
from observability.instruments import (
    ARM,
    CLASS,
    ERROR_TYPE,
    FEEDBACK_KIND,
    MODEL_KIND,
    OUTCOME,
    REASON,
)
from observability.promql import level, mean, present, quantile, rate, ratio

_on = Scope((WORKER,))

_ALIVE = _on("feedloom.engine.alive")
_IN_FLIGHT = _on("feedloom.worker.requests.in_flight")
_QUEUED = _on("feedloom.worker.requests.queued")
_WAIT = _on("feedloom.worker.admission.wait")
_COMMIT = _on("feedloom.worker.commit.duration")
_PAUSE = _on("feedloom.worker.switch.pause")

DASHBOARD = Dashboard(
    uid="feedloom-workers",
    title="Feedloom / Workers",
    description="Which workers are alive, what they hold, and what a request waits for in them.",
    variables=(WORKER,),
    rows=(
        Row(
            title="Now",
            height=4,
            panels=(
                stat(
                    "Workers",
                    "Workers that report.",
                    level(_ALIVE, how="count"),
                    limit=1,
                    below=True,
                ),
                stat(
                    "Engines alive",
                    "Below the count of workers, an engine has died.",
                    level(_ALIVE),
                    unit="none",
                    limit=1,
                    below=True,
                ),
                stat("In flight", "Requests taken and not answered yet.", level(_IN_FLIGHT)),
                stat("Queued", "Of those, the ones that wait for admission.", level(_QUEUED)),
                stat(
                    "Admission p95",
                    "From a request's receipt to its admission.",
                    quantile(0.95, _WAIT),
                ),
                stat(
                    "KV cache",
                    "Fullest engine. Near 100% requests are preempted and computed again.",
                    level(_on("feedloom.engine.kv_cache.usage"), how="max"),
                    limit=0.95,
                ),
            ),
        ),
        Row(
            title="Load",
            panels=(
                graph(
                    "In flight by class",
                    "Requests taken from Kafka and not answered yet.",
                    level(_IN_FLIGHT, by=("instance", CLASS)),
                ),
                graph(
                    "Queued by class",
                    "Requests that wait for admission. Batch waits while interactive work runs.",
                    level(_QUEUED, by=("instance", CLASS)),
                ),
                graph(
                    "Admission wait p95",
                    "Rises when the bound on tokens in flight holds requests back.",
                    quantile(0.95, _WAIT, by=(CLASS,)),
                ),
                graph(
                    "Tokens in flight",
                    "What admitted requests may come to, prompts included.",
                    level(_on("feedloom.worker.tokens.in_flight"), by=("instance",)),
                ),
                graph(
                    "Requests in the engine",
                    "Requests in the engine's batch.",
                    level(_on("feedloom.engine.requests.running"), by=("instance",)),
                ),
                graph(
                    "KV cache in use",
                    "Near 100% requests are preempted and computed again.",
                    level(_on("feedloom.engine.kv_cache.usage"), by=("instance",), how="max"),
                    most=1,
                    limit=0.95,
                ),
            ),
        ),
        Row(
            title="Engine",
            panels=(
                graph(
                    "Engine alive",
                    "1 while it answers, 0 when it has died.",
                    level(_ALIVE, by=("instance",), how="min"),
                    unit="none",
                    most=1,
                ),
                graph(
                    "Prefix cache hits",
                    "Share of prompt tokens found in the cache. Falls after a switch, and where "
                    "keys no longer keep conversations on one worker.",
                    ratio(
                        rate(_on("feedloom.engine.prefix_cache.hits"), by=("instance",)),
                        rate(_on("feedloom.engine.prefix_cache.queries"), by=("instance",)),
                    ),
                    most=1,
                ),
                graph(
                    "Not answered again",
                    "Requests delivered twice, a second: after a rebalance some are usual.",
                    rate(_on("feedloom.worker.duplicates"), by=(REASON,)),
                ),
            ),
        ),
        Row(
            title="Switches of versions",
            panels=(
                graph(
                    "Switches",
                    "Versions loaded, failed or refused, a second.",
                    rate(
                        _on("feedloom.worker.switches"),
                        by=("instance", MODEL_KIND, OUTCOME),
                    ),
                ),
                graph(
                    "Pause p95",
                    "How long no token could be produced while a version was switched.",
                    quantile(0.95, _PAUSE, by=(MODEL_KIND,)),
                ),
                graph(
                    "Copies for a candidate",
                    "Shadowed requests by outcome: answered, failed, left out.",
                    rate(_on("feedloom.worker.shadowed"), by=(OUTCOME,)),
                ),
            ),
        ),
        Row(
            title="Results and feedback",
            panels=(
                graph(
                    "Commit p95",
                    "How long a transaction of results and offsets took.",
                    quantile(0.95, _COMMIT, by=("instance",)),
                ),
                graph(
                    "Failed commits",
                    "Transactions that ended with an error, a second.",
                    rate(_COMMIT.where({ERROR_TYPE: present()}), by=("instance", ERROR_TYPE)),
                ),
                graph(
                    "Results in a commit",
                    "Mean number of requests that one transaction ends: more under load.",
                    mean(_on("feedloom.worker.commit.size"), by=("instance",)),
                ),
                graph(
                    "Feedback",
                    "Events by outcome, a second: joined with their answer, or why not.",
                    rate(_on("feedloom.worker.feedback"), by=(OUTCOME,)),
                    width=12,
                ),
                graph(
                    "Feedback by kind and arm",
                    "What a canary's decision has to go on.",
                    rate(_on("feedloom.worker.feedback"), by=(FEEDBACK_KIND, ARM)),
                    width=12,
                ),
            ),
        ),
    ),
)
